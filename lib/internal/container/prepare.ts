/** Compiles options to a start, without performing it. All functions are synchronous and throw Berth's errors. */
import { randomUUID } from "node:crypto"
import { hostname as hostsName } from "node:os"
import { InvalidOption } from "../../BerthError.ts"
import type * as Cgroup from "../../Cgroup.ts"
import type { LogFiles, RootOptions, SpawnOptions, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { isNamespace, type Kind } from "../../Namespace.ts"
import type { ProcessOptions } from "../../Process.ts"
import * as Security from "../../Security.ts"
import type { Memory } from "../berth/memory.ts"
import * as cgroupFiles from "../cgroup/cgroup.ts"
import * as Userns from "../ids/allocation.ts"
import * as Ids from "../ids/idMaps.ts"
import * as namespaces from "../ids/namespaceFlags.ts"
import { type Joined, none } from "../network/join.ts"
import { makeStation, type Station } from "../network/network.ts"
import * as AppArmor from "../security/appArmor.ts"
import * as Capabilities from "../security/capabilities.ts"
import { attainable } from "../security/rlimits.ts"
import * as Seccomp from "../security/seccomp.ts"
import { defaultPath } from "../util/defaultPath.ts"
import * as check from "../util/validate.ts"
import type { SizedDisk } from "../volume/image.ts"
import * as volumes from "../volume/inContainer.ts"
import * as compile from "./compile.ts"
import * as etcFiles from "./etcFiles.ts"
import type { Base } from "./handle.ts"
import type { ContainerLaunch } from "./launch.ts"
import * as users from "./passwd.ts"
import * as RootFs from "./rootPlan.ts"
import { stdioNames } from "./stdio.ts"
import type { Targets } from "./targets.ts"

/** 12 hexadecimal digits; the runtime keeps a pool of random bytes for UUIDs. */
export const makeId = (): string => randomUUID().replaceAll("-", "").slice(20)

/** The ids of a user, from the files of an image. */
const userOf = (memory: Memory, image: Image, user: string): users.User => {
  const known = memory.users.get(image) ?? new Map<string, users.User>()
  memory.users.set(image, known)
  const found = known.get(user)
  if (found !== undefined) return found
  const [passwd, group] = ["etc/passwd", "etc/group"].map((path) =>
    users.readMerged(image.reference, image.layers, path)
  )
  const resolved = users.resolve(image.reference, user, passwd!, group!)
  known.set(user, resolved)
  return resolved
}

export const termOf = (options: ProcessOptions): Readonly<Record<string, string>> =>
  options.terminal === undefined || options.terminal === false ? {} : { TERM: "xterm" }

/** The settings that the options alone do not determine. */
type Decided = Pick<
  compile.Settings,
  "arguments" | "environment" | "workingDirectory" | "createWorkingDirectory" | "user" | "init" | "joined"
> & {
  readonly cgroup: Cgroup.Cgroup | undefined
  readonly inUserNamespace: boolean
}

/**
 * The settings of a process. `like` is the container's first process, whose confinement a process beside it gets unless
 * the options say otherwise.
 */
export const settings = (
  memory: Memory,
  options: ProcessOptions,
  decided: Decided,
  like?: compile.Settings
): compile.Settings => {
  const { onSystemCall = like?.onSystemCall, seccomp = like?.seccompProfile } = options
  const { ambient, capabilities } =
    options.capabilities === undefined && like !== undefined
      ? like
      : Capabilities.resolve(options.capabilities ?? {})
  const { rlimits, warnings } =
    options.rlimits === undefined && like !== undefined
      ? { rlimits: like.rlimits, warnings: [] }
      : attainable(Security.resolveRlimits(options.rlimits ?? {}), decided.inUserNamespace)
  const isFilteredAlike =
    seccomp === like?.seccompProfile &&
    onSystemCall === like?.onSystemCall &&
    capabilities === like?.capabilities
  // Without spreads, each of which adds a microsecond to every start.
  return {
    arguments: decided.arguments,
    environment: decided.environment,
    workingDirectory: decided.workingDirectory,
    createWorkingDirectory: decided.createWorkingDirectory,
    user: decided.user,
    umask: check.umask(options.umask),
    capabilities,
    ambient,
    noNewPrivileges: options.noNewPrivileges ?? like?.noNewPrivileges ?? true,
    seccompProfile: seccomp,
    seccomp: isFilteredAlike
      ? like?.seccomp
      : Seccomp.filter(memory.filters, seccomp, capabilities, onSystemCall !== undefined),
    onSystemCall,
    appArmor: options.appArmor === undefined ? like?.appArmor : AppArmor.profile(options.appArmor),
    init: decided.init,
    rlimits,
    warnings,
    stdio: stdioNames(options),
    terminal: check.terminal(options.terminal),
    cgroup: cgroupFiles.joins(decided.cgroup),
    joined: decided.joined
  }
}

const firstProcess = (
  memory: Memory,
  image: Image,
  options: RootOptions,
  rest: Pick<Decided, "cgroup" | "joined" | "inUserNamespace">
): compile.Settings => {
  const { config } = image
  check.process(options)
  check.config(config)
  const command = [...(options.entrypoint ?? config.entrypoint), ...(options.command ?? config.command)]
  if (command.length === 0 || command[0] === "")
    check.invalid(
      "command",
      command,
      "a command: the image has neither an entrypoint nor a command of its own"
    )
  check.strings("command", command)
  const user = userOf(memory, image, options.user ?? config.user)
  return settings(memory, options, {
    ...rest,
    arguments: command,
    environment: {
      PATH: defaultPath,
      HOME: user.home,
      ...termOf(options),
      ...config.environment,
      ...options.env
    },
    workingDirectory: options.cwd ?? (config.workingDirectory || "/"),
    createWorkingDirectory: true,
    user,
    init: options.init ?? false
  })
}

interface Sources {
  readonly created: ReadonlySet<Kind>
  readonly joined: ReadonlyArray<compile.Joined>
  readonly descriptors: Readonly<Record<string, number>>
  /** The kinds that are not the host's. */
  readonly kinds: ReadonlyArray<Kind>
}

const defaults: ReadonlyArray<Kind> = ["mount", "pid", "uts", "ipc", "network", "cgroup"]

/** The origin of each namespace. A holder of several kinds is joined once. */
const sources = (options: StartOptions): Sources => {
  const created = new Set<Kind>(defaults)
  if (check.network(options) === "host") created.delete("network")
  if (options.userns !== undefined) {
    const { user } = options.namespaces ?? {}
    if (user !== undefined && user !== "new") check.invalid("namespaces.user", user, '"new" beside userns')
    created.add("user")
  }
  const joined = new Map<number, Array<Kind>>()
  for (const [name, from] of Object.entries(options.namespaces ?? {})) {
    const kind = name as Kind
    const option = `namespaces.${kind}`
    if (namespaces.flags[kind] === undefined || kind === "mount")
      check.invalid(
        "namespaces",
        name,
        `one of ${Object.keys(namespaces.flags).filter((k) => k !== "mount")}`
      )
    if (typeof from === "string" && from !== "new" && from !== "host")
      check.invalid(option, from, '"new", "host", a container or a Namespace')
    if (from === "new") created.add(kind)
    else if (from !== undefined) created.delete(kind)
    if (typeof from !== "object") continue
    const holder = isNamespace(from) ? from : from.state
    if (!holder.kinds.includes(kind))
      check.invalid(
        option,
        from,
        `a holder with a ${kind} namespace of its own: this one has ${holder.kinds.join(", ")}`
      )
    joined.set(holder.pidfd, [...(joined.get(holder.pidfd) ?? []), kind])
  }
  const names = [...joined].map(([pidfd, kinds], index) => ({
    pidfd,
    kinds,
    descriptor: `namespace${index}`
  }))
  return {
    created,
    joined: names,
    descriptors: Object.fromEntries(names.map((name) => [name.descriptor, name.pidfd])),
    kinds: [...created, ...names.flatMap((name) => name.kinds)]
  }
}

/** The kinds whose files a container mounts. */
const kernelFiles: ReadonlyArray<Kind> = ["pid", "network", "ipc"]

/** The location of a container: the Berth's memory, the supervisor's folder, and the ids of unit and container. */
interface Place {
  readonly memory: Memory
  readonly folder: string
  readonly unit: number
  readonly id: string
}

/** The parts that `start` makes, and `spawn` receives. */
interface Parts extends Pick<Decided, "cgroup" | "joined" | "inUserNamespace"> {
  readonly descriptors: Readonly<Record<string, number>>
  /** The namespaces whose host name and kernel parameters the container may set. */
  readonly own: ReadonlyArray<Kind>
  readonly kinds: ReadonlyArray<Kind>
  /** The ids of its user namespace, if they are its own. */
  readonly mapped: Userns.Mapped | undefined
  readonly base: Base
  readonly disk: SizedDisk | undefined
  readonly ownsCgroup: boolean
  readonly logs: LogFiles | undefined
  /** The names of the container whose network it joins. */
  readonly shared: etcFiles.Names | undefined
  /** Its networks. */
  readonly network: Joined
  readonly station: Station | undefined
  /** Whether it joins a mount namespace that has a root. */
  readonly hasRoot: boolean
  readonly around: Pick<
    compile.Surroundings,
    "created" | "idMap" | "cgroup" | "scratch" | "root" | "content" | "network"
  >
}

/** What its files of names say. Of a uts namespace that it joins, the hostname is not known. */
const namesOf = (
  options: RootOptions,
  { id }: Place,
  { around, kinds, network, shared }: Parts
): etcFiles.Names | undefined => {
  const own = around.created.has("uts") ? id : kinds.includes("uts") ? undefined : hostsName()
  const hostname = options.hostname ?? own
  const given =
    shared === undefined
      ? etcFiles.onNetworks(network, etcFiles.namesOf(hostname, !kinds.includes("network")))
      : etcFiles.sharing(shared, hostname)
  return etcFiles.withOptions(given, options)
}

const surroundings = (
  options: RootOptions,
  at: Place,
  { around, inUserNamespace, kinds, mapped, own }: Parts,
  names: etcFiles.Names | undefined
): compile.Surroundings => {
  const { maskedPaths, readonlyPaths, readOnly = false } = options
  const hostname = check.hostname(options.hostname, own)
  const { mounts, scratch } = volumes.bound(check.mounts(options.mounts ?? []), mapped)
  const targets = mounts.map(({ target }) => target)
  return {
    ...around,
    scratch: [...around.scratch, ...scratch],
    inUserNamespace,
    memory: at.memory,
    folder: at.folder,
    record: `${at.folder}/${at.unit}.first`,
    ofHost: kernelFiles.filter((kind) => !kinds.includes(kind)),
    hostname: around.created.has("uts") ? (hostname ?? at.id) : hostname,
    mounts,
    etcFiles: etcFiles.operations(names, options, targets, readOnly),
    maskedPaths:
      maskedPaths === undefined ? Security.defaultMaskedPaths : check.paths("maskedPaths", maskedPaths),
    readonlyPaths:
      readonlyPaths === undefined
        ? Security.defaultReadonlyPaths
        : check.paths("readonlyPaths", readonlyPaths),
    readOnly,
    hidepid: check.hidepid(options.hidepid, kinds.includes("pid") && !around.created.has("pid")),
    shmBytes: check.bytes("shmSize", options.shmSize ?? 64 * 1024 * 1024),
    sysctls: check.sysctls(options.sysctls ?? {}, own)
  }
}

/** The description of a container's launch. */
const launch = (options: RootOptions, at: Place, parts: Parts): Omit<ContainerLaunch, "berth"> => {
  const { cgroup, inUserNamespace, joined } = parts
  const process = firstProcess(at.memory, parts.base.image, options, { cgroup, inUserNamespace, joined })
  const names = parts.hasRoot ? undefined : namesOf(options, at, parts)
  const around = surroundings(options, at, parts, names)
  return {
    unit: at.unit,
    id: at.id,
    options,
    settings: process,
    operations: parts.hasRoot ? compile.joining(process) : compile.container(process, around),
    descriptors: parts.descriptors,
    created: [...around.created],
    kinds: parts.kinds,
    cgroup,
    ownsCgroup: parts.ownsCgroup,
    logs: parts.logs,
    ids: parts.mapped?.ids,
    base: parts.base,
    disk: parts.disk,
    names,
    station: parts.station
  }
}

const sharedNames = ({ namespaces }: StartOptions): etcFiles.Names | undefined => {
  const from = namespaces?.network
  return typeof from === "object" && !isNamespace(from) ? from.state.names : undefined
}

/** Its own, or that of the pod whose network namespace it joins. */
const stationOf = ({ station }: Joined, id: string, isOwn: boolean): Station | undefined =>
  isOwn ? (station ?? makeStation(id, undefined)) : station?.container === id ? undefined : station

export const start = (
  image: Image,
  options: StartOptions,
  at: Place & {
    readonly rootless: boolean
    readonly ids: Ids.Ids
    readonly userns: Userns.Mapped | undefined
    readonly network: Joined
    readonly targets: Targets | undefined
  }
): Omit<ContainerLaunch, "berth"> => {
  check.start(options)
  const { created, descriptors: named, joined, kinds } = sources(options)
  const descriptors = { ...named, ...at.network.descriptors }
  // In the host's pid namespace, the end of the first process kills no others: a cgroup shows which ones to kill.
  const cgroupName = cgroupFiles.nameOf(at.folder, at.unit)
  const made =
    options.cgroup === undefined && (options.limits !== undefined || !kinds.includes("pid"))
      ? cgroupFiles.operations(at.memory.tree(), options.limits ?? {}, cgroupName)
      : undefined
  const upper = { upper: options.upper, size: options.upperSize }
  const composed = RootFs.compose(image, upper, at.memory, at.folder, at.unit, at.rootless, at.targets)
  const root = at.userns === undefined ? composed : RootFs.withIds(composed, at.userns)
  const ids = at.userns?.ids
  return launch(options, at, {
    inUserNamespace: at.rootless || kinds.includes("user"),
    joined,
    descriptors: at.userns === undefined ? descriptors : { ...descriptors, ...Userns.descriptors(at.userns) },
    own: [...created],
    kinds,
    mapped: at.userns,
    base: {
      image,
      upper: root.upper,
      mountedUpper: root.mountedUpper,
      targets: at.targets?.layer,
      ids: ids ?? at.ids,
      isThere: () => true,
      isOwn: [...created].includes("pid")
    },
    disk: root.disk,
    cgroup: made === undefined ? options.cgroup : cgroupFiles.unsafeMake(cgroupName, made.folders),
    ownsCgroup: made !== undefined,
    logs: options.logs,
    shared: sharedNames(options),
    network: at.network,
    station: stationOf(at.network, at.id, created.has("network")),
    hasRoot: false,
    around: {
      created,
      idMap: created.has("user") ? namespaces.idMap(ids ?? Ids.nested(at.ids)) : undefined,
      cgroup: made?.create ?? [],
      scratch: root.scratch,
      root: root.mount,
      content: root.content,
      network: at.network.operations
    }
  })
}

export const spawn = (
  options: SpawnOptions,
  at: Place & { readonly rootless: boolean; readonly ids: Ids.Ids }
): Omit<ContainerLaunch, "berth"> => {
  const { cgroup, namespaces, rootfs } = options
  const { kinds } = namespaces
  if (namespaces.root !== undefined && namespaces.root !== rootfs) {
    const expected = "the root of the first process in this mount namespace"
    throw new InvalidOption({ option: "rootfs", value: rootfs.image.reference, expected })
  }
  if (!Userns.areFor(rootfs.mapped, namespaces.mapped)) {
    const expected = "a root that is made for the ids of these namespaces: RootFs.overlay with userns"
    throw new InvalidOption({ option: "rootfs", value: rootfs.image.reference, expected })
  }
  const created = new Set<Kind>(kinds.includes("mount") ? [] : ["mount"])
  const ids = rootfs.mapped?.ids
  return launch(options, at, {
    inUserNamespace: at.rootless || kinds.includes("user"),
    joined: [{ descriptor: "namespace", kinds }],
    descriptors: { namespace: namespaces.pidfd, root: rootfs.mount },
    own: kinds,
    kinds: [...kinds, ...created],
    mapped: rootfs.mapped,
    base: {
      image: rootfs.image,
      upper: rootfs.upper,
      mountedUpper: undefined,
      targets: rootfs.targets,
      ids: ids ?? at.ids,
      isThere: () => rootfs.mount >= 0,
      isOwn: false
    },
    disk: undefined,
    cgroup,
    ownsCgroup: false,
    logs: undefined,
    shared: undefined,
    network: none,
    station: undefined,
    hasRoot: namespaces.root === rootfs,
    around: {
      created,
      idMap: undefined,
      cgroup: [],
      scratch: [],
      root: { op: "root-mount", mount: "root" },
      content: rootfs.content,
      network: []
    }
  })
}
