/**
 * Containers: started, executed in, observed and stopped as values in a `Scope`. When the scope closes, for whatever
 * reason, nothing of them is left.
 *
 * @since 0.1.0
 */
import type * as CommandExecutor from "@effect/platform/CommandExecutor"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type * as Cgroup from "./Cgroup.ts"
import type { Publishable } from "./Connection.ts"
import type { Image } from "./Image.ts"
import * as executor from "./internal/container/commandExecutor.ts"
import type { ContainerState } from "./internal/container/handle.ts"
import * as internal from "./internal/container/lifecycle.ts"
import * as copying from "./internal/files/archiveCopy.ts"
import * as files from "./internal/files/fileSystem.ts"
import * as archive from "./internal/tar/containerTar.ts"
import * as typeIds from "./internal/typeIds.ts"
import type { Mount } from "./Mount.ts"
import type * as Namespace from "./Namespace.ts"
import type { Network, Pod } from "./Network.ts"
import type { Plan } from "./Plan.ts"
import type { BufferOptions, ExitStatus, Process, ProcessOptions, Result } from "./Process.ts"
import type { RootFs } from "./RootFs.ts"
import type * as Security from "./Security.ts"

// A container is a process: every function on a `Process` also takes a `Container`.
export { connect, fetch, httpClient, listen, netServer, netSocket, publish, published } from "./Connection.ts"
export type {
  BufferOptions,
  ExitStatus,
  LogEntry,
  LogsOptions,
  ProcessOptions,
  Result,
  StopOptions,
  TerminalSize
} from "./Process.ts"
export { attach, logs, resize, signal, stop, wait } from "./Process.ts"
export type { CommitOptions, ForkOptions, KeepOptions, SnapshotOptions } from "./Snapshot.ts"
export { commit, fork, keep, snapshot } from "./Snapshot.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = typeIds.ContainerTypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A running container: its first process with its root, namespaces and cgroup. The `id` is the hostname unless another
 * one is given. It prints as one line: `Container(9f3c02d1b7aa, pid 1234, running)`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Container extends Process {
  readonly [TypeId]: TypeId
  /** @internal */
  readonly state: ContainerState
}

/**
 * @since 0.1.0
 * @category models
 */
export interface RootOptions extends ProcessOptions {
  /** The arguments of the image's entrypoint, or the whole command if there is no entrypoint. Default: the image's. */
  readonly command?: ReadonlyArray<string> | undefined
  /** Replaces the image's entrypoint; `[]` removes it. */
  readonly entrypoint?: ReadonlyArray<string> | undefined
  /**
   * Whether the first process is a small init, which reaps orphans and passes signals on to the command, so that
   * SIGTERM reaches a command that does not handle it. Default false: the command is the first process.
   */
  readonly init?: boolean | undefined
  /** Default: the container's id. At most 64 bytes. */
  readonly hostname?: string | undefined
  /**
   * Whether the container gets files `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of its own, whatever its image has.
   * They name `localhost` and the hostname, and the server 127.0.0.11, which knows the names of the container's networks; without
   * any, nothing answers there. On the host's network they name the host's servers, and on the network of another container that
   * container's. A file that `mounts` cover is not made. Commits do not contain the files. Default true; false shows the image's files.
   */
  readonly etcFiles?: boolean | undefined
  /**
   * Lines that are added to `/etc/hosts`, as names with addresses: `["db:10.0.0.2", "db:[fd00::2]"]`. As with Docker, `host-gateway`
   * stands for the program's machine: with `["host.docker.internal:host-gateway"]`, a container reaches at
   * `host.docker.internal:3000` the port 3000 that `Network.expose` has exposed on the container's first network, before or
   * after the start. All other ports of the name refuse connections at once. On the host's own network it is 127.0.0.1.
   */
  readonly extraHosts?: ReadonlyArray<string> | undefined
  /** The addresses of the name servers in `/etc/resolv.conf`, in place of the default ones; `[]` for none. */
  readonly dns?: ReadonlyArray<string> | undefined
  /** The domains that are searched for short names, in place of the default ones; `[]` for none. */
  readonly dnsSearch?: ReadonlyArray<string> | undefined
  /**
   * Mounts, made in the order of the list after `/proc`, `/sys` and `/dev`. These three must be folders of the root: if
   * one of them is a symbolic link, the start fails. Symbolic links on the way to other targets are followed inside the
   * root.
   */
  readonly mounts?: ReadonlyArray<Mount> | undefined
  /** Whether the root is read-only; mounts can still be written to. Default false. */
  readonly readOnly?: boolean | undefined
  /**
   * Default: `Security.defaultMaskedPaths`. Paths below `/proc`, `/sys` and `/dev` are masked in the file system that
   * is mounted there, whatever is renamed in the root at the same time. All other paths are looked up in the root once,
   * at the start, and skipped if they do not exist: another container that shares the root, or a process that can
   * rename in it, can get around these.
   */
  readonly maskedPaths?: ReadonlyArray<string> | undefined
  /** The processes that users see in the container's `/proc`. Default `"off"`: all. */
  readonly hidepid?: Security.HidePid | undefined
  /** Default: `Security.defaultReadonlyPaths`. They are looked up as `maskedPaths` are. */
  readonly readonlyPaths?: ReadonlyArray<string> | undefined
  /** The capacity of `/dev/shm`, as in `Limits.memory`. Default 64 MiB. */
  readonly shmSize?: number | string | undefined
  /** Kernel parameters of the container's own namespaces: `{ "net.ipv4.ip_unprivileged_port_start": "0" }`. */
  readonly sysctls?: Readonly<Record<string, string>> | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface StartOptions extends RootOptions {
  /** Makes a cgroup with these limits. Without `limits` and `cgroup`, the container has no cgroup of its own. */
  readonly limits?: Cgroup.Limits | undefined
  /** An existing cgroup, in place of `limits`: both together are refused. */
  readonly cgroup?: Cgroup.Cgroup | undefined
  /**
   * The origin of each namespace: `"new"`, `"host"`, or another container or a `Namespace` that holds it. Default: new
   * mount, pid, uts, ipc, network and cgroup namespaces. A new network has only a loopback interface.
   */
  readonly namespaces?:
    | Partial<Record<Exclude<Namespace.Kind, "mount">, "new" | "host" | Namespace.Namespace | Container>>
    | undefined
  /**
   * A user namespace for the container, in which its root has no rights on the host. `"auto"` takes 65536 ids that no
   * other container has (see `Berth.Options.idOwner`); maps start at 0 and have no gap. Files are not chowned: the
   * image's layers are shown with these ids (Linux 5.19), and files that the container writes have them on disk.
   * Without root it fails with `Unsupported`, because every container then is in a user namespace already.
   */
  readonly userns?:
    | "auto"
    | {
        readonly uidMap: ReadonlyArray<Namespace.IdRange>
        readonly gidMap: ReadonlyArray<Namespace.IdRange>
      }
    | undefined
  /**
   * The networks that it is on: `"none"` has loopback alone, `"host"` is the host's own, in place of
   * `namespaces: { network: "host" }`. Its interfaces are `eth0`, `eth1` and so on; other addresses than the networks' are
   * reached by the first. In a pod of `Network.pod` it has the pod's interfaces, addresses and names. Default: `"none"`.
   */
  readonly network?: "none" | "host" | Network | ReadonlyArray<Network> | Pod | undefined
  /** Its name on its networks, besides its id. */
  readonly name?: string | undefined
  /** More names, on each of its networks, or by network. */
  readonly aliases?: ReadonlyArray<string> | ReadonlyMap<Network, ReadonlyArray<string>> | undefined
  /** Ports of the host that lead to the container's, as `Container.publish` makes them and `Container.published` finds them; also ranges: `"80-82"`. */
  readonly ports?: ReadonlyArray<Publishable> | undefined
  /** Keeps the log from the beginning, on disk; see `logs`. Default: in memory, the newest of it. */
  readonly logs?: LogFiles | undefined
  /** Where the writable layer is, and its capacity, so that a container cannot fill the host's disk: see `RootFs.Options`. */
  readonly upper?: "disk" | "memory" | undefined
  readonly upperSize?: number | string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface SpawnOptions extends RootOptions {
  readonly rootfs: RootFs
  /**
   * The namespaces to run in. The first process that is spawned in a mount namespace sets up the root there, and later
   * processes use this root. Without a mount namespace in the list, the process gets a new one.
   */
  readonly namespaces: Namespace.Namespace
  readonly cgroup?: Cgroup.Cgroup | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface ExecOptions extends ProcessOptions, BufferOptions {}

/**
 * A log on disk.
 *
 * @since 0.1.0
 * @category models
 */
export interface LogFiles {
  /** A folder on the host for the log's files alone. It is made if missing, and stays after the container's end. */
  readonly folder: string
  /** The size in bytes at which the next file begins. Default 10 MiB. */
  readonly maxBytes?: number | undefined
  /** The number of files kept: with `maxBytes`, it limits the disk space that a container's log can take. Default 3. */
  readonly maxFiles?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CopyOutOptions {
  /**
   * Keeps set-user-ID and set-group-ID bits and the extended attributes `security.*` and `trusted.*`: programs of the
   * container then have on the host the rights that the container gave them. Default: false.
   */
  readonly keepPrivileges?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface ArchiveOptions {
  /**
   * The limit of bytes in the holes of all files, as a number or as text like "256MiB". An archive contains holes as
   * zeros, and a container can make holes of any size at no cost. Above the limit, the archive fails with the file's
   * name. Default: 16 GiB.
   */
  readonly maxHoleBytes?: number | string | undefined
}

/**
 * A process of a container.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProcessInfo {
  /** The pid on the host, and the pid in the container. */
  readonly pid: number
  readonly pidInside: number
  /** The parent's pid on the host. */
  readonly parent: number
  /** The user's name in the container, or the uid if the user has no name. */
  readonly user: string
  /** The command with its arguments, at most 4096 bytes; in brackets if the process has no arguments. */
  readonly command: ReadonlyArray<string>
  /** The state, a letter of proc_pid_stat(5): `R` runs, `S` sleeps, `D` waits for a disk, `T` is stopped. */
  readonly state: string
  readonly threads: number
  /** CPU time, in microseconds, in steps of 10 ms. */
  readonly userMicros: number
  readonly systemMicros: number
  /** The resident set, in bytes. */
  readonly memoryBytes: number
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isContainer: (u: unknown) => u is Container = typeIds.isContainer

/**
 * Starts a container, which runs until it ends or the scope closes. Succeeds once the command is executed.
 *
 * Fails with `CommandFailed` if the command does not exist or cannot be executed, `InvalidOption`, `Unsupported`,
 * `ImageError` for a user that the image lacks, and `OperationFailed` if the kernel refuses an operation. Everything
 * made before the failure is removed.
 *
 * @since 0.1.0
 * @category constructors
 */
export const start: (
  image: Image,
  options?: StartOptions
) => Effect.Effect<Container, BerthError, Berth | Scope.Scope> = internal.start

/**
 * Starts a container, waits for its end and returns its output. The container is removed when this succeeds. A command
 * that fails is not an error: see `exitCode`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const run: (
  image: Image,
  options?: StartOptions & BufferOptions
) => Effect.Effect<Result, BerthError, Berth> = internal.run

/**
 * Starts a process on an existing root, in existing namespaces and in an existing cgroup, which `start` makes by
 * itself. The process ends with its own scope; the root, the namespaces and the cgroup live as long as their own
 * scopes.
 *
 * @since 0.1.0
 * @category constructors
 */
export const spawn: (options: SpawnOptions) => Effect.Effect<Container, BerthError, Berth | Scope.Scope> =
  internal.spawn

/**
 * The plan of `start`, compiled without performing it and without privileges. Fails as `start` does for invalid
 * options.
 *
 * @since 0.1.0
 * @category plans
 */
export const plan: (image: Image, options?: StartOptions) => Effect.Effect<Plan, BerthError> = internal.plan

/**
 * Runs a command inside a running container, in all its namespaces and its cgroup, and returns its output. If the
 * effect is interrupted, the command is killed with its process group; a process that has left the group (setsid(2))
 * ends with the container.
 *
 * Fails with `ContainerError` if the container has ended or the output is too long, and as `start` does.
 *
 * @since 0.1.0
 * @category processes
 */
export const exec: {
  (
    command: ReadonlyArray<string>,
    options?: ExecOptions
  ): (container: Container) => Effect.Effect<Result, BerthError>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ExecOptions
  ): Effect.Effect<Result, BerthError>
} = internal.exec

/**
 * Starts a command inside a running container. It is killed when the scope closes, as an interrupted `exec` is.
 *
 * @since 0.1.0
 * @category processes
 */
export const execStream: {
  (
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): (container: Container) => Effect.Effect<Process, BerthError, Scope.Scope>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): Effect.Effect<Process, BerthError, Scope.Scope>
} = internal.execStream

/**
 * Pauses all processes of the container with the freezer of its cgroup, and succeeds once they stand still; they cannot
 * notice the pause. A container without a cgroup of its own gets one. While it is paused, its files can be read and
 * written; `exec` fails with `ContainerError`; signals are delivered later, but SIGKILL and `stop` resume the container
 * so that it can end.
 *
 * For a container that was spawned into shared namespaces without a cgroup, this pauses its process, the processes of
 * its execs, and their descendants as long as the parents live: start it in a cgroup to pause all of it.
 *
 * Fails with `ContainerError` if the container has ended, and with `CgroupError` if the tree has no freezer, or if a
 * process waits in the kernel and does not stop within 5 seconds.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const pause: (container: Container) => Effect.Effect<void, BerthError> = internal.pause

/**
 * Resumes a paused container. Does nothing if it is not paused.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const resume: (container: Container) => Effect.Effect<void, BerthError> = internal.resume

/**
 * The processes in the container, including those of `exec`.
 *
 * @since 0.1.0
 * @category statistics
 */
export const top: (container: Container) => Effect.Effect<ReadonlyArray<ProcessInfo>, BerthError> =
  internal.top

/**
 * The cgroup that the container is in, for its limits and events. A container that was started without a cgroup gets
 * one now, and all its processes are moved there.
 *
 * @since 0.1.0
 * @category statistics
 * @example
 * Effect.flatMap(Container.cgroup(box), Cgroup.update({ memory: "512MiB" }))
 */
export const cgroup = (container: Container): Effect.Effect<Cgroup.Cgroup, BerthError> =>
  Effect.withSpan(internal.cgroupOf(container), "berth.Container.cgroup", {
    attributes: { "container.id": container.id }
  })

/**
 * Starts a container, and starts it again as long as the schedule continues. The schedule receives the exit status of
 * each container, and its delays are respected. Each container has a scope of its own. Returns the last exit status.
 *
 * @since 0.1.0
 * @category lifetime
 * @example
 * // up to five times, a second apart, unless it ends well
 * Container.supervised(image, { command }, Schedule.spaced("1 second").pipe(
 *   Schedule.intersect(Schedule.recurs(5)),
 *   Schedule.whileInput((status: Container.ExitStatus) => status.exitCode !== 0)
 * ))
 */
export const supervised: <Out, R>(
  image: Image,
  options: StartOptions & {
    /** Runs with each container while the container runs. */
    readonly onStart?: ((container: Container) => Effect.Effect<unknown, BerthError>) | undefined
  },
  restart: Schedule.Schedule<Out, ExitStatus, R>
) => Effect.Effect<ExitStatus, BerthError, Berth | R> = internal.supervised

/**
 * The use of the container's cgroup. Fails with `ContainerError` if the container was started without `limits` or
 * `cgroup`.
 *
 * @since 0.1.0
 * @category statistics
 */
export const stats: (container: Container) => Effect.Effect<Cgroup.Stats, BerthError> = internal.stats

/**
 * The container's files as a FileSystem of `@effect/platform`, with the results and errors of platform-node's
 * FileSystem on the host. A program that uses `FileSystem` works on them unchanged, while the container runs, is paused
 * or has ended, until its scope closes. No path, link or race leads out of the container's root.
 *
 * New files belong to this program's user, which is root of the container if Berth runs without root. The ids of `stat`
 * and `chown` are the container's. Without root, too, files of the container's other users can be read and changed as
 * by its root. A relative path is below `/`. A recursive listing does not follow symbolic links to folders; a recursive
 * watch fails. Names are UTF-8. For a container that was spawned into a mount namespace with a root, every operation
 * fails with `BadResource`.
 *
 * Only regular files and folders can be opened. Everything else fails with `PermissionDenied`: use a command in the
 * container. A fifo or a socket could block without end, a device would be this program's (`/dev/tty` is its own
 * terminal), and the files and links of `/proc` describe the process that opens them. `readFile` reads a file up to its
 * size at the time of opening, at most 512 MiB; `stream` reads files of any size. A file on which a process holds a
 * lease fails with EAGAIN.
 *
 * `watch` has the kernel's bounded queue: if its reader is slower than the changes, the reader gets the queued events,
 * and then an `Update` of the watched path itself, which means that events were lost.
 *
 * @since 0.1.0
 * @category files
 * @example
 * const inside = Effect.provideService(program, FileSystem.FileSystem, Container.fileSystem(box))
 */
export const fileSystem: (container: Container) => FileSystem.FileSystem = files.make

/**
 * Copies a file or a tree of the host into the container, while it runs, is paused or has ended. The copy keeps modes,
 * owners, times, extended attributes, holes, and hard links within the tree. Symbolic links are copied, not followed.
 *
 * If the target is an existing folder, the source is copied into it under its own name. A target that does not exist
 * becomes the copy of the source; its parent folder must exist. An existing file is replaced. `source/` follows a
 * symbolic link, and `source/.` copies the contents of the folder. Existing folders keep their metadata, and missing
 * entries are added. Sockets are skipped.
 *
 * Fails with `OperationFailed`: a file in place of a folder or the reverse, a missing source or parent folder, a
 * device, a name that is not UTF-8. Files copied before the failure stay.
 *
 * @since 0.1.0
 * @category files
 */
export const copyIn: {
  (hostPath: string, containerPath: string): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, hostPath: string, containerPath: string): Effect.Effect<void, BerthError>
} = copying.copyIn

/**
 * Copies a file or a tree of the container to the host, as `copyIn` does in the other direction. Whatever the container
 * does at the same time, no file of the host is read, and nothing is written outside the target. A target that is a
 * symbolic link, which an earlier copy may have made, is replaced; `target/` follows the link to its folder.
 *
 * The container controls the copied files, so anything that would give rights on the host is left out: set-user-ID and
 * set-group-ID bits, and the extended attributes `security.*` (file capabilities among them) and `trusted.*`. The
 * option `keepPrivileges` keeps them. Devices are never made: a device fails with an error that names it.
 *
 * As root, owners are kept: a file of the container's user 1000 belongs to user 1000 of the host, who can write to it
 * there; with `userns`, a file belongs to the id on the host that the container's id is mapped to. Modes and access
 * control lists are kept too. To keep these users out, copy into a folder that only you can enter (0700), or change the
 * owner of the copy. Without root, the copy belongs to this program's user.
 *
 * @since 0.1.0
 * @category files
 */
export const copyOut: {
  (
    containerPath: string,
    hostPath: string,
    options?: CopyOutOptions
  ): (container: Container) => Effect.Effect<void, BerthError>
  (
    container: Container,
    containerPath: string,
    hostPath: string,
    options?: CopyOutOptions
  ): Effect.Effect<void, BerthError>
} = copying.copyOut

/**
 * A file or a tree of the container as a tar archive in the pax format, with the metadata that `copyIn` keeps. Member
 * names begin with the name of the source; for `source/.` and `/` they do not. Sockets and devices are skipped. The
 * archive includes the set-user-ID bits and attributes that `copyOut` leaves out: unpack it on the host as a user
 * without rights, or with an unpacker that drops them.
 *
 * The archive contains holes as zeros, because some tar(1) do not support sparse members (busybox does not). If holes
 * exceed `maxHoleBytes` in total, the archive fails with `OperationFailed` (EFBIG). The zeros come in parts, and other
 * fibers run in between. A path longer than 4095 bytes is refused as well (ENAMETOOLONG), because no system could
 * unpack it; `copyOut` copies trees of any depth.
 *
 * @since 0.1.0
 * @category files
 */
export const tarOut: {
  (path: string, options?: ArchiveOptions): (container: Container) => Stream.Stream<Uint8Array, BerthError>
  (container: Container, path: string, options?: ArchiveOptions): Stream.Stream<Uint8Array, BerthError>
} = archive.tarOut

/**
 * Extracts an uncompressed tar archive into a folder of the container, as tar(1) would inside it: missing folders are
 * made, files and symbolic links are replaced, existing symbolic links on the way are followed inside the container's
 * root. Blocks of zeros become holes.
 *
 * Fails with `InvalidData` for bytes that are not an archive, for a truncated archive, and for a device, a sparse
 * member or a name with `..`.
 *
 * @since 0.1.0
 * @category files
 */
export const tarIn: {
  (path: string): (container: Container) => Sink.Sink<void, Uint8Array, never, BerthError>
  (container: Container, path: string): Sink.Sink<void, Uint8Array, never, BerthError>
} = archive.tarIn

/**
 * A CommandExecutor of `@effect/platform` whose commands run inside the container with the user, environment, working
 * directory and limits of its first process, unless a `Command` says otherwise. A program that uses `Command` runs
 * there unchanged, with the same results and the same errors as on the host.
 *
 * When its scope closes, a command and its process group get SIGTERM, and SIGKILL 10 seconds later.
 *
 * @since 0.1.0
 * @category platform
 * @example
 * const program = Command.string(Command.make("uname", "-n"))
 *
 * const inside = Effect.provideService(
 *   program,
 *   CommandExecutor.CommandExecutor,
 *   Container.commandExecutor(box)
 * )
 */
export const commandExecutor: (container: Container) => CommandExecutor.CommandExecutor =
  executor.commandExecutor
