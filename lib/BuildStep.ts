/**
 * What steps of a build take: the options of `Build.run`, `Build.copy` and `Build.config`, and where their files come from. `Build` has these
 * types too.
 *
 * @since 0.2.0
 */
import type * as Duration from "effect/Duration"
import type * as Redacted from "effect/Redacted"
import type { Build } from "./Build.ts"
import type { Limits } from "./Cgroup.ts"
import type { StartOptions } from "./Container.ts"
import type { ImageConfig } from "./Image.ts"
import type { Bind, File, Tmpfs } from "./Mount.ts"

/**
 * A folder of the host whose files `copy` takes.
 *
 * @since 0.2.0
 * @category models
 */
export interface Context {
  readonly _tag: "Context"
  /** An absolute path. */
  readonly folder: string
  readonly ignore: ReadonlyArray<string>
}

/**
 * A file at an HTTP address, with the name that ends the address, and the mode 0600.
 *
 * @since 0.2.0
 * @category models
 */
export interface Remote {
  readonly _tag: "Remote"
  readonly url: string
  readonly checksum: string | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface CacheOptions {
  readonly name: string
  /**
   * What steps with this cache, of all programs of the store, do at the same time. `"shared"`: they use one folder. `"locked"`: they wait
   * for each other, as package managers such as apt(8) need it, which fail if another one works. `"private"`: each has a folder that no
   * other step uses meanwhile, which has what an earlier step with `"private"` left there. Default: `"shared"`.
   */
  readonly sharing?: "shared" | "private" | "locked" | undefined
  /** Whether the command can only read it. Default false. */
  readonly readOnly?: boolean | undefined
  /**
   * A folder of the host, or another build: a new cache begins with a copy of its files. They are part of the step's key, and with others
   * it is another cache. Default: a new cache is empty.
   */
  readonly from?: Context | Build | undefined
  /** The folder of `from`, from its top. Links are followed, within `from`. Default: all of it. */
  readonly path?: string | undefined
  /**
   * The owner of a new cache's folder, as ids of the container. Caches with another owner or mode are other caches. Default: that of the
   * folder in `from`, else 0, root.
   */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  /** The mode of a new cache's folder. Default: that of the folder in `from`, else 0o755, so that the owner alone can write there. */
  readonly mode?: number | undefined
}

/**
 * A secret with a place of its own.
 *
 * @since 0.2.0
 * @category models
 */
export interface SecretOptions {
  /** A text without NUL, at most 1 MiB. */
  readonly value: string | Redacted.Redacted<string>
  /** The path of its file, relative to `/run/secrets`. Default: the secret's name; no file if there is an `env`. */
  readonly target?: string | undefined
  /** The variable of the command that has the value. Default: none. */
  readonly env?: string | undefined
  /** The owner of the file, as ids of the container. Default 0, root. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  /** The mode of the file, at most 0o777. Default 0o400, so that the owner alone can read it. */
  readonly mode?: number | undefined
}

/**
 * An SSH agent, and who may use it.
 *
 * @since 0.2.0
 * @category models
 */
export interface SshOptions {
  /** The path of its socket: `process.env.SSH_AUTH_SOCK`. Undefined if there is none. */
  readonly socket: string | undefined
  /** Whether the step fails with `InvalidOption` without an agent. Default false: the command then has none. */
  readonly required?: boolean | undefined
  /** The owner of the socket, as ids of the container. Default 0, root. */
  readonly uid?: number | undefined
  readonly gid?: number | undefined
  /** The mode of the socket, at most 0o777. Default 0o600, so that the owner alone can use it. */
  readonly mode?: number | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RunOptions {
  /**
   * Files that the command sees at a path, and that are in no layer: of a folder of the host, or of another build. They are part of the
   * step's key: files of the host by path, mode and content, and those of a build by its layers.
   */
  readonly bind?: ReadonlyArray<BindOptions> | undefined
  /** Variables of this step alone. Variables of the image are set by `config`. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** Default: the image's user. */
  readonly user?: string | undefined
  /** The network of the step. Default: that of `ImageOptions`, else none. */
  readonly network?: StartOptions["network"]
  /**
   * Folders that steps of all builds of a store share under a name, and that are in no layer: `{ "/root/.npm": "npm" }`. What is in
   * them is no part of the step's key. They are volumes whose names begin with `build-cache.NAME`, which `Volume.remove` removes.
   */
  readonly cache?: Readonly<Record<string, string | CacheOptions>> | undefined
  /**
   * Texts that the command finds at `/run/secrets/NAME`, where root alone can read them; or with `SecretOptions` elsewhere, also in a
   * variable. They are in the memory of the step alone: in no layer, history, key or message. Another value does not run the step again.
   */
  readonly secret?: Readonly<Record<string, string | Redacted.Redacted<string> | SecretOptions>> | undefined
  /** More mounts. Their definition is part of the step's key, also the text of a file; the contents of a bind are not. */
  readonly mounts?: ReadonlyArray<Bind | Tmpfs | File> | undefined
  /**
   * Sockets of SSH agents by their paths in the container: `{ "/run/ssh-agent": process.env.SSH_AUTH_SOCK }`. The variable `SSH_AUTH_SOCK`
   * of the command is the first path. The keys stay with the agent, which the command can ask for their names and for signatures, and
   * nothing else; which agent it is does not run the step again. An agent that is undefined is left out.
   */
  readonly ssh?: Readonly<Record<string, string | SshOptions | undefined>> | undefined
  /**
   * `"insecure"` gives the command all capabilities and system calls, and hides nothing of `/proc` and `/sys`: it can take over the
   * machine if Berth runs as root. Default: `"sandbox"`, the security of a container.
   */
  readonly security?: "sandbox" | "insecure" | undefined
  readonly limits?: Limits | undefined
  /** The step fails with `BuildFailed` (`TimedOut`) when this time is over. Default: none. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * Files that a step sees while it runs.
 *
 * @since 0.2.0
 * @category models
 */
export interface BindOptions {
  /** A folder of the host, without what its patterns leave out, or the files of another build. */
  readonly from: Context | Build
  /** The file or folder, from the top of `from`. Links are followed, within `from`. Default: all of it. */
  readonly path?: string | undefined
  /** The path in the container, relative to the working directory. */
  readonly target: string
  /** Whether the command can write there. What it writes is dropped at the end of the step. Default false. */
  readonly writable?: boolean | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface CopyOptions {
  /** Where the files are from: a folder of the host, the files of another build, or an address. */
  readonly from: Context | Build | Remote
  /**
   * Files and folders, from the top of `from`; of a folder, what is in it. Patterns are those of Go's `filepath.Match`: `*`, `?` and
   * `[a-z]` within a name. A link that is named here is followed, within `from`; other links are copied as links. Default: all files.
   */
  readonly paths?: ReadonlyArray<string> | undefined
  /**
   * The target, relative to the working directory. It is a folder if it ends with a slash, or is one in the image already, or if
   * `paths` names several files; else it is the name of the copied file. Missing folders are made. Default: the working directory.
   */
  readonly to?: string | undefined
  /**
   * `user[:group]` of the copies, and of folders that are made for them: names or numbers. Names are those of the image, and a number
   * alone is that of the group too. Default: root for files of the host, and the same ids for files of another build.
   */
  readonly owner?: string | undefined
  /** The mode of all copies, or symbols of chmod(1), as `u=rwX,go=rX`. Default: each has that of its source. */
  readonly mode?: number | string | undefined
  /** Patterns of files that are not copied, as in a `.dockerignore`: relative to a folder of `paths`, or the name of a file. Default: none. */
  readonly exclude?: ReadonlyArray<string> | undefined
  /**
   * Whether the copy of `a/b/c` is `a/b/c` in the target; of `a/./b/c` it is `b/c`. In `paths`, `**` then stands for any number of
   * folders. Default false: it is `c`.
   */
  readonly parents?: boolean | undefined
  /**
   * Whether the contents of tar archives among the files are copied in place of the archives, whatever their names are: without
   * compression, or with gzip, bzip2, xz or zstd. They keep their owners unless `owner` is given. Default false.
   */
  readonly unpack?: boolean | undefined
}

/**
 * The configuration that a step sets. `environment` and `labels` are added to those of the image; other fields replace the image's.
 *
 * @since 0.2.0
 * @category models
 */
export interface ConfigOptions extends Partial<Omit<ImageConfig, "architecture" | "os" | "exposedPorts">> {
  /** Ports that are added to those of the image: `8080`, `"53/udp"`. */
  readonly expose?: ReadonlyArray<number | string> | undefined
}

/**
 * Options of `git`.
 *
 * @since 0.2.0
 * @category models
 */
export interface GitOptions {
  /** Whether the files include the folder `.git`, with this commit alone. Default false. */
  readonly keepGitDir?: boolean | undefined
  /**
   * Whether submodules are fetched, from the addresses that the repository says. Default: a build fails if there are any, since these can be
   * addresses of this machine's network.
   */
  readonly submodules?: boolean | undefined
  /** The token for the repository, as hosts of git take it for a password. It is in no key, message or history. Default: none. */
  readonly token?: string | Redacted.Redacted<string> | undefined
  /** The socket of the SSH agent whose keys open the repository at an address of SSH: `process.env.SSH_AUTH_SOCK`. Default: none. */
  readonly ssh?: string | undefined
  /** The keys of SSH servers: lines of a known_hosts, sshd(8). Others are refused. Default: `~/.ssh/known_hosts`, and the machine's. */
  readonly knownHosts?: string | undefined
}
