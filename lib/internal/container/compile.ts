/**
 * The policy: compiles a container's description to the operations that make it, in a safe order. It is pure; all data
 * of the machine is read before.
 */

import type { File } from "../../Mount.ts"
import type { Kind } from "../../Namespace.ts"
import type * as Plan from "../../Plan.ts"
import { constant } from "../../Plan.ts"
import type { ProcessOptions } from "../../Process.ts"
import { defaultReadonlyPaths, type Limit } from "../../Security.ts"
import type { Memory } from "../berth/memory.ts"
import { emptyFolder, flags } from "../ids/namespaceFlags.ts"
import type { Filter } from "../security/seccomp.ts"
import { defaultPath } from "../util/defaultPath.ts"
import {
  MOUNT_ATTR_NODEV,
  MOUNT_ATTR_NOEXEC,
  MOUNT_ATTR_NOSUID,
  MOUNT_ATTR_RDONLY
} from "../util/mountAttributes.ts"
import type { Bound } from "../volume/inContainer.ts"
import { folder as etcFolder, ofMounts as filesOfMounts } from "./etcFiles.ts"
import type { User } from "./passwd.ts"

type Operation = Plan.Operation

const NO_SUID_DEV = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
const NO_SUID_DEV_EXEC = NO_SUID_DEV | MOUNT_ATTR_NOEXEC

/** An existing namespace: the descriptor by which it is joined. */
export interface Joined {
  readonly descriptor: string
  readonly kinds: ReadonlyArray<Kind>
}

/** The settings of a process that a container's start and an exec have in common. */
export interface Settings {
  readonly arguments: ReadonlyArray<string>
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory: string
  readonly createWorkingDirectory: boolean
  readonly user: User
  readonly umask: number
  readonly capabilities: bigint
  readonly ambient: bigint
  readonly noNewPrivileges: boolean
  /** The option itself, for processes that are executed beside this one. */
  readonly seccompProfile: ProcessOptions["seccomp"]
  readonly seccomp: Filter | undefined
  readonly onSystemCall: ProcessOptions["onSystemCall"]
  /** The AppArmor profile, undefined without one. */
  readonly appArmor: string | undefined
  /** Whether an init is the first process, and the command its child. */
  readonly init: boolean
  readonly rlimits: ReadonlyArray<Limit>
  /** Warnings about options that this machine cannot fulfil. */
  readonly warnings: ReadonlyArray<string>
  readonly stdio: {
    readonly stdin: string | null
    readonly stdout: string | null
    readonly stderr: string | null
  }
  readonly terminal: { readonly rows: number; readonly columns: number } | undefined
  /** Joins the cgroup, which is new or existed before. */
  readonly cgroup: ReadonlyArray<Operation>
  readonly joined: ReadonlyArray<Joined>
}

/** The surroundings of a container's first process: new namespaces and a root. */
export interface Surroundings {
  /** Its interfaces on networks. */
  readonly network: ReadonlyArray<Operation>
  readonly memory: Memory
  readonly created: ReadonlySet<Kind>
  /** The supervisor's folder, which has the device nodes. */
  readonly folder: string
  /** Whether ids are those of a user namespace, which may lack some ids. */
  readonly inUserNamespace: boolean
  /** A folder for the record by which a sweep finds a first process that could hide from it. */
  readonly record: string
  /** The pid, network and ipc namespaces that are the host's: containers mount their files. */
  readonly ofHost: ReadonlyArray<Kind>
  readonly idMap: Operation | undefined
  readonly cgroup: ReadonlyArray<Operation>
  readonly scratch: ReadonlyArray<Operation>
  readonly root: Operation
  /** Operations on the root before all other mounts. */
  readonly content: ReadonlyArray<Operation>
  /** The files of names that it is given, unless one of its own mounts is in their place. */
  readonly etcFiles: ReadonlyArray<Operation>
  readonly hostname: string | undefined
  readonly mounts: Bound["mounts"]
  readonly maskedPaths: ReadonlyArray<string>
  readonly readonlyPaths: ReadonlyArray<string>
  readonly readOnly: boolean
  readonly hidepid: string | undefined
  readonly shmBytes: number
  readonly sysctls: Readonly<Record<string, string>>
}

/** The search path of a command without a slash, as in execvp(3). */
export const searchPath = (
  command: string,
  environment: Readonly<Record<string, string>>
): ReadonlyArray<string> =>
  command.includes("/")
    ? [command]
    : (environment.PATH ?? defaultPath)
        .split(":")
        .map((folder) => `${folder === "" ? "." : folder}/${command}`)

const devices = ["null", "zero", "full", "random", "urandom", "tty"]

const links: ReadonlyArray<readonly [path: string, target: string]> = [
  ["/dev/ptmx", "pts/ptmx"],
  ["/dev/fd", "/proc/self/fd"],
  ["/dev/stdin", "/proc/self/fd/0"],
  ["/dev/stdout", "/proc/self/fd/1"],
  ["/dev/stderr", "/proc/self/fd/2"]
]

// The supervisor's own device nodes on a read-only mount, in a /dev that is mounted `nodev`: a container with CAP_MKNOD
// cannot make a working node, nor change the mode of a node that others use.
const bindDevices = (folder: string): ReadonlyArray<Operation> =>
  devices.map((name) => ({
    op: "bind",
    source: `${folder}/dev/${name}`,
    target: `/dev/${name}`,
    attributes: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
    recursive: 0,
    pinned: 0
  }))

// By this mount, a sweep finds the owner of a process. The supervisor's own device nodes, if any, show it too.
const tag = (folder: string): string => `source=berth.${folder.slice(folder.lastIndexOf("/") + 1)}`

const mqueue: Operation = {
  op: "mount",
  type: "mqueue",
  target: "/dev/mqueue",
  options: [],
  attributes: NO_SUID_DEV_EXEC,
  pinned: 0
}

// runtime-spec, config-linux.md, default filesystems; options as Docker has them. /proc, /dev and /sys are pinned: no
// link leads to them, and masks, read-only paths and mounts below them are effective whatever another container of the
// same root renames at the same time.
const standardMounts = (around: Standard): ReadonlyArray<Operation> => [
  kernelFiles(around, "proc", "pid", around.hidepid === undefined ? [] : [`hidepid=${around.hidepid}`], 0),
  {
    op: "mount",
    type: "tmpfs",
    target: "/dev",
    options: ["mode=0755", "size=65536k", ...(around.inUserNamespace ? [tag(around.folder)] : [])],
    attributes: NO_SUID_DEV_EXEC,
    pinned: 1
  },
  ...bindDevices(around.folder),
  ...links.map(([path, target]): Operation => ({ op: "symlink", target, path })),
  {
    op: "mount",
    type: "devpts",
    target: "/dev/pts",
    // If the user namespace has no id for the group tty (5), the terminals belong to the process's own group.
    options: ["newinstance", "ptmxmode=0666", "mode=0620", ...(around.inUserNamespace ? [] : ["gid=5"])],
    attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
    pinned: 0
  },
  {
    op: "mount",
    type: "tmpfs",
    target: etcFolder,
    options: ["mode=1777", `size=${around.shmBytes}`],
    attributes: NO_SUID_DEV_EXEC,
    pinned: 0
  },
  // A user namespace may not mount file systems of the host's ipc namespace.
  ...(around.inUserNamespace && around.ofHost.includes("ipc") ? [] : [mqueue]),
  kernelFiles(around, "sys", "network", [], MOUNT_ATTR_RDONLY)
]

type Standard = Pick<Surroundings, "folder" | "inUserNamespace" | "ofHost" | "shmBytes" | "hidepid">

// A user namespace may mount the file system of a pid or network namespace that it owns. For one of the host, only the
// host's own mount is available, with everything mounted on it.
const kernelFiles = (
  around: Standard,
  name: string,
  kind: Kind,
  options: ReadonlyArray<string>,
  more: number
): Operation => {
  const [target, attributes] = [`/${name}`, NO_SUID_DEV_EXEC | more]
  return around.inUserNamespace && around.ofHost.includes(kind)
    ? { op: "bind", source: target, target, attributes, recursive: 1, pinned: 1 }
    : { op: "mount", type: name === "sys" ? "sysfs" : name, target, options, attributes, pinned: 1 }
}

/** The mounts that nearly all containers of a supervisor have in common are made and encoded once. */
export interface SharedMounts {
  readonly of: Standard
  readonly operations: ReadonlyArray<Operation>
}

const sharedMounts = ({
  folder,
  hidepid,
  inUserNamespace,
  memory,
  ofHost,
  shmBytes
}: Surroundings): ReadonlyArray<Operation> => {
  const of = memory.mounts?.of
  if (
    of?.folder !== folder ||
    of.inUserNamespace !== inUserNamespace ||
    of.ofHost.length !== ofHost.length ||
    of.ofHost.some((kind) => !ofHost.includes(kind)) ||
    of.shmBytes !== shmBytes ||
    of.hidepid !== hidepid
  ) {
    const made = { folder, inUserNamespace, ofHost, shmBytes, hidepid }
    memory.mounts = { of: made, operations: standardMounts(made).map(constant) }
  }
  return memory.mounts!.operations
}

const rootUser = constant({ op: "root-user" })
const session = constant({ op: "session" })
const fork = constant({ op: "fork" })
const controllingTerminal = constant({ op: "controlling-terminal" })
const keyring = constant({ op: "keyring" })
const loopback = constant({ op: "loopback" })
const root = constant({ op: "attach-root" })
const pivot = constant({ op: "pivot" })
const readonlyRoot = constant({ op: "root-readonly" })
const noNewPrivileges = constant({ op: "no-new-privileges" })
const extraMount = (mount: Exclude<Bound["mounts"][number], File>): Operation => {
  const { target } = mount
  switch (mount.type) {
    case "placed":
      return { op: "place", target }
    case "bind":
      return {
        op: "bind",
        source: mount.source,
        target,
        attributes: NO_SUID_DEV | (mount.readOnly === true ? MOUNT_ATTR_RDONLY : 0),
        recursive: mount.recursive === false ? 0 : 1,
        pinned: 0
      }
    case "tmpfs":
      return {
        op: "mount",
        type: "tmpfs",
        target,
        options: [
          `mode=${(mount.mode ?? 0o1777).toString(8).padStart(4, "0")}`,
          ...(mount.size === undefined ? [] : [`size=${mount.size}`])
        ],
        attributes: NO_SUID_DEV_EXEC,
        pinned: 0
      }
  }
}

// Every kernel has these (proc_root_init() in fs/proc/root.c), so a missing one is an error.
const alwaysThere = new Set(["/proc/bus", "/proc/fs", "/proc/sys"])

type Cover = (paths: ReadonlyArray<string>, required: 0 | 1) => Operation

// The paths that must exist, and those that this kernel or image may lack.
const covering = (paths: ReadonlyArray<string>, cover: Cover): ReadonlyArray<Operation> =>
  ([1, 0] as const).flatMap((required) => {
    const these = paths.filter((path) => alwaysThere.has(path) === (required === 1))
    return these.length === 0 ? [] : [cover(these, required)]
  })

const readonly: Cover = (paths, required) => ({ op: "readonly", paths, required })
const defaultReadonly = covering(defaultReadonlyPaths, readonly).map(constant)

// If the caller mounts over /proc, no path of it is required.
const protect = (around: Surroundings): ReadonlyArray<Operation> => {
  const ownProc = around.mounts.some(({ target }) => target === "/proc")
  const of = (paths: ReadonlyArray<string>, cover: Cover): ReadonlyArray<Operation> =>
    !ownProc ? covering(paths, cover) : paths.length === 0 ? [] : [cover(paths, 0)]
  const mask: Cover = (paths, required) => ({
    op: "mask",
    null: `${around.folder}/dev/null`,
    paths,
    required
  })
  return [
    ...of(around.maskedPaths, mask),
    ...(around.readonlyPaths === defaultReadonlyPaths && !ownProc
      ? defaultReadonly
      : of(around.readonlyPaths, readonly))
  ]
}

const makeRoot = (around: Surroundings): ReadonlyArray<Operation> => {
  const mounts = sharedMounts(around)
  const covering = mounts.findIndex((operation) => operation.op === "mount" && operation.target === etcFolder)
  return [
    root,
    ...around.content,
    ...mounts.slice(0, covering),
    ...around.etcFiles,
    ...filesOfMounts(around.mounts.filter((mount) => mount.type === "file")),
    ...mounts.slice(covering),
    ...around.mounts.flatMap((mount) => (mount.type === "file" ? [] : extraMount(mount))),
    ...protect(around),
    pivot,
    ...(around.readOnly ? [readonlyRoot] : [])
  ]
}

/** Whether the process joins the pid namespace of others, which see it then: it enters last, by a fork. */
const isSeen = (process: Settings): boolean => process.joined.some(({ kinds }) => kinds.includes("pid"))

const RLIMIT_NPROC = 6

/** A limit that could be too low for the fork: the process may be allowed no second process of its user. */
const isAfterFork = (process: Settings, { resource, soft }: Limit): boolean =>
  isSeen(process) && resource === RLIMIT_NPROC && soft >= 0n && soft < 1024n

const limit = ({ hard, resource, soft }: Limit): Operation => ({ op: "rlimit", resource, soft, hard })

const joinsUser = (process: Settings): boolean => process.joined.some(({ kinds }) => kinds.includes("user"))

/** For a joined pid namespace, /proc is copied from the container or the holder through which it is joined. */
const takeProc = (process: Settings, { folder }: Surroundings): ReadonlyArray<Operation> =>
  process.joined
    .filter(({ kinds }) => kinds.includes("pid"))
    .map(({ descriptor }) => ({
      op: "take-proc",
      process: descriptor,
      paths: ["/proc", "/", emptyFolder(folder)]
    }))

const join = ({ joined }: Settings): ReadonlyArray<Operation> =>
  joined.map(({ descriptor, kinds }) => ({
    op: "join",
    process: descriptor,
    namespaces: kinds.reduce((all, kind) => all | flags[kind], 0)
  }))

/**
 * The clone and its namespaces. The pid namespace of other processes is joined before a new user namespace is made,
 * because that has no right to join.
 */
const clone = (process: Settings, namespaces: number, around: Surroundings): ReadonlyArray<Operation> =>
  isSeen(process) && around.idMap !== undefined
    ? [
        { op: "process", namespaces: 0 },
        ...takeProc(process, around),
        ...join(process),
        { op: "unshare", namespaces }
      ]
    : [{ op: "process", namespaces }, ...takeProc(process, around)]

/** The child's operations before its root: its namespaces and standard streams. */
const enter = (process: Settings, newMounts: boolean, newUser: boolean): ReadonlyArray<Operation> => [
  ...(process.appArmor === undefined ? [] : [{ op: "apparmor", profile: process.appArmor } as const]),
  ...(newUser && isSeen(process) ? [] : join(process)),
  ...(newMounts ? [{ op: "unshare", namespaces: flags.mount } as const] : []),
  ...(joinsUser(process) ? [rootUser] : []),
  ...(isSeen(process) ? [] : [session]),
  keyring,
  { op: "stdio", ...process.stdio },
  ...process.rlimits.filter((one) => !isAfterFork(process, one)).map(limit)
]

const filterOf = ({ seccomp }: Settings): ReadonlyArray<Operation> =>
  seccomp === undefined ? [] : [seccomp.operation]

const control = ({ terminal }: Settings): ReadonlyArray<Operation> =>
  terminal === undefined ? [] : [controllingTerminal]

const filteredLast = (process: Settings): boolean =>
  process.noNewPrivileges && isSeen(process) && process.seccomp?.custom === true

/**
 * The child's last operations, in the order that capabilities(7) and seccomp(2) require: the bounding set while the
 * child has CAP_SETPCAP, the ids while it has CAP_SETUID, the capabilities, no_new_privs, and last the filter, because
 * operations after it are subject to it. Without no_new_privs, loading the filter needs CAP_SYS_ADMIN, so it comes
 * before the capabilities are dropped.
 *
 * A process that joins the pid namespace of others enters it after these operations, by a fork, and then only begins a
 * session and executes: the others may stop it, and with CAP_SYS_PTRACE control it. A custom filter may deny the fork,
 * so it comes after the fork if possible.
 */
const become = (process: Settings): ReadonlyArray<Operation> => [
  {
    op: "working-directory",
    path: process.workingDirectory,
    create: process.createWorkingDirectory ? 1 : 0
  },
  ...(process.terminal === undefined
    ? []
    : [{ op: "terminal", socket: "terminal", ...process.terminal, uid: process.user.uid } as const]),
  ...(isSeen(process) ? [] : control(process)),
  { op: "umask", mask: process.umask },
  ...(process.noNewPrivileges ? [] : filterOf(process)),
  { op: "bounding", capabilities: process.capabilities },
  { op: "user", uid: process.user.uid, gid: process.user.gid, groups: process.user.groups },
  {
    op: "capabilities",
    effective: process.capabilities,
    permitted: process.capabilities,
    // An ambient capability must be inheritable; no other capability is inheritable (CVE-2022-29162).
    inheritable: process.ambient,
    ambient: process.ambient
  },
  ...(process.noNewPrivileges ? [noNewPrivileges] : []),
  ...(process.noNewPrivileges && !filteredLast(process) ? filterOf(process) : []),
  ...(isSeen(process) ? [fork, session, ...control(process)] : []),
  ...process.rlimits.filter((one) => isAfterFork(process, one)).map(limit),
  ...(filteredLast(process) ? filterOf(process) : [])
]

/** The last operation: the command, or an init that runs it. The init reports the command's failure as its own. */
const execute = (process: Settings, before: ReadonlyArray<Operation>): ReadonlyArray<Operation> => {
  const paths = searchPath(process.arguments[0]!, process.environment)
  const environment = Object.entries(process.environment).map(([name, value]) => `${name}=${value}`)
  const init = ["berth-init", String(before.length), String(paths.length), ...paths, ...process.arguments]
  return [
    ...before,
    process.init
      ? { op: "exec-self", arguments: init, environment }
      : { op: "exec", program: null, paths, arguments: process.arguments, environment }
  ]
}

const CAP_SYS_ADMIN = 1n << 21n

/**
 * Whether the first process could hide from a sweep: if it may make user or mount namespaces, it can leave the mounts
 * that show its owner. A cgroup also shows the owner, and an init stays in its mount namespace.
 */
const mayHide = (process: Settings, { created }: Surroundings): boolean =>
  (process.seccomp?.custom !== false || (process.capabilities & CAP_SYS_ADMIN) !== 0n) &&
  process.cgroup.length === 0 &&
  !process.init &&
  created.has("pid")

// A user namespace may set the domain name, but not write to its file (kernel/utsname_sysctl.c).
const setParameter = ([key, value]: readonly [key: string, value: string]): Operation =>
  key === "kernel.domainname"
    ? { op: "domainname", name: value }
    : { op: "sysctl", key: key.replaceAll(".", "/"), value }

/** A process in a root of its own. */
export const container = (process: Settings, around: Surroundings): ReadonlyArray<Operation> => {
  // A cgroup namespace shows the cgroup in which it is made, so it comes after the process has entered the cgroup; on
  // version 2 the clone does both. A mount namespace belongs to the user namespace that makes it, which must be the
  // joined one.
  const mountsInJoined = around.created.has("mount") && joinsUser(process)
  const atClone = [...around.created]
    .filter((kind) => kind !== "cgroup" && !(kind === "mount" && mountsInJoined))
    .reduce((all, kind) => all | flags[kind], 0)
  const recorded = mayHide(process, around)
  return execute(process, [
    ...around.cgroup,
    ...process.cgroup,
    ...(recorded ? [{ op: "scratch", path: around.record, mode: 0o700 } as const] : []),
    ...around.scratch,
    // The child in a user namespace of its own could not read the layers' trusted.* attributes, so the root is made
    // before.
    ...(around.idMap === undefined ? [] : [around.root]),
    ...clone(process, atClone, around),
    ...(recorded ? [{ op: "record", path: `${around.record}/stat` } as const] : []),
    ...(around.idMap === undefined ? [] : [around.idMap, rootUser]),
    // While the child may still change its own network namespace.
    ...around.network,
    ...enter(process, mountsInJoined, around.idMap !== undefined),
    ...(around.created.has("cgroup") ? [{ op: "unshare", namespaces: flags.cgroup } as const] : []),
    ...(around.created.has("network") ? [loopback] : []),
    ...(around.hostname === undefined ? [] : [{ op: "hostname", name: around.hostname } as const]),
    ...(around.idMap === undefined ? [around.root] : []),
    ...makeRoot(around),
    ...Object.entries(around.sysctls).map(setParameter),
    ...become(process)
  ])
}

/** A process in an existing root: an exec, or another process in a mount namespace that has been set up. */
export const joining = (process: Settings): ReadonlyArray<Operation> =>
  execute(process, [
    ...process.cgroup,
    { op: "process", namespaces: 0 },
    ...enter(process, false, false),
    ...become(process)
  ])
