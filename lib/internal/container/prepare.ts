/** From options to what a start needs, compiled but not done. All of it is synchronous and throws Berth's errors. */
import { randomUUID } from "node:crypto"
import * as Cgroup from "../../Cgroup.ts"
import type { ProcessOptions, RootOptions, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import { isNamespace, type Kind } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import * as Security from "../../Security.ts"
import type { Memory } from "../berth/memory.ts"
import * as cgroupFiles from "../cgroup/cgroup.ts"
import * as Userns from "../ids/allocation.ts"
import * as Ids from "../ids/idMaps.ts"
import * as namespaces from "../ids/namespaceFlags.ts"
import * as AppArmor from "../security/appArmor.ts"
import * as Capabilities from "../security/capabilities.ts"
import { attainable } from "../security/rlimits.ts"
import * as Seccomp from "../security/seccomp.ts"
import { defaultPath } from "../util/defaultPath.ts"
import * as check from "../util/validate.ts"
import * as compile from "./compile.ts"
import type { Launch } from "./launch.ts"
import * as users from "./passwd.ts"
import * as RootFs from "./rootPlan.ts"
import { stdioNames } from "./stdio.ts"

/** 12 hexadecimal digits; the random ones of a UUID come from a pool that the runtime keeps filled. */
export const makeId = (): string => randomUUID().replaceAll("-", "").slice(20)

/** What the files of an image say of a user. */
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

/** The part of the settings that the options alone decide. */
export const common = (options: ProcessOptions, inUserNamespace: boolean) => ({
  ...Capabilities.resolve(options.capabilities ?? {}),
  ...attainable(Security.resolveRlimits(options.rlimits ?? {}), inUserNamespace),
  umask: check.umask(options.umask),
  appArmor: AppArmor.profile(options.appArmor),
  terminal: check.terminal(options.terminal)
})

export const settings = (
  memory: Memory,
  image: Image,
  options: RootOptions,
  cgroup: ReadonlyArray<Plan.Operation>,
  joined: ReadonlyArray<compile.Joined>,
  inUserNamespace: boolean
): compile.Process => {
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
  const shared = common(options, inUserNamespace)
  return {
    ...shared,
    seccompProfile: options.seccomp,
    seccomp: Seccomp.filter(
      memory.filters,
      options.seccomp,
      shared.capabilities,
      options.onSystemCall !== undefined
    ),
    onSystemCall: options.onSystemCall,
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
    noNewPrivileges: options.noNewPrivileges ?? true,
    init: options.init ?? false,
    stdio: stdioNames(options),
    cgroup,
    joined
  }
}

interface Sources {
  readonly created: ReadonlySet<Kind>
  readonly joined: ReadonlyArray<compile.Joined>
  readonly descriptors: Readonly<Record<string, number>>
  /** All that are not the host's. */
  readonly kinds: ReadonlyArray<Kind>
}

const defaults: ReadonlyArray<Kind> = ["mount", "pid", "uts", "ipc", "network", "cgroup"]

/** Where each namespace comes from. What is shared by several kinds is joined once. */
const sources = (options: StartOptions): Sources => {
  const created = new Set<Kind>(defaults)
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
        `one that has a ${kind} namespace of its own: it has ${holder.kinds.join(", ")}`
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

/** Those whose files a container has mounted. */
const kernelFiles: ReadonlyArray<Kind> = ["pid", "network", "ipc"]

export const surroundings = (
  options: RootOptions,
  at: {
    readonly memory: Memory
    readonly folder: string
    readonly unit: number
    readonly id: string
  },
  own: ReadonlyArray<Kind>,
  rest: Pick<
    compile.Surroundings,
    "created" | "inUserNamespace" | "idMap" | "cgroup" | "scratch" | "root" | "content"
  >,
  kinds: ReadonlyArray<Kind> = own
): compile.Surroundings => {
  const { maskedPaths, readonlyPaths } = options
  const hostname = check.hostname(options.hostname, own)
  return {
    ...rest,
    memory: at.memory,
    folder: at.folder,
    record: `${at.folder}/${at.unit}.first`,
    ofHost: kernelFiles.filter((kind) => !kinds.includes(kind)),
    hostname: rest.created.has("uts") ? (hostname ?? at.id) : hostname,
    mounts: check.mounts(options.mounts ?? []),
    maskedPaths:
      maskedPaths === undefined ? Security.defaultMaskedPaths : check.paths("maskedPaths", maskedPaths),
    readonlyPaths:
      readonlyPaths === undefined
        ? Security.defaultReadonlyPaths
        : check.paths("readonlyPaths", readonlyPaths),
    readOnly: options.readOnly ?? false,
    hidepid: check.hidepid(options.hidepid, kinds.includes("pid") && !rest.created.has("pid")),
    shmBytes: check.bytes("shmSize", options.shmSize ?? 64 * 1024 * 1024),
    sysctls: check.sysctls(options.sysctls ?? {}, own)
  }
}

export const start = (
  image: Image,
  options: StartOptions,
  at: {
    readonly memory: Memory
    readonly folder: string
    readonly unit: number
    readonly id: string
    readonly rootless: boolean
    readonly ids: Ids.Ids
    readonly userns: Userns.Mapped | undefined
  }
): Omit<Launch, "berth"> => {
  const from = sources(options)
  // In the host's pid namespace nothing ends with the first process: a cgroup says what belongs to the container.
  const made =
    options.cgroup === undefined && (options.limits !== undefined || !from.kinds.includes("pid"))
      ? Cgroup.operations(at.memory.tree(), options.limits ?? {}, cgroupFiles.nameOf(at.folder, at.unit))
      : undefined
  const cgroup = options.cgroup ?? made?.cgroup
  const inUserNamespace = at.rootless || from.kinds.includes("user")
  const joins = cgroup === undefined ? [] : Cgroup.joins(cgroup)
  const process = settings(at.memory, image, options, joins, from.joined, inUserNamespace)
  const upper = { upper: options.upper, size: options.upperSize }
  const composed = RootFs.compose(image, upper, at.memory, at.folder, at.unit, at.rootless)
  const root = at.userns === undefined ? composed : RootFs.withIds(composed, at.userns)
  const around = surroundings(
    options,
    at,
    [...from.created],
    {
      created: from.created,
      inUserNamespace,
      idMap: from.created.has("user") ? namespaces.idMap(at.userns?.ids ?? Ids.nested(at.ids)) : undefined,
      cgroup: made?.create ?? [],
      scratch: root.scratch,
      root: root.mount,
      content: root.content
    },
    from.kinds
  )
  return {
    unit: at.unit,
    id: at.id,
    options,
    settings: process,
    operations: compile.container(process, around),
    descriptors:
      at.userns === undefined ? from.descriptors : { ...from.descriptors, ...Userns.descriptors(at.userns) },
    created: [...from.created],
    kinds: from.kinds,
    cgroup,
    ownsCgroup: made !== undefined,
    inside: undefined,
    stopSignal: image.config.stopSignal,
    healthcheck: image.config.healthcheck,
    logs: options.logs,
    ids: at.userns?.ids,
    base: { image, upper: root.upper, ids: at.userns?.ids ?? at.ids, isThere: () => true }
  }
}
