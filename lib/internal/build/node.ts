/** The steps of a build as data, each with the step before it. */
import type * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type {
  CacheOptions,
  Context,
  CopyOptions,
  Remote,
  RunOptions,
  SecretOptions,
  SshOptions
} from "../../BuildStep.ts"
import type { Image, ImageConfig } from "../../Image.ts"

/** The files of a commit of a git repository. */
export interface Git {
  readonly _tag: "Git"
  /** The address without `#`. */
  readonly url: string
  /** A branch, a tag or a whole commit; undefined for that of HEAD. */
  readonly ref: string | undefined
  /** The folder whose files it stands for. */
  readonly folder: string
  /** What is wrong with the address that was given. */
  readonly problem?: string | undefined
  readonly keepGitDir: boolean
  /** Whether submodules are fetched; if it is undefined, there may be none. */
  readonly submodules: boolean | undefined
  /** The commit, if it is known, and the name by which the server has it. */
  readonly resolved?: { readonly commit: string; readonly name: string } | undefined
  /** The commit that it has to be. */
  readonly checksum: string | undefined
  /** It is in no key, message or history. */
  readonly token: SecretOptions["value"] | undefined
  /** The socket of the SSH agent, for an address of SSH. */
  readonly agent: string | undefined
  /** The keys of SSH servers, as in a known_hosts; undefined for those that the user knows. */
  readonly knownHosts: string | undefined
}

export type Source = string | Image | Effect.Effect<Image, BerthError, Berth>

interface Step {
  /** The step as its author wrote it: the message of an error and the history of the image show it. */
  readonly text: string
  /** The file and line that have the step: `Dockerfile:12`. */
  readonly place: string | undefined
}

export interface From {
  readonly _tag: "From"
  readonly source: Source
  /** For the name of an image. Default: the platform of the build. */
  readonly platform?: string | undefined
  /** Variables that are added to those of the image. */
  readonly environment?: Readonly<Record<string, string>> | undefined
}

export interface Run extends Step {
  readonly _tag: "Run"
  readonly parent: Node
  readonly command: ReadonlyArray<string>
  readonly options: Omit<RunOptions, "bind" | "cache" | "secret" | "ssh">
  readonly binds: ReadonlyArray<Bind>
  readonly caches: ReadonlyArray<Cache>
  readonly secrets: ReadonlyArray<Secret>
  /** Without those that are absent and may be. */
  readonly agents: ReadonlyArray<Agent>
}

/** A folder that steps share, at a path of the container. */
export interface Cache extends Omit<CacheOptions, "from" | "path"> {
  readonly target: string
  /** The folder whose files a new cache has. */
  readonly base: Shown | undefined
}

/** A text that only the command sees. Its value is in no key, message or history. */
export interface Secret extends SecretOptions {
  readonly name: string
}

/** The socket of an SSH agent, at a path of the container. */
export interface Agent extends Omit<SshOptions, "required"> {
  readonly target: string
}

/** Files of another build. */
export interface Shown {
  readonly from: Node
  /** From the root of its files. */
  readonly path: string
}

/** Files of another build that a command sees. */
export interface Bind extends Shown {
  readonly target: string
  readonly writable: boolean
}

/** The builds whose files a command sees. */
export const shownBy = ({ binds, caches }: Run): ReadonlyArray<Node> => [
  ...new Set([...binds, ...caches.flatMap(({ base }) => base ?? [])].map(({ from }) => from))
]

export interface Copy extends Step {
  readonly _tag: "Copy"
  readonly parent: Node
  /** What it copies, in this order. */
  readonly parts: ReadonlyArray<Part>
  readonly options: Omit<CopyOptions, "from" | "paths" | "unpack">
}

/** Files of one origin that a step copies. */
export interface Part {
  readonly from: Context | Remote | Git | Node
  readonly paths: ReadonlyArray<string>
  /** Whether the contents of archives are copied in place of the archives. */
  readonly unpack: boolean
}

export interface Workdir extends Step {
  readonly _tag: "Workdir"
  readonly parent: Node
  readonly path: string
}

export interface Configure extends Step {
  readonly _tag: "Configure"
  readonly parent: Node
  /** What the step changes, given the configuration before it. */
  readonly change: (config: ImageConfig) => Partial<ImageConfig>
  /** Fields of the configuration that Berth does not use, in the specification's names; `undefined` removes one. */
  readonly raw?: Readonly<Record<string, unknown>> | undefined
  /** The author of the image. */
  readonly author?: string | undefined
}

export type Node = From | Run | Copy | Workdir | Configure
