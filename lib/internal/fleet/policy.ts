/** What a runner lets its clients do: whatever could reach past a container is refused unless its configuration allows it. */
import * as path from "node:path"
import * as process from "node:process"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Limits } from "../../Cgroup.ts"
import type { ExecOptions, StartOptions } from "../../Container.ts"
import { FleetError } from "../../FleetError.ts"
import type { Allow } from "../../fleet.ts"
import * as Image from "../../Image.ts"
import type { Mount } from "../../Mount.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import * as Reference from "../oci/reference.ts"
import { native, O_PATH } from "../system/addon.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as validate from "../util/validate.ts"
import type { PlainStart } from "./options.ts"

/** What a container takes of a runner's room. */
export interface Request {
  readonly memoryBytes: number
  readonly cpus: number
}

export interface Admitted {
  readonly options: StartOptions
  readonly request: Request
}

/** A folder that containers may bind, opened when the runner starts: no container can have another folder take its place. */
interface Bindable {
  readonly path: string
  readonly fd: number
}

/** The configuration of a runner, checked. */
export interface Policy {
  /** The name of the runner. */
  readonly runner: string
  readonly images: ReadonlyArray<Reference.Repository> | undefined
  readonly push: ReadonlyArray<Reference.Repository>
  readonly binds: ReadonlyArray<Bindable>
  readonly limits: {
    readonly memory: number | undefined
    readonly cpus: number | undefined
    readonly pids: number | undefined
    readonly disk: number | undefined
  }
  readonly allow: Allow
}

// The configuration

/** A registry, `registry.example.com/`, or a path in one, `registry.example.com/team/`: without a path, it is empty. Throws. */
const prefixOf =
  (option: string) =>
  (text: string): Reference.Repository => {
    const name = text.replace(/\/$/, "")
    const registry = Reference.parseRegistry(name)
    if (Either.isRight(registry)) return { registry: registry.right, repository: "" }
    const parsed = Reference.parse(`${name}:latest`)
    if (Either.isLeft(parsed))
      return validate.invalid(
        option,
        text,
        "the name of a registry, or one and a path, without a tag: registry.example.com/team/",
        parsed.left
      )
    const { registry: host, repository } = parsed.right
    // The path of several images of Docker Hub, and not one of its official images.
    return {
      registry: host,
      repository: text === `${name}/` ? repository.replace(/^library\//, "") : repository
    }
  }

const bindable = (text: string): Effect.Effect<Bindable, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      const folder = path.resolve(text)
      return Effect.try({
        try: () => ({ path: folder, fd: inRoot.openHost(folder, inRoot.O_FOLDER) }),
        catch: failedAs(`allow.binds ${folder}`)
      })
    }),
    ({ fd }) => Effect.sync(() => native().close(fd))
  )

const positive = (option: string, value: number | undefined): number | undefined =>
  value === undefined || value > 0 ? value : validate.invalid(option, value, "a number above 0")

/** Checks the configuration of a runner; its folders are open until the scope closes. */
export const make = (runner: string, allow: Allow): Effect.Effect<Policy, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { binds = [], images, limits: { cpus, disk, memory, pids } = {}, push = [] } = allow
    const bytes = (option: string, value: number | string | undefined) =>
      value === undefined ? undefined : positive(option, validate.bytes(option, value))
    const checked = yield* attempt(() => ({
      images: images?.map(prefixOf("allow.images")),
      push: push.map(prefixOf("allow.push")),
      limits: {
        memory: bytes("allow.limits.memory", memory),
        cpus: positive("allow.limits.cpus", cpus),
        pids: positive("allow.limits.pids", pids),
        disk: bytes("allow.limits.disk", disk)
      }
    }))
    const opened = yield* Effect.forEach(binds, bindable)
    // The innermost folder comes first.
    const sorted = opened.sort((a, b) => b.path.length - a.path.length)
    return { runner, allow, binds: sorted, ...checked }
  })

// What clients ask for

const refused = ({ runner }: Policy, what: string, how: string): FleetError =>
  new FleetError({
    reason: "Refused",
    subject: `runner ${runner}`,
    detail: `its configuration does not allow ${what}: leave it out, or have the runner started with ${how}`
  })

const isBelow =
  ({ registry, repository }: Reference.Repository) =>
  (image: Reference.Repository): boolean =>
    image.registry === registry &&
    (repository === "" || image.repository === repository || image.repository.startsWith(`${repository}/`))

/** Checks that clients may send an image to this name, with the credentials of the runner. */
export const admitPush = (policy: Policy, name: string): Effect.Effect<void, BerthError> =>
  Effect.flatMap(Reference.parse(name), (target) =>
    policy.push.some((prefix) => isBelow(prefix)(target))
      ? Effect.void
      : refused(policy, `to send images to ${name}`, "`push` that has a prefix of it")
  )

/** Checks that clients may use the image of this name. */
export const admitImage = (policy: Policy, name: string): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const { allow, images } = policy
    if (name === "host") {
      if (allow.hostImage === true) return
      return yield* refused(policy, "the image host, which is its own files", "`hostImage`")
    }
    if (images === undefined) return
    const isAllowed = (image: Reference.Repository) => images.some((prefix) => isBelow(prefix)(image))
    const wanted = yield* Reference.parse(name)
    const no = refused(policy, `the image ${name}`, "`images` that has a prefix of it")
    if (!isAllowed(wanted)) return yield* no
    // The store gives an image by its digest, whatever its name: it may have come from another registry.
    if (wanted.digest === undefined) return
    const named = (yield* Image.list).filter(({ digest }) => digest === wanted.digest)
    const allowed = named.some(({ name: other }) =>
      Either.match(Reference.parse(other), { onLeft: () => false, onRight: isAllowed })
    )
    if (named.length > 0 && !allowed) return yield* no
  })

/** Limits of setrlimit(2) with which a process takes from the machine rather than from its container. */
const machineWide = ["memlock", "sigpending", "msgqueue", "nice", "rtprio", "rttime"]

/** The usual weight of a cgroup, for processors and disks. */
const WEIGHT = 100

type Rights = Pick<ExecOptions, "capabilities" | "seccomp" | "noNewPrivileges" | "appArmor" | "rlimits">

/** The first right of a process that it does not have by default. */
const right = ({ appArmor, capabilities, noNewPrivileges, rlimits, seccomp }: Rights): string | undefined => {
  if (capabilities?.add !== undefined) return "capabilities.add"
  if (capabilities?.ambient !== undefined) return "capabilities.ambient"
  if (seccomp !== undefined && seccomp !== "default") return "another seccomp profile than the default one"
  if (noNewPrivileges === false) return "noNewPrivileges: false"
  if (appArmor !== undefined) return "an AppArmor profile"
  const limit = Object.keys(rlimits ?? {}).find((name) => machineWide.includes(name))
  return limit === undefined ? undefined : `rlimits.${limit}`
}

/** The first part of a container's options that needs a permission which is not given. */
const privilege = (options: PlainStart, { cpu, devices, io, memory }: Limits): string | undefined => {
  if (options.maskedPaths !== undefined) return "maskedPaths"
  if (options.readonlyPaths !== undefined) return "readonlyPaths"
  if (options.sysctls !== undefined) return "sysctls"
  if (options.userns !== undefined && options.userns !== "auto") return "user namespaces with maps of its own"
  if (devices !== undefined) return "limits.devices"
  if ((cpu?.weight ?? 0) > WEIGHT) return `a limits.cpu.weight above ${WEIGHT}`
  if ([io, ...(io?.devices ?? [])].some((one) => (one?.weight ?? 0) > WEIGHT))
    return `a weight above ${WEIGHT} in limits.io`
  if (typeof memory === "object" && memory.low !== undefined) return "limits.memory.low"
  return right(options as Rights)
}

const hostNamespace = ({ namespaces, network }: PlainStart): string | undefined => {
  if (network === "host") return "the host's network"
  const [kind] = Object.entries(namespaces ?? {}).find(([, origin]) => origin === "host") ?? []
  return kind === undefined ? undefined : `the host's ${kind} namespace`
}

/** Checks the options of a process beside a container's own. */
export const admitExec = <Options extends Rights>(
  policy: Policy,
  options: Options
): Effect.Effect<Options, FleetError> => {
  const more = policy.allow.privileges === true ? undefined : right(options)
  return more === undefined ? Effect.succeed(options) : refused(policy, more, "`privileges`")
}

const bytesOf = (option: string, value: number | string | undefined) =>
  attempt(() => (value === undefined || value === "max" ? value : validate.bytes(option, value)))

const numberOf = (option: string, value: unknown) =>
  attempt(() =>
    value === undefined || value === "max" || (typeof value === "number" && value > 0)
      ? value
      : validate.invalid(option, value, 'a number above 0, or "max"')
  )

/** A limit of a container, below the runner's largest; without one, the runner's largest. */
const below = (
  policy: Policy,
  option: string,
  wanted: number | "max" | undefined,
  most: number | undefined
): Effect.Effect<number | undefined, FleetError> => {
  if (wanted === undefined) return Effect.succeed(most)
  if (most === undefined) return Effect.succeed(wanted === "max" ? undefined : wanted)
  return wanted !== "max" && wanted <= most
    ? Effect.succeed(wanted)
    : refused(policy, `${option} of ${wanted}, as ${most} is its largest`, "a larger one")
}

/**
 * A folder or file below one that is allowed, as a path that nobody can lead elsewhere any more: that of a descriptor, in whose resolution
 * the allowed folder was the root.
 */
const boundPath = (policy: Policy, source: string): Effect.Effect<string, BerthError, Scope.Scope> => {
  const inside = (folder: string) =>
    source === folder || source.startsWith(folder === "/" ? "/" : `${folder}/`)
  const folder = policy.binds.find(({ path }) => inside(path))
  if (folder === undefined || source.split("/").includes(".."))
    return refused(policy, `the bind of ${JSON.stringify(source)}`, "`binds` that has its folder")
  const open = Effect.try({
    try: () => inRoot.open(folder.fd, source.slice(folder.path.length) || "/", O_PATH),
    catch: failedAs(`bind ${source}`)
  })
  return Effect.map(
    Effect.acquireRelease(open, (fd) => Effect.sync(() => native().close(fd))),
    (fd) => `/proc/${process.pid}/fd/${fd}`
  )
}

/** Checks the options of a start against the configuration of the runner. What is not allowed fails, before anything is done. */
export const admit = (
  policy: Policy,
  { mounts = [], ...options }: PlainStart
): Effect.Effect<Admitted, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { allow, limits: most } = policy
    const limits: Limits = options.limits ?? {}
    const host = hostNamespace(options)
    if (host !== undefined && allow.hostNamespaces !== true)
      return yield* refused(policy, host, "`hostNamespaces`")
    const privileged = privilege(options, limits)
    if (privileged !== undefined && allow.privileges !== true)
      return yield* refused(policy, privileged, "`privileges`")
    const given = typeof limits.memory === "object" ? limits.memory : { max: limits.memory }
    if (most.memory !== undefined && given.swap !== undefined)
      return yield* refused(policy, "limits.memory.swap", "no largest memory")
    const max = yield* bytesOf("limits.memory", given.max)
    const memory = yield* below(policy, "limits.memory", max, most.memory)
    const cpus = yield* below(policy, "limits.cpus", yield* numberOf("limits.cpus", limits.cpus), most.cpus)
    const pids = yield* below(policy, "limits.pids", yield* numberOf("limits.pids", limits.pids), most.pids)
    const size = yield* bytesOf("upperSize", options.upperSize)
    const disk = yield* below(policy, "upperSize", size, most.disk)
    const bound: Array<Mount> = []
    for (const mount of mounts)
      bound.push(mount.type === "bind" ? { ...mount, source: yield* boundPath(policy, mount.source) } : mount)
    return {
      options: {
        ...options,
        mounts: bound,
        upperSize: disk,
        limits: {
          ...limits,
          memory: memory === undefined ? limits.memory : { ...given, max: memory },
          cpus: cpus ?? limits.cpus,
          pids: pids ?? limits.pids
        }
      } as StartOptions,
      request: { memoryBytes: memory ?? 0, cpus: cpus ?? 0 }
    }
  })
