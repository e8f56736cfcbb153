/**
 * Containers: started, executed in, listened to and stopped as values in a `Scope`. When the scope closes, whatever
 * the reason, nothing of them is left.
 *
 * @since 0.1.0
 */
import type * as CommandExecutor from "@effect/platform/CommandExecutor"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Sink from "effect/Sink"
import type * as Stream from "effect/Stream"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type * as Cgroup from "./Cgroup.ts"
import type {
  ArchiveOptions,
  CommitOptions,
  CopyOutOptions,
  ExitStatus,
  LogEntry,
  LogFiles,
  LogsOptions,
  ProcessInfo,
  Result,
  StopOptions,
  TerminalSize
} from "./ContainerModels.ts"
import type { Image } from "./Image.ts"
import * as executor from "./internal/container/commandExecutor.ts"
import * as committing from "./internal/container/commit.ts"
import type * as processes from "./internal/container/launch.ts"
import * as internal from "./internal/container/lifecycle.ts"
import * as copying from "./internal/files/archiveCopy.ts"
import * as files from "./internal/files/fileSystem.ts"
import * as archive from "./internal/tar/containerTar.ts"
import * as typeIds from "./internal/typeIds.ts"
import type { Mount } from "./Mount.ts"
import type * as Namespace from "./Namespace.ts"
import type { Plan } from "./Plan.ts"
import type { RootFs } from "./RootFs.ts"
import type * as Security from "./Security.ts"

export type * from "./ContainerModels.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Container")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A running container, or a process that runs in one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Container extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** 12 hexadecimal digits, and its hostname unless another is given. */
  readonly id: string
  /** Its first process, as the host sees it. */
  readonly pid: number
  /** How it ended, once it has. */
  readonly exit: Effect.Effect<ExitStatus, BerthError>
  /**
   * What it writes, from byte zero. Bytes are read when they are asked for: a container whose output nobody reads
   * waits once the pipe is full (256 KiB), and loses nothing. Each byte is given once.
   */
  readonly stdout: Stream.Stream<Uint8Array, BerthError>
  readonly stderr: Stream.Stream<Uint8Array, BerthError>
  /** What it reads, with `stdin: "pipe"`; it sees the end when the sink has. Otherwise takes nothing. */
  readonly stdin: Sink.Sink<void, Uint8Array, never, BerthError>
  /** What the supervisor did to start it. */
  readonly plan: Plan
  /** @internal */
  readonly state: processes.State
}

/**
 * What to run, and as whom. What is left out is as the image says.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProcessOptions extends Security.Options {
  /** Added to the image's environment. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** An absolute path inside the container. Default: the image's, else `/`. */
  readonly cwd?: string | undefined
  /** `user[:group]`, names of the container's own passwd and group, or numbers. */
  readonly user?: string | undefined
  /** Default 0o022. */
  readonly umask?: number | undefined
  /**
   * The AppArmor profile that confines it, which has to be loaded: see `Security.appArmor`. Default: none, and for an exec
   * that of the container. Fails with `Unsupported` where the kernel has no AppArmor.
   */
  readonly appArmor?: string | undefined
  /**
   * Whether its standard streams are a pseudo-terminal, pty(7), of this size, or with `true` of this program's own (24
   * rows and 80 columns where it has none). What it writes is then all on `stdout`, and `stdin` takes what is typed.
   */
  readonly terminal?: boolean | TerminalSize | undefined
  /**
   * `"null"` reads the end at once; `"pipe"` reads what the `stdin` sink takes; `"inherit"` what this program would read.
   * Default `"null"`.
   */
  readonly stdin?: "null" | "pipe" | "inherit" | undefined
  /** `"pipe"` for the streams; `"inherit"` writes where this program writes; `"null"` nowhere. Default `"pipe"`. */
  readonly stdout?: "pipe" | "inherit" | "null" | undefined
  readonly stderr?: "pipe" | "inherit" | "null" | undefined
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
  /** A cgroup that is there, in place of `limits`. */
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
  /** Keeps the log from the beginning, on disk; see `logs`. Default: in memory, once `logs` is asked for. */
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
export interface BufferOptions {
  /** The most bytes of stdout, and of stderr, that are kept; past it the call fails. Default 16 MiB. */
  readonly maxOutputBytes?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface ExecOptions extends ProcessOptions, BufferOptions {}

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
  ): (container: Container) => Effect.Effect<Container, BerthError, Scope.Scope>
  (
    container: Container,
    command: ReadonlyArray<string>,
    options?: ProcessOptions
  ): Effect.Effect<Container, BerthError, Scope.Scope>
} = internal.execStream

/**
 * Both outputs of a container, line by line with the time of their coming. From the first call on, the log reads them,
 * so the container is never held up, and `stdout` and `stderr` have nothing more to give. In memory the newest lines
 * are kept, 3 to 4 MiB of text, where each line counts as 100 bytes more than it has; with `StartOptions.logs` they are on
 * disk, from the beginning, up to the bounds that are given there. A line of more than 16 KiB is cut into several.
 *
 * A reader that is slower than the container is not waited for: of what comes while it reads (`follow`), it misses the lines
 * that are no longer kept in memory.
 *
 * @since 0.1.0
 * @category output
 */
export const logs: (container: Container, options?: LogsOptions) => Stream.Stream<LogEntry, BerthError> =
  internal.logs

/**
 * Sends a signal, by name or number, to the container's first process. Nothing happens where it has ended.
 *
 * As the first of its pid namespace, it is only reached by signals that it handles, and by SIGKILL and SIGSTOP
 * (pid_namespaces(7)).
 *
 * @since 0.1.0
 * @category lifetime
 */
export const signal: {
  (signal: string | number): (container: Container) => Effect.Effect<void, BerthError>
  (container: Container, signal: string | number): Effect.Effect<void, BerthError>
} = internal.signal

/**
 * Tells the container's terminal its new size; its foreground process hears of it by SIGWINCH. Nothing happens where it
 * has no terminal.
 *
 * @since 0.1.0
 * @category terminals
 */
export const resize: {
  (size: TerminalSize): (container: Container) => Effect.Effect<void>
  (container: Container, size: TerminalSize): Effect.Effect<void>
} = internal.resize

/**
 * Asks the container to stop, and kills it when the grace is over. Gives how it ended.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const stop: {
  (options?: StopOptions): (container: Container) => Effect.Effect<ExitStatus, BerthError>
  (container: Container, options?: StopOptions): Effect.Effect<ExitStatus, BerthError>
} = internal.stop

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
 * Connects this program's terminal, or its standard streams where they are none, with the container's until it ends:
 * what is typed goes in, Ctrl-C included, what it writes comes out, and a new size is passed on. Start it with
 * `terminal: true` and `stdin: "pipe"`.
 *
 * @since 0.1.0
 * @category terminals
 */
export const attach: (container: Container) => Effect.Effect<ExitStatus, BerthError> = internal.attach

/**
 * Waits until the container has ended; the same as its `exit`.
 *
 * @since 0.1.0
 * @category lifetime
 */
export const wait: (container: Container) => Effect.Effect<ExitStatus, BerthError> = internal.wait

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
 * watched; names are UTF-8. A process of `exec` has no files of its own: every operation on it fails with `BadResource`.
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
 * Fails with `InvalidOption` for a container of `Image.host` or `Image.fromRootfs`, which have no manifest; `ContainerError` for a process of `exec` and once the scope has closed;
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
