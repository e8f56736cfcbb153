/**
 * Builds of images: steps as values, each on top of the one before it. Nothing runs until `image` is run, and then only what has not
 * been made before: a step is known by its definition, its inputs and the layers below it, in all programs that share a store.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import type { ConfigOptions, Context, CopyOptions, GitOptions, Remote, RunOptions } from "./BuildStep.ts"
import type { Container, StartOptions } from "./Container.ts"
import type { GetOptions, Image } from "./Image.ts"
import * as internal from "./internal/build/build.ts"
import type { Node } from "./internal/build/node.ts"
import { later } from "./internal/util/later.ts"

export type {
  BindOptions,
  CacheOptions,
  ConfigOptions,
  Context,
  CopyOptions,
  GitOptions,
  Remote,
  RunOptions,
  SecretOptions,
  SshOptions
} from "./BuildStep.ts"

const reading = later(() => import("./internal/dockerfile/dockerfile.ts"))

/**
 * @since 0.2.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

/**
 * @since 0.2.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * The steps of an image. It is a value: the same steps can be the beginning of several builds.
 *
 * @since 0.2.0
 * @category models
 */
export interface Build extends Pipeable, Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** @internal */
  readonly node: Node
}

/**
 * A place for the layers of builds: the name of an image in a registry, as `Image.push` takes it, or a folder of the host, which is
 * then an OCI image layout.
 *
 * @since 0.2.0
 * @category models
 */
export type CachePlace = string | { readonly folder: string }

/**
 * @since 0.2.0
 * @category models
 */
export interface ImageOptions extends Pick<GetOptions, "pull" | "platform"> {
  /**
   * The image's name in the store, in the form that `Image.pull` writes; its layers then become blobs, which `Image.push` and `Image.save`
   * need. Default: none, and the image exists to start containers from it, and as the beginning of further builds.
   */
  readonly tag?: string | undefined
  /** The network of all steps that choose none. Default: `"none"`. */
  readonly network?: StartOptions["network"]
  /** Whether steps that have been made before are taken from the store. Without, other builds do not take these steps either. Default true. */
  readonly cache?: boolean | undefined
  /**
   * Where layers that the store lacks may come from: what a build has written by `cacheTo`. A cache that is not there or cannot be read is
   * no error: the steps run, and a warning is logged. Who can write to it decides what the image contains. Default: none.
   */
  readonly cacheFrom?: CachePlace | ReadonlyArray<CachePlace> | undefined
  /**
   * Where the layers of all steps are written after the build, in place of what is there: for `cacheFrom` on another machine. Their images
   * below have to be equal there. Of more than 500 layers, it has the last ones. Default: nowhere.
   */
  readonly cacheTo?: CachePlace | undefined
  /** How many steps run at once. Default: the number of processors. */
  readonly concurrency?: number | undefined
  /**
   * The time that a named image says it was made, and the latest that its new files have. Default: `SOURCE_DATE_EPOCH` of the
   * environment in seconds, else now. Equal steps on an equal base with an equal time make an equal image.
   */
  readonly created?: Date | undefined
  /** How new layers of a named image are compressed. Default: `"gzip"`, which every registry and tool reads. */
  readonly compression?: "gzip" | "zstd" | undefined
  /**
   * Whether the manifest of a named image says what the image was made of, in annotations: the first image
   * (`org.opencontainers.image.base.name` and `.base.digest`), and in `vnd.berth.build.steps`, as JSON, each step with a digest of each of its
   * inputs by its name. Names of secrets are among them, and no values. Default false.
   */
  readonly provenance?: boolean | undefined
  /** Gets each event of the build. */
  readonly onEvent?: ((event: BuildEvent) => void) | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export type BuildEvent = {
  /** The number of the step, in the order in which the build came to it. */
  readonly step: number
  /** The step as its author wrote it: `RUN npm ci`. */
  readonly text: string
  /** The file and line that have the step: `Dockerfile:12`. */
  readonly place: string | undefined
} & (
  | {
      readonly _tag: "Started"
      /** Why the step runs: the inputs that have changed since its last build, as in `Explanation`. Empty if none is recorded. */
      readonly reasons: ReadonlyArray<string>
    }
  | { readonly _tag: "Failed" }
  | {
      /** The step had been made before. */
      readonly _tag: "Cached"
      /** The cache of `cacheFrom` that has its layer; undefined if the store has it. */
      readonly from: string | undefined
    }
  | { readonly _tag: "Output"; readonly stream: "stdout" | "stderr"; readonly line: string }
  | { readonly _tag: "Done"; readonly millis: number }
)

/**
 * What a build would do with a step that makes a layer.
 *
 * @since 0.2.0
 * @category models
 */
export interface Explanation {
  /** The number of the step, in the order in which the build comes to it. */
  readonly step: number
  /** The step as its author wrote it. */
  readonly text: string
  /** The file and line that have the step. */
  readonly place: string | undefined
  /** Whether its layer is in the store, so that it does not run. */
  readonly isMade: boolean
  /** Why it would run: `the file package.json has changed`, `the variable VERSION is new`. Empty if it would not. */
  readonly reasons: ReadonlyArray<string>
}

/**
 * Options of `export`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ExportOptions extends ImageOptions {
  /** The file or folder of the host, relative to this program's working directory. */
  readonly to: string
  /**
   * `"folder"` copies files, owned by the user of this program, without set-user-ID bits and capabilities; an existing folder gets them
   * beside its own. `"tar"` is an archive of them, with owners and modes. The others are the image, as `Image.save` writes it. Default:
   * `"folder"`.
   */
  readonly format?: "folder" | "tar" | "oci-archive" | "oci-layout" | "docker-archive" | undefined
  /**
   * For `"folder"` and `"tar"`: a file or folder of the image; the contents of a folder if it ends in `/.`. Default: all files, `"/."`.
   */
  readonly path?: string | undefined
}

/**
 * Options of `shell`.
 *
 * @since 0.2.0
 * @category models
 */
export interface ShellOptions extends ImageOptions {
  /** Options of the container. Default: those of the failed step, with the command `/bin/sh`. */
  readonly start?: StartOptions | undefined
}

/**
 * A container on the files before the step that fails.
 *
 * @since 0.2.0
 * @category models
 */
export interface Shell {
  readonly container: Container
  /** The failure; undefined if no step fails, and then the container has the files of the result. */
  readonly failure: BerthError | undefined
}

/**
 * @since 0.2.0
 * @category guards
 */
export const isBuild: (u: unknown) => u is Build = internal.isBuild

/**
 * The beginning of a build: the name of an image as `Image.get` takes it, an image, or an effect that gets one.
 *
 * @since 0.2.0
 * @category constructors
 */
export const from: (image: string | Image | Effect.Effect<Image, BerthError, Berth>) => Build = internal.from

/**
 * A folder of the host, with patterns of files that are left out, as in a `.dockerignore`: the last pattern that matches decides, and one
 * that begins with `!` is an exception. The path is relative to this program's working directory.
 *
 * @since 0.2.0
 * @category constructors
 */
export const local: (
  path: string,
  options?: { readonly ignore?: ReadonlyArray<string> | undefined }
) => Context = internal.local

/**
 * A file at an HTTP address, for `copy`. With a checksum, `sha256:` and 64 digits, it is fetched if no step has copied it before, and the
 * step fails for other contents; without one, each build fetches it. This program fetches it, through the proxy of its environment, and
 * not a container. At most 5 redirects are followed, none from https to http, and it is at most 16 GiB.
 *
 * @since 0.2.0
 * @category constructors
 */
export const remote: (url: string, options?: { readonly checksum?: string | undefined }) => Remote =
  internal.remote

/**
 * The files of a git repository, owned by root: for `copy`, for binds, and as a context. The address is `https://HOST/PATH`,
 * `ssh://USER@HOST:PORT/PATH` or `USER@HOST:PATH`, with `#REF` for a branch, a tag or a whole commit, and `#REF:FOLDER` for a folder. Each build asks the server for the commit, unless the address
 * has it, and fetches that commit alone, if no step has copied it before. The `git` of this machine does this, through the proxy of the
 * environment, without the user's configuration, hooks, credentials and programs; with TLS, it is not led to a server without. By SSH it
 * has the keys of the agent in `ssh` alone, and speaks to servers that are known alone.
 *
 * A build fails with `InvalidOption` for another address, such as one with a password, and with `BuildFailed` (`Unavailable`) for what git
 * cannot get, and if this machine has no `git`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * import { Build } from "berth"
 *
 * const sources = Build.git("https://git.example.com/team/app.git#v1.2:src")
 * const app = Build.from("127.0.0.1:5000/library/alpine:3").pipe(Build.copy({ from: sources, to: "/src" }))
 */
export const git: (address: string, options?: GitOptions) => Build = internal.git

/**
 * Runs a command in a container; what it writes is a layer of the image. A text is a command of the image's `/bin/sh`.
 *
 * @since 0.2.0
 * @category steps
 */
export const run: {
  (command: string | ReadonlyArray<string>, options?: RunOptions): (build: Build) => Build
  (build: Build, command: string | ReadonlyArray<string>, options?: RunOptions): Build
} = internal.run

/**
 * Copies files of a folder of the host, or of another build, into the image.
 *
 * @since 0.2.0
 * @category steps
 */
export const copy: {
  (options: CopyOptions): (build: Build) => Build
  (build: Build, options: CopyOptions): Build
} = internal.copy

/**
 * Sets the working directory of later steps and of containers, relative to the one before; it is made for the image's user if the image lacks it.
 *
 * @since 0.2.0
 * @category steps
 */
export const workdir: {
  (path: string): (build: Build) => Build
  (build: Build, path: string): Build
} = internal.workdir

/**
 * Changes the configuration of the image.
 *
 * @since 0.2.0
 * @category steps
 */
export const config: {
  (options: ConfigOptions): (build: Build) => Build
  (build: Build, options: ConfigOptions): Build
} = internal.config

/**
 * Builds the image: runs the steps that have not been made before, those that do not depend on each other at the same time.
 *
 * Steps of an image for another platform run if this machine has an emulator in binfmt_misc with the flag F, as the package qemu-user-static
 * does. Fails with `BuildFailed` for a step that fails, as `Image.get` does for the first image, and as `Container.start` does. What steps made
 * before the failure stays in the store, until a collection (`Store.gc`) finds it unused for seven days.
 *
 * @since 0.2.0
 * @category running
 * @example
 * import { Build } from "berth"
 *
 * const app = Build.from("127.0.0.1:5000/library/alpine:3").pipe(
 *   Build.workdir("/app"),
 *   Build.copy({ from: Build.local("."), paths: ["package.json"] }),
 *   Build.run("wc -c package.json > size"),
 *   Build.config({ command: ["cat", "size"] })
 * )
 * const program = Build.image(app, { tag: "team/app:1" })
 */
export const image: {
  (options?: ImageOptions): (build: Build) => Effect.Effect<Image, BerthError, Berth>
  (build: Build, options?: ImageOptions): Effect.Effect<Image, BerthError, Berth>
} = internal.image

const exported: {
  (options: ExportOptions): (build: Build) => Effect.Effect<void, BerthError, Berth>
  (build: Build, options: ExportOptions): Effect.Effect<void, BerthError, Berth>
} = internal.exported

export {
  /**
   * Builds, and writes the result to the host: its files, an archive of them or one of them, or the image for other tools. A file appears
   * completely or not at all.
   *
   * Fails as `image` does, with `InvalidOption` for a format that is unknown and a target that `Image.save` refuses, and with
   * `OperationFailed` for a path that the image lacks.
   *
   * @since 0.2.0
   * @category running
   * @example
   * import { Build } from "berth"
   *
   * const program = Build.from("127.0.0.1:5000/library/alpine:3").pipe(
   *   Build.run("mkdir /out; date > /out/made"),
   *   Build.export({ path: "/out/.", to: "dist" })
   * )
   */
  exported as export
}

/**
 * Tells which steps a build would run, and why: which input has changed since the last build with the same steps before it. Nothing
 * runs. A step after one that runs is told to run, even if an equal result of the one before would end the change there, and
 * `cacheFrom` is not looked at. Files at addresses without a checksum are fetched, to see whether they have changed.
 *
 * @since 0.2.0
 * @category getters
 */
export const explain: {
  (options?: ImageOptions): (build: Build) => Effect.Effect<ReadonlyArray<Explanation>, BerthError, Berth>
  (build: Build, options?: ImageOptions): Effect.Effect<ReadonlyArray<Explanation>, BerthError, Berth>
} = internal.explain

/**
 * Builds, and starts a container on the files before the step that fails, with the user, variables, mounts and network of that step: to
 * look for the reason. It lives as long as the scope.
 *
 * Fails as `Container.start` does.
 *
 * @since 0.2.0
 * @category running
 */
export const shell: {
  (options?: ShellOptions): (build: Build) => Effect.Effect<Shell, BerthError, Berth | Scope.Scope>
  (build: Build, options?: ShellOptions): Effect.Effect<Shell, BerthError, Berth | Scope.Scope>
} = internal.shell

/**
 * Options of `dockerfile`.
 *
 * @since 0.2.0
 * @category models
 */
export interface DockerfileOptions extends ImageOptions {
  /**
   * The folder that COPY and ADD copy from, or the address of a git repository as `git` takes it, with a path that ends in `.git`. Its
   * `.dockerignore`, or `NAME.dockerignore` beside the Dockerfile, leaves files out.
   */
  readonly context: string
  /** The path of the Dockerfile, relative to the context. Default: `Dockerfile`. */
  readonly file?: string | undefined
  /** The text of the Dockerfile, in place of a file. */
  readonly text?: string | undefined
  /** The name or the number of the stage to build. Default: the last one. */
  readonly target?: string | undefined
  /** The values of ARG instructions. */
  readonly args?: Readonly<Record<string, string>> | undefined
  /**
   * What FROM, `COPY --from` and mounts find by these names: folders, addresses of git repositories, images as `docker-image://NAME` or as
   * `oci-layout://FOLDER`, with `:TAG` or `@DIGEST` where the layout has several, and builds.
   */
  readonly contexts?: Readonly<Record<string, string | Build>> | undefined
  /** The values of `RUN --mount=type=secret`, by their ids. `GIT_AUTH_TOKEN.HOST` is the token for git repositories of a host. */
  readonly secrets?: Readonly<Record<string, string | Redacted.Redacted<string>>> | undefined
  /**
   * The sockets of SSH agents for `RUN --mount=type=ssh`, by their ids: `{ default: process.env.SSH_AUTH_SOCK }`. That of `default` is for
   * git repositories at addresses of SSH as well.
   */
  readonly ssh?: Readonly<Record<string, string | undefined>> | undefined
  /** The keys of SSH servers for git repositories, as in `GitOptions`. */
  readonly knownHosts?: string | undefined
  /**
   * What instructions may ask for besides the rights of a container: `"network.host"` for `RUN --network=host`, which `network: "host"` is
   * as well, and `"security.insecure"` for `RUN --security=insecure`. Default: nothing.
   */
  readonly allow?: ReadonlyArray<"network.host" | "security.insecure"> | undefined
}

/**
 * The build of a Dockerfile: its steps as a value, which more steps can follow.
 *
 * Fails with `BuildFailed`, with the file and line: `Syntax` for what cannot be read, and `Unsupported` for git repositories by
 * the protocol `git://`, mounts of other types and options than Docker's documentation of `RUN --mount` has, and rights that `allow` does not
 * name. No flag is ignored.
 * Fails with `InvalidOption` for a target that is not there, and as `Image.get` does for the first images.
 *
 * @since 0.2.0
 * @category constructors
 */
export const fromDockerfile = (options: DockerfileOptions): Effect.Effect<Build, BerthError, Berth> =>
  reading((module) => module.dockerfile(options)).pipe(
    Effect.withSpan("berth.Build.fromDockerfile", {
      attributes: { "berth.build.context": options.context.replace(/\/\/[^/]*@/, "//") }
    })
  )

/**
 * Builds the image of a Dockerfile: `fromDockerfile`, and then `image`.
 *
 * @since 0.2.0
 * @category running
 * @example
 * import { Build } from "berth"
 *
 * const program = Build.dockerfile({ context: ".", target: "production", args: { VERSION: "1" }, tag: "team/app:1" })
 */
export const dockerfile = (options: DockerfileOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.flatMap(fromDockerfile(options), (build) => image(build, options))
