/**
 * Containers: started, executed in, listened to and stopped as values in a `Scope`. When the scope closes, whatever
 * the reason, nothing of them is left.
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
import type { Image, ImageConfig } from "./Image.ts"
import * as executor from "./internal/container/commandExecutor.ts"
import * as committing from "./internal/container/commit.ts"
import type { ContainerState } from "./internal/container/handle.ts"
import * as internal from "./internal/container/lifecycle.ts"
import * as copying from "./internal/files/archiveCopy.ts"
import * as files from "./internal/files/fileSystem.ts"
import * as archive from "./internal/tar/containerTar.ts"
import * as typeIds from "./internal/typeIds.ts"
import type { Mount } from "./Mount.ts"
import type * as Namespace from "./Namespace.ts"
import type { Plan } from "./Plan.ts"
import type { BufferOptions, ExitStatus, Process, ProcessOptions, Result } from "./Process.ts"
import type { RootFs } from "./RootFs.ts"
import type * as Security from "./Security.ts"

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
// A container is a process: what can be done with a process can be done with a container.
export { attach, logs, resize, signal, stop, wait } from "./Process.ts"

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
 * A running container: its first process, and all that is around it. Its `id` is its hostname unless another is given. It
 * prints as one line: `Container(9f3c02d1b7aa, pid 1234, running)`.
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
  /** The arguments of the image's entrypoint, or the whole command where it has none. Default: the image's. */
  readonly command?: ReadonlyArray<string> | undefined
  /** In place of the image's; `[]` for none. */
  readonly entrypoint?: ReadonlyArray<string> | undefined
  /**
   * Whether the first process is a small init, which waits for orphans and passes signals on to the command, so that
   * SIGTERM reaches a command that does not handle it. Default false: the command is the first process.
   */
  readonly init?: boolean | undefined
  /** Default: the container's id. At most 64 bytes. */
  readonly hostname?: string | undefined
  /**
   * In the order of the list, on top of `/proc`, `/sys` and `/dev`, which have to be folders of the root: a start fails where
   * one of them is a symbolic link. Links on the way to other targets are followed inside the root.
   */
  readonly mounts?: ReadonlyArray<Mount> | undefined
  /** Whether the root cannot be written to; mounts can. Default false. */
  readonly readOnly?: boolean | undefined
  /**
   * Default: `Security.defaultMaskedPaths`. Those below `/proc`, `/sys` and `/dev` are masked in the file system that is
   * mounted there, whatever is renamed in the root meanwhile. All others are looked up in the root, once, as it is at the
   * start, and left out where they are not there: another container that shares the root, or a process that can rename in
   * it, can get around these.
   */
  readonly maskedPaths?: ReadonlyArray<string> | undefined
  /** Whose processes are seen in its `/proc`. Default `"off"`: everybody's. */
  readonly hidepid?: Security.HidePid | undefined
  /** Default: `Security.defaultReadonlyPaths`. They are found as `maskedPaths` are. */
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
  /** Makes a cgroup for the container. Without limits, and without `cgroup`, it has none of its own. */
  readonly limits?: Cgroup.Limits | undefined
  /** A cgroup that is there, in place of `limits`: both together are refused. */
  readonly cgroup?: Cgroup.Cgroup | undefined
  /**
   * Where each namespace comes from: `"new"`, `"host"`, or what another container or a `Namespace` holds. Default: new
   * ones of mount, pid, uts, ipc, network and cgroup. A new network has a loopback interface and nothing else.
   */
  readonly namespaces?:
    | Partial<Record<Exclude<Namespace.Kind, "mount">, "new" | "host" | Namespace.Namespace | Container>>
    | undefined
  /**
   * A user namespace of the container's own with ids of its own, so that its root is nobody on the host: `"auto"` takes
   * 65536 ids that no other container has (see `Berth.Options.idOwner`), or with these maps, from 0 on and without a gap.
   * Nothing is chowned: the image's layers are shown with these ids (Linux 5.19), and what is written has them on disk.
   * `Unsupported` without root, where every container is in a user namespace already.
   */
  readonly userns?:
    | "auto"
    | {
        readonly uidMap: ReadonlyArray<Namespace.IdRange>
        readonly gidMap: ReadonlyArray<Namespace.IdRange>
      }
    | undefined
  /** Keeps the log from the beginning, on disk; see `logs`. Default: in memory, the newest of it. */
  readonly logs?: LogFiles | undefined
  /** The writable layer: see `RootFs.Options`. */
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
   * The namespaces to run in. A mount namespace among them gets the root from the first process that is spawned in it,
   * and the ones that follow join it as it is. A mount namespace that is not among them is new.
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
  /** A folder on the host for the log's files alone; made if it is missing, and left when the container is gone. */
  readonly folder: string
  /** How large a file gets before the next is begun, in bytes. Default 10 MiB. */
  readonly maxBytes?: number | undefined
  /** How many files are kept: with `maxBytes`, they bound what a container can fill of the disk. Default 3. */
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
   * How many bytes the holes of all files may have, as a number or as text like "256MiB": an archive has zeros for them, and
   * a container makes a hole of any size for nothing. Past it, the archive fails with the file's name. Default: 16 GiB.
   */
  readonly maxHoleBytes?: number | string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CommitOptions extends ArchiveOptions {
  /** The image's name in the store, as `Image.pull` would write it; its digest unless given. */
  readonly tag?: string | undefined
  readonly author?: string | undefined
  /** What the image's history says of the new layer. */
  readonly comment?: string | undefined
  /** Default: now. The same files, options and time make the same image. */
  readonly created?: Date | undefined
  /** How to run it. `environment` and `labels` are added to the image's; what is left out is as the image has it. */
  readonly config?: Partial<Omit<ImageConfig, "architecture" | "os">> | undefined
}

/**
 * A process of a container.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProcessInfo {
  /** As the host numbers it, and as the container does. */
  readonly pid: number
  readonly pidInside: number
  /** Its parent, as the host numbers it. */
  readonly parent: number
  /** Its user's name in the container, or the number where it has none. */
  readonly user: string
  /** With its arguments, 4096 bytes of them at most; in brackets where it has none. */
  readonly command: ReadonlyArray<string>
  /** A letter of proc_pid_stat(5): `R` runs, `S` sleeps, `D` waits for a disk, `T` is stopped. */
  readonly state: string
  readonly threads: number
  /** CPU time, in microseconds, in steps of 10 ms. */
  readonly userMicros: number
  readonly systemMicros: number
  /** Its resident set, in bytes. */
  readonly memoryBytes: number
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isContainer: (u: unknown) => u is Container = typeIds.isContainer

/**
 * Starts a container, which runs until it ends or the scope closes. It is there, its command executed, when this
 * succeeds.
 *
 * Fails with `CommandFailed` where the command is not there or cannot be executed, `InvalidOption`, `Unsupported`,
 * `ImageError` for a user that the image does not have, and `OperationFailed` for what the kernel refuses. Whatever it
 * had made by then is gone.
 *
 * @since 0.1.0
 * @category constructors
 */
export const start: (
  image: Image,
  options?: StartOptions
) => Effect.Effect<Container, BerthError, Berth | Scope.Scope> = internal.start

/**
 * Starts a container, waits for its end and gives all that it wrote. It is gone when this succeeds. A command that
 * fails is not an error: see `exitCode`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const run: (
  image: Image,
  options?: StartOptions & BufferOptions
) => Effect.Effect<Result, BerthError, Berth> = internal.run

/**
 * Starts a process on a root, in namespaces and in a cgroup that are there already: the pieces that `start` makes by
 * itself. The process ends with its own scope; the pieces are their owners'.
 *
 * @since 0.1.0
 * @category constructors
 */
export const spawn: (options: SpawnOptions) => Effect.Effect<Container, BerthError, Berth | Scope.Scope> =
  internal.spawn

/**
 * What `start` would do, without doing any of it and without privileges. Fails as `start` does for options that are
 * not acceptable.
 *
 * @since 0.1.0
 * @category plans
 */
export const plan: (image: Image, options?: StartOptions) => Effect.Effect<Plan, BerthError> = internal.plan

/**
 * Runs a command inside a running container, in all its namespaces and its cgroup, and gives what it wrote.
 * Where it is interrupted, the command is killed with all of its process group (setsid(2)); what has left that for a
 * session of its own goes with the container.
 *
 * Fails with `ContainerError` where the container has ended or the output is too long, and as `start` does.
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
 * Starts a command inside a running container; it ends with the scope, as an interrupted `exec` does.
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
 * Has everything in the container stand still, by the freezer of its cgroup, and succeeds once it does; nothing in it can
 * notice. It gets a cgroup for that where it has none of its own. Its files can be read and written meanwhile; `exec` fails
 * with `ContainerError`; signals are kept for later, except that SIGKILL and `stop` let it go on for its end.
 *
 * Where it was spawned in namespaces that are not its own, and without a cgroup, it is its process, what was executed in
 * it, and what came of these as long as their parents live: start it in a cgroup to have all of it stand still.
 *
 * Fails with `ContainerError` where it has ended, and `CgroupError` where the tree has no freezer, or a process waits in the
 * kernel and does not stop within 5 seconds.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const pause: (container: Container) => Effect.Effect<void, BerthError> = internal.pause

/**
 * Lets it go on. Nothing happens where it is not paused.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const resume: (container: Container) => Effect.Effect<void, BerthError> = internal.resume

/**
 * The processes in the container, those of `exec` included.
 *
 * @since 0.1.0
 * @category statistics
 */
export const top: (container: Container) => Effect.Effect<ReadonlyArray<ProcessInfo>, BerthError> =
  internal.top

/**
 * The cgroup that the container is in, for its limits and events; where it was started in none it gets one now, with all
 * that runs in it.
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
 * Starts a container, and starts it again as long as the schedule says so: it is given how the last one ended, and its
 * delays are waited for. Each is in a scope of its own. Gives how the last one ended.
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
    /** What is done with each container while it runs. */
    readonly onStart?: ((container: Container) => Effect.Effect<unknown, BerthError>) | undefined
  },
  restart: Schedule.Schedule<Out, ExitStatus, R>
) => Effect.Effect<ExitStatus, BerthError, Berth | R> = internal.supervised

/**
 * What the container's cgroup uses. Fails with `ContainerError` where it was started without `limits` or `cgroup`.
 *
 * @since 0.1.0
 * @category statistics
 */
export const stats: (container: Container) => Effect.Effect<Cgroup.Stats, BerthError> = internal.stats

/**
 * The container's files as an `@effect/platform` FileSystem: what its own for Node does on the host, with the same
 * results and the same errors. A program that uses `FileSystem` works on them unchanged, whether the container runs, is
 * paused or has ended, until its scope closes. No path, link or race leads out of the container's root.
 *
 * What is made belongs to this program's user, who is the container's root where Berth has no root. The ids of `stat` and
 * `chown` are the container's. Without root, too, files of its other users are read and changed as its root may. A
 * relative path is below `/`; folders below a folder are listed but links to folders are not followed, and are not
 * watched; names are UTF-8. A container that was spawned into a mount namespace which has its root already has no files
 * of its own: every operation fails with `BadResource`.
 *
 * Regular files and folders are opened, and nothing else: a fifo or a socket, which could wait without end, a device, which
 * would be this program's (`/dev/tty` is its own terminal), and the files and links of `/proc`, which are about whoever
 * looks at them, fail with `PermissionDenied`: use a command in the container. `readFile` reads as much as a file had when
 * it was opened, 512 MiB at most; `stream` reads files of any size. A file on which a process holds a lease fails with EAGAIN.
 *
 * `watch` has a bounded queue, the kernel's: where its reader is slower than the changes, what is in the queue comes
 * first, and then an `Update` of the watched path itself says that changes were lost.
 *
 * @since 0.1.0
 * @category files
 * @example
 * const inside = Effect.provideService(program, FileSystem.FileSystem, Container.fileSystem(box))
 */
export const fileSystem: (container: Container) => FileSystem.FileSystem = files.make

/**
 * Copies a file or a tree of the host into the container, whether it runs, is paused or has ended, with modes, owners,
 * times, extended attributes, holes, and hard links among what is copied. Links are copied, not followed.
 *
 * A target that is a folder gets the source inside, under its own name; one that is not there becomes the source, in a
 * folder that has to be there; a file is replaced. `source/` is what a link leads to, and `source/.` what is in the
 * folder. A folder that is there stays as it is and gets what it lacks. Sockets are left out.
 *
 * Fails with `OperationFailed`: a file in the place of a folder or the reverse, no such source, no such folder, a device,
 * a name that is not UTF-8. What had been copied by then stays.
 *
 * @since 0.1.0
 * @category files
 */
export const copyIn: {
  (hostPath: string, containerPath: string): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, hostPath: string, containerPath: string): Effect.Effect<void, BerthError>
} = copying.copyIn

/**
 * Copies a file or a tree of the container to the host, as `copyIn` does the other way. Nothing that the container does
 * meanwhile makes it read a file of the host, or write anywhere but below the target. A target that is a link, which an
 * earlier copy may have made, is replaced; `target/` is the folder that it leads to.
 *
 * The container chooses all that is copied, so what would give rights on the host is left out: set-user-ID and
 * set-group-ID bits, and the extended attributes `security.*` (file capabilities among them) and `trusted.*`. The option
 * `keepPrivileges` keeps them. Devices are never made: one is an error that names it.
 *
 * Owners are kept where this program may give files away, as root may: a file of the container's user 1000 belongs to user
 * 1000 of the host, who may write it there, and a file of a container with `userns` to the id that the container's one is
 * on the host. Modes and access control lists are kept too. Copy into a folder that only you can enter (0700), or change
 * the owner of the copy, where those users should not have it. Without root, the copy belongs to this program's user.
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
 * A file or a tree of the container as a tar archive in the pax format, with what `copyIn` keeps. Its
 * members are below the name of the source, or without it for `source/.` and `/`. Sockets and devices are left out.
 * The archive has the set-user-ID bits and attributes that `copyOut` leaves out: unpack it on the host as somebody without
 * rights, or with an unpacker that drops them.
 *
 * Holes are zeros, as not every tar(1) takes sparse members (busybox does not): of `maxHoleBytes` in all, past which the
 * archive fails with `OperationFailed` (EFBIG). They come in parts, between which others have their turn. A path of more
 * than 4095 bytes is refused as well (ENAMETOOLONG), as no system could unpack it; `copyOut` takes trees of any depth.
 *
 * @since 0.1.0
 * @category files
 */
export const tarOut: {
  (path: string, options?: ArchiveOptions): (container: Container) => Stream.Stream<Uint8Array, BerthError>
  (container: Container, path: string, options?: ArchiveOptions): Stream.Stream<Uint8Array, BerthError>
} = archive.tarOut

/**
 * Takes a tar archive, not compressed, into a folder of the container, as tar(1) would inside it: folders on the way are
 * made, files and links replaced, links that are there followed, inside the container's root. Blocks of zeros become
 * holes.
 *
 * Fails with `InvalidData` for bytes that are no archive, that end too early, or that have a device, a sparse member or a name
 * with `..`.
 *
 * @since 0.1.0
 * @category files
 */
export const tarIn: {
  (path: string): (container: Container) => Sink.Sink<void, Uint8Array, never, BerthError>
  (container: Container, path: string): Sink.Sink<void, Uint8Array, never, BerthError>
} = archive.tarIn

/**
 * Makes an image, in the store, of what the container was started from and one more layer: what it has written, as
 * `ImageLayer.diff` has it, compressed with gzip. Mounts are no part of it. The container may run, and then the layer has
 * what is there when each file is read; or it may have ended, until its scope closes.
 *
 * Fails with `InvalidOption` for a container of `Image.host` or `Image.fromRootfs`, which have no manifest; `ContainerError` once the scope has closed;
 * `ImageError` and `OperationFailed` as `ImageLayer.diff` does. The store has the names it had before, then.
 *
 * @since 0.1.0
 * @category images
 * @example
 * const image = Container.commit(box, { tag: "mine:1", config: { command: ["/usr/bin/serve"] } })
 */
export const commit: {
  (options?: CommitOptions): (container: Container) => Effect.Effect<Image, BerthError>
  (container: Container, options?: CommitOptions): Effect.Effect<Image, BerthError>
} = committing.commit

/**
 * An `@effect/platform` CommandExecutor whose commands run inside the container, as its own first process does: the
 * same user, environment, working directory and limits unless a `Command` says otherwise. A program that uses `Command`
 * runs there unchanged, and finds the same results and the same errors as on the host.
 *
 * A command ends with its scope, by SIGTERM to it and all of its process group, and by SIGKILL 10 seconds later.
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
