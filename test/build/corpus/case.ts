/** One Dockerfile of the corpus, and what its image may have other than buildah's. */

/** The fields of an image's configuration that are compared. */
export const FIELDS = [
  "Env",
  "Cmd",
  "Entrypoint",
  "User",
  "WorkingDir",
  "ExposedPorts",
  "Volumes",
  "Labels",
  "StopSignal",
  "Healthcheck",
  "Shell",
  "OnBuild",
  "Author"
] as const

export interface Case {
  /** What it covers. */
  readonly name: string
  /** The Dockerfile. `URL` in it is the address of a server with the files of the context. */
  readonly text: string
  readonly args?: Readonly<Record<string, string>>
  readonly target?: string
  /** What buildah gets in place of the text, because it lacks a feature. */
  readonly instead?: { readonly text: string; readonly because: string }
  /** What Berth's image has and buildah's has not. */
  readonly differs?: {
    /** What Docker's documentation says. */
    readonly because: string
    /** Fields with other values; null for none. */
    readonly config?: Readonly<Partial<Record<(typeof FIELDS)[number], unknown>>>
    /** Paths with another line, as `listing` writes it; null for none. */
    readonly tree?: Readonly<Record<string, string | null>>
  }
}
