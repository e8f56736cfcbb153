/**
 * Volumes: each is a folder in the supervisor's mount namespace, from which the containers bind it. What is mounted there ends
 * with the supervisor, however that ends, and loop devices with their last mount.
 */
import { realpathSync } from "node:fs"
import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, VolumeError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import type { Options, TypeId as PublicTypeId, Volume } from "../../Volume.ts"
import type { Unit } from "../supervisor/connection.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { attempt } from "../util/fromThrowing.ts"
import { MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID } from "../util/mountAttributes.ts"
import { prints } from "../util/prints.ts"
import * as check from "../util/validate.ts"
import { checkBytes, checkMachine, format, mounted } from "./image.ts"
import * as named from "./named.ts"

export const TypeId: PublicTypeId = Symbol.for("berth/Volume") as PublicTypeId

export const isVolume = (u: unknown): u is Volume => hasProperty(u, TypeId)

/** A volume that is open: its mounts exist until the last of those that hold it lets go. */
export interface State {
  readonly berth: Berth
  readonly name: string | undefined
  /** For messages. */
  readonly label: string
  readonly properties: named.Properties
  readonly storage: "disk" | "memory"
  /** The folder that containers bind, in the supervisor's mount namespace. */
  readonly folder: string
  /** Whether it is a single file, which only a part of an image can be. */
  readonly isFile: boolean
  /** The layers of its copies, uppermost first. */
  readonly layers: ReadonlyArray<string>
  /** The volume of which it is a copy. */
  readonly source: State | undefined
  /** What containers and copies of this Berth do with it, by their descriptions. */
  readonly uses: Map<string, named.Use>
  readonly unit: Unit
  holders: number
}

const Proto = {
  [TypeId]: TypeId,
  ...prints<Volume>({
    id: "berth/Volume",
    json: ({ name, size, storage }) => ({ name, size, storage }),
    line: ({ name, size, storage }) =>
      `${name ?? "without a name"}, ${size === undefined ? "" : `${size} bytes `}${storage === "disk" ? "on disk" : "in memory"}`
  })
}

const ATTRIBUTES = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV

/** The wishes of `Volume.make`, checked. */
interface Wanted {
  readonly name: string | undefined
  readonly size: number | undefined
  readonly storage: "disk" | "memory"
  readonly mode: number
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
  readonly source: State | undefined
}

const isOpen = (state: State, berth: Berth): boolean =>
  state.holders > 0 && state.berth.supervisor === berth.supervisor

/** The state of a volume that this Berth has open; throws. */
export const stateOf = (option: string, volume: Volume, berth: Berth): State =>
  isVolume(volume) && isOpen(volume.state, berth)
    ? volume.state
    : check.invalid(option, volume, "a volume of this Berth in an open scope")

const wantedBy = (options: Options, berth: Berth): Wanted => {
  const { from, gid, mode = 0o1777, storage = "disk", uid } = options
  const name = options.name === undefined ? undefined : named.checkName(options.name)
  const bytes = options.size === undefined ? undefined : check.bytes("size", options.size)
  if (storage !== "disk" && storage !== "memory") check.invalid("storage", storage, '"disk" or "memory"')
  check.mode("mode", mode)
  check.id("uid", uid)
  check.id("gid", gid)
  const source = from === undefined ? undefined : stateOf("from", from, berth)
  if (name !== undefined && storage === "memory")
    check.invalid(
      "storage",
      storage,
      '"disk" for a volume with a name: what is in memory ends with the program'
    )
  if (name !== undefined && source !== undefined && source.name === undefined)
    check.invalid(
      "from",
      String(from),
      "a volume with a name, as a copy with a name needs it for as long as it exists"
    )
  if (bytes === 0) check.invalid("size", bytes, "a size above 0")
  const size = bytes !== undefined && storage === "disk" ? checkBytes("size", bytes) : bytes
  if (size !== undefined && storage === "disk") checkMachine(berth.rootless)
  const owner = uid === undefined && gid === undefined ? undefined : { uid: uid ?? 0, gid: gid ?? 0 }
  return { name, size, storage, mode, owner, source }
}

/**
 * The file system that has the volume's folders `data` and `work`, at a folder of the unit. `origin` is the folder or the file that
 * has them already.
 */
const disk = (
  wanted: Wanted,
  base: string,
  origin: string | undefined
): { readonly operations: ReadonlyArray<Plan.Operation>; readonly folder: string } => {
  const at = `${base}/disk`
  const point: Plan.Operation = { op: "scratch", path: at, mode: 0o700 }
  const folders: ReadonlyArray<Plan.Operation> = [
    { op: "scratch", path: `${at}/data`, mode: wanted.mode },
    { op: "scratch", path: `${at}/work`, mode: 0o700 }
  ]
  if (wanted.storage === "memory") {
    const options = ["mode=0700", ...(wanted.size === undefined ? [] : [`size=${wanted.size}`])]
    const tmpfs: Plan.Operation = {
      op: "filesystem",
      type: "tmpfs",
      image: "",
      options,
      attributes: ATTRIBUTES
    }
    return { folder: at, operations: [point, tmpfs, { op: "attach", path: at, discard: 0 }, ...folders] }
  }
  if (origin === undefined) return { folder: at, operations: [point, ...folders] }
  if (wanted.size !== undefined)
    return { folder: at, operations: [point, ...mounted(origin, at, wanted.name !== undefined)] }
  const tree: Plan.Operation = { op: "tree", path: origin, mapped: 0, attributes: ATTRIBUTES }
  return { folder: at, operations: [point, tree, { op: "attach", path: at, discard: 0 }] }
}

/** The operations of a copy: an overlay of its own files on those of its source. */
const merged = (
  { rootless }: Berth,
  source: State,
  own: string,
  at: string,
  isNew: boolean,
  isScoped: boolean
): ReadonlyArray<Plan.Operation> => [
  ...(isNew ? [{ op: "copy-attributes", from: source.folder, path: `${own}/data` } as const] : []),
  { op: "scratch", path: at, mode: 0o700 },
  {
    op: "overlay",
    lower: source.layers,
    upper: `${own}/data`,
    work: `${own}/work`,
    // What ends with the program is never synced to disk. With an index, a copy of a copy would be refused, as a lower layer of it is the writable layer of another mount.
    options: [...(isScoped ? ["volatile"] : []), "index=off", ...(rootless ? ["userxattr"] : [])],
    attributes: ATTRIBUTES
  },
  { op: "attach", path: at, discard: 0 }
]

/** Opens the volume: starts the unit that has its mounts. */
const start = (
  berth: Berth,
  wanted: Wanted,
  id: number,
  label: string,
  isNew: boolean
): Effect.Effect<State, BerthError> =>
  Effect.gen(function* () {
    const { name, owner, size, source, storage } = wanted
    // The supervisor follows no symbolic link to a volume, so there must be none in the paths of a plan.
    const base = `${yield* attempt(() => realpathSync(berth.supervisor.folder))}/volume-${id}`
    const stored =
      name === undefined
        ? undefined
        : `${yield* attempt(() => realpathSync(named.folderOf(berth)))}/${name}/${size === undefined ? "files" : "image"}`
    const isFile = size !== undefined && storage === "disk" && name === undefined
    const image = `${base}.disk/image`
    const own = disk(wanted, base, isFile ? image : stored)
    const folder = source === undefined ? `${own.folder}/data` : `${base}/merged`
    const plan = Plan.make([
      ...(isFile ? [{ op: "discard", path: `${base}.disk` } as const] : []),
      { op: "scratch", path: base, mode: 0o700 },
      ...own.operations,
      ...(isNew && owner !== undefined
        ? [{ op: "owner", path: `${own.folder}/data`, ...owner } as const]
        : []),
      ...(source === undefined ? [] : merged(berth, source, own.folder, folder, isNew, name === undefined))
    ])
    if (isFile)
      yield* format({
        folder: `${base}.disk`,
        path: image,
        bytes: size,
        folders: { data: wanted.mode, work: 0o700 },
        durable: false
      })
    const unit = yield* berth.supervisor.start(id, plan, {})
    const state: State = {
      berth,
      name,
      label,
      properties: { size, from: source?.name },
      storage,
      folder,
      isFile: false,
      layers: [`${own.folder}/data`, ...(source?.layers ?? [])],
      source,
      uses: new Map(),
      unit,
      holders: 1
    }
    return state
  })

/** The named volumes that each Berth has open. */
const opened = new WeakMap<Berth["supervisor"], Map<string, State>>()

const openedBy = ({ supervisor }: Berth): Map<string, State> => {
  const known = opened.get(supervisor) ?? new Map<string, State>()
  opened.set(supervisor, known)
  return known
}

const lockedIfNamed = ({
  berth,
  name
}: State): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | BerthError, R>) =>
  name === undefined ? (effect) => effect : named.locked(berth)

const inUse = (state: State, users: ReadonlyArray<string>, todo: string): VolumeError =>
  new VolumeError({ reason: "InUse", volume: state.label, detail: `${users.join(" and ")}: ${todo}` })

/** Records a use, unless another one excludes it; the caller has the lock of a named volume. */
const begin = (state: State, user: string, use: named.Use): Effect.Effect<void, BerthError> =>
  Effect.suspend((): Effect.Effect<void, BerthError> => {
    if (state.holders === 0) return inUse(state, ["its scope has closed"], "make it again")
    const excluded = (other: named.Use): boolean =>
      (use === "writes" && other === "copies") || (use === "copies" && other === "writes")
    const users = [
      ...[...state.uses].filter(([, other]) => excluded(other)).map(([who]) => who),
      ...(state.name === undefined ? [] : named.usesElsewhere(state.berth, state.name, excluded))
    ]
    if (users.length > 0)
      return use === "writes"
        ? inUse(
            state,
            users,
            "a volume with copies must not change: mount it with readOnly, or end its copies"
          )
        : inUse(state, users, "a volume that a container writes to cannot be copied: end the container first")
    state.uses.set(user, use)
    state.holders++
    return state.name === undefined ? Effect.void : named.record(state.berth, state.name, state.uses)
  })

/** Takes back a use, or a hold, and tells whether it was the last; the caller has the lock of a named volume. */
const end = (state: State, user?: string): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    const { berth, name } = state
    if (user !== undefined) state.uses.delete(user)
    const isLast = --state.holders === 0
    const recorded =
      name === undefined
        ? Effect.void
        : Effect.ignore(named.record(berth, name, isLast ? undefined : state.uses))
    if (!isLast) return Effect.as(recorded, false)
    if (name !== undefined) openedBy(berth).delete(name)
    return Effect.as(Effect.zipRight(releaseUnit(`volume ${state.label}`, state.unit), recorded), true)
  })

/** A lock that cannot be had must not keep the mounts. */
const letGo = (state: State, user?: string): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.catchAll(lockedIfNamed(state)(end(state, user)), () => end(state, user)),
    (isLast) =>
      isLast && state.source !== undefined ? letGo(state.source, copyOf(state.label)) : Effect.void
  )

const copyOf = (label: string): string => `its copy ${label}`

/** Opens a volume as a copy, unless its source is written to; the caller has the lock of a named source. */
const openCopy = (
  source: State,
  label: string,
  make: Effect.Effect<State, BerthError>
): Effect.Effect<State, BerthError> =>
  Effect.zipRight(
    begin(source, copyOf(label), "copies"),
    Effect.tapErrorCause(make, () => end(source, copyOf(label)))
  )

const makeUnnamed = (berth: Berth, wanted: Wanted): Effect.Effect<State, BerthError> => {
  const id = berth.supervisor.nextId()
  const { source } = wanted
  const made = start(berth, wanted, id, `${id}`, true)
  return source === undefined ? made : lockedIfNamed(source)(openCopy(source, `${id}`, made))
}

const mismatch = (name: string, detail: string): VolumeError =>
  new VolumeError({ reason: "Mismatch", volume: name, detail })

/** Fails if the volume of this name is not the one that is wanted. */
const checkSame = (
  name: string,
  wanted: Wanted,
  there: named.Properties
): Effect.Effect<void, VolumeError> => {
  const { size, source } = wanted
  if (size !== undefined && size !== there.size)
    return mismatch(
      name,
      `exists ${there.size === undefined ? "without a size" : `with a size of ${there.size} bytes`}, and not of ${size} bytes: leave the size out, or remove the volume`
    )
  if (source !== undefined && source.name !== there.from)
    return mismatch(
      name,
      `exists ${there.from === undefined ? "and is no copy" : `as a copy of ${there.from}`}, and not a copy of ${source.name}: leave the source out, or remove the volume`
    )
  return Effect.void
}

/** Opens the volume of a name, which is made if it is missing. The caller has the lock of all named volumes. */
const openNamed = (berth: Berth, name: string, wanted: Wanted): Effect.Effect<State, BerthError> =>
  Effect.gen(function* () {
    const known = openedBy(berth).get(name)
    if (known !== undefined) {
      yield* checkSame(name, wanted, known.properties)
      known.holders++
      return known
    }
    const there = yield* attempt(() => named.propertiesOf(berth, name))
    if (there !== undefined) yield* checkSame(name, wanted, there)
    const properties = there ?? { size: wanted.size, from: wanted.source?.name }
    if (properties.size !== undefined) yield* attempt(() => checkMachine(berth.rootless))
    const make = (source: State | undefined) =>
      openStored(berth, name, { ...wanted, size: properties.size, source }, properties, there === undefined)
    const state =
      properties.from === undefined
        ? yield* make(undefined)
        : yield* openStoredCopy(berth, name, properties.from, make)
    openedBy(berth).set(name, state)
    yield* Effect.tapErrorCause(named.record(berth, name, state.uses), () => end(state))
    return state
  })

const openStoredCopy = (
  berth: Berth,
  name: string,
  from: string,
  make: (source: State) => Effect.Effect<State, BerthError>
): Effect.Effect<State, BerthError> =>
  Effect.gen(function* () {
    // Two overlays must not write to the same folders (overlayfs.rst, sharing and copying layers).
    const users = named.openElsewhere(berth, name)
    if (users.length > 0)
      return yield* new VolumeError({
        reason: "InUse",
        volume: name,
        detail: `${users.join(" and ")}: a copy can be open in one program at a time`
      })
    if ((yield* attempt(() => named.propertiesOf(berth, from))) === undefined)
      return yield* new VolumeError({
        reason: "Broken",
        volume: name,
        detail: `is a copy of volume ${from}, which is missing: remove the copy`
      })
    const source = yield* openNamed(berth, from, existing)
    return yield* Effect.ensuring(openCopy(source, name, make(source)), end(source))
  })

/** Any volume that exists. */
const existing: Wanted = {
  name: undefined,
  size: undefined,
  storage: "disk",
  mode: 0o1777,
  owner: undefined,
  source: undefined
}

const openStored = (
  berth: Berth,
  name: string,
  wanted: Wanted,
  properties: named.Properties,
  isNew: boolean
): Effect.Effect<State, BerthError> => {
  const opening = start(berth, { ...wanted, name }, berth.supervisor.nextId(), name, isNew)
  return isNew
    ? Effect.zipRight(
        named.create(berth, name, properties, wanted.mode),
        Effect.tapErrorCause(opening, () => Effect.ignore(named.discard(berth, name)))
      )
    : opening
}

export const make = (state: State): Volume => {
  const { name, properties, storage } = state
  return Object.assign(Object.create(Proto), { name, size: properties.size, storage, state })
}

/** Makes or opens a volume, which the scope holds. */
export const open = (berth: Berth, options: Options): Effect.Effect<Volume, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const wanted = yield* attempt(() => wantedBy(options, berth))
    const { name } = wanted
    const state = yield* Effect.acquireRelease(
      name === undefined ? makeUnnamed(berth, wanted) : named.locked(berth)(openNamed(berth, name, wanted)),
      (made) => letGo(made)
    )
    return make(state)
  })

/** Holds a volume for a container until the scope closes. */
export const use = (
  state: State,
  container: string,
  how: named.Use
): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.acquireRelease(lockedIfNamed(state)(begin(state, `container ${container}`, how)), () =>
    letGo(state, `container ${container}`)
  )
