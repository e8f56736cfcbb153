/** Where a Dockerfile and the files that it copies are: in a folder of the host, or in a git repository. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { DockerfileOptions } from "../../Build.ts"
import type { Context } from "../../BuildStep.ts"
import { gitBuild, image } from "../build/build.ts"
import { failure } from "../build/failure.ts"
import * as gits from "../build/git.ts"
import { linesOf } from "../build/ignore.ts"
import type { Node } from "../build/node.ts"
import * as inRoot from "../files/rooted.ts"
import { scratch } from "../image/image.ts"
import { ENOENT, ENOTDIR } from "../util/errno.ts"
import { isRepository } from "../util/gitAddress.ts"
import { gitOf } from "./copy.ts"

const TEXT_BYTES_MAX = 4 * 1024 * 1024

export interface Origin {
  readonly context: Context | Node
  /** The name of the Dockerfile, for places. */
  readonly file: string
  readonly text: string
}

/** The text of a file below a folder, with links followed inside of it; undefined if there is none. */
const readBelow = (folder: string, file: string): string | undefined => {
  try {
    return inRoot.using(inRoot.openHost(folder, inRoot.O_FOLDER), (root) =>
      inRoot.using(inRoot.open(root, file, inRoot.O_RDONLY | inRoot.O_NONBLOCK | inRoot.O_NOCTTY), (fd) => {
        const status = fs.statSync(inRoot.via(fd))
        if (!status.isFile()) throw new Error("it is no regular file")
        if (status.size > TEXT_BYTES_MAX) throw new Error("it is larger than 4 MiB")
        return fs.readFileSync(inRoot.via(fd), "utf8")
      })
    )
  } catch (error) {
    if (inRoot.isErrno(error, ENOENT, ENOTDIR)) return undefined
    throw error
  }
}

/** What the failure of a read says: `option` has the wrong value. */
const wrong =
  (option: string, value: string, expected: string) =>
  (cause: unknown): InvalidOption =>
    new InvalidOption({ option, value, expected: `${expected}: ${(cause as Error).message}`, cause })

const notThere = new Error("there is no such file")

const inFolder = (options: DockerfileOptions): Effect.Effect<Origin, BerthError> => {
  if (/^https?:\/\//i.test(options.context))
    return new InvalidOption({
      option: "context",
      value: "an address",
      expected: "a folder, or the address of a git repository with a path that ends in .git"
    })
  const folder = path.resolve(options.context)
  const full = path.resolve(folder, options.file ?? "Dockerfile")
  const relative = path.relative(process.cwd(), full)
  return Effect.try({
    try: () => {
      const read = (file: string) => readBelow("/", file)
      const text = options.text ?? read(full)
      if (text === undefined) throw notThere
      const ignore = read(`${full}.dockerignore`) ?? read(`${folder}/.dockerignore`) ?? ""
      const context = { _tag: "Context", folder, ignore: linesOf(ignore) } as const
      return { context, file: relative.startsWith("..") ? full : relative, text }
    },
    catch: wrong("file", full, "a Dockerfile")
  })
}

/** The files of a repository without those that the patterns leave out. */
const without = (from: Node, ignore: ReadonlyArray<string>): Node => ({
  _tag: "Copy",
  parent: { _tag: "From", source: scratch },
  parts: [{ from, paths: ["."], unpack: false }],
  options: { to: "/", exclude: ignore },
  text: "CONTEXT .dockerignore",
  place: undefined
})

const inRepository = (options: DockerfileOptions): Effect.Effect<Origin, BerthError, Berth> =>
  Effect.gen(function* () {
    const { file = "Dockerfile", knownHosts, secrets = {}, ssh = {} } = options
    const git = yield* Effect.try({
      try: () => gitOf(options.context, { knownHosts, secrets, ssh }, 1),
      catch: wrong("context", "a text that is not shown", "the address of a git repository")
    })
    // The Dockerfile and the files are those of one commit.
    const resolved = yield* Effect.mapError(gits.resolved(yield* Berth, git), (error) =>
      failure(
        { text: `CONTEXT ${git.url}`, place: undefined },
        "Unavailable",
        (error as Error).message,
        error
      )
    )
    const build = gitBuild({ ...git, resolved })
    const { layers } = yield* image(build, {})
    return yield* Effect.try({
      try: () => {
        const read = (name: string) => readBelow(layers.at(-1)!, name)
        const text = options.text ?? read(file)
        if (text === undefined) throw notThere
        const lines = linesOf(read(`${file}.dockerignore`) ?? read(".dockerignore") ?? "")
        const context = lines.some((line) => line.trim() !== "") ? without(build.node, lines) : build.node
        return { context, file, text }
      },
      catch: wrong("file", file, "a Dockerfile of the repository")
    })
  })

export const originOf = (options: DockerfileOptions): Effect.Effect<Origin, BerthError, Berth> =>
  isRepository(options.context) ? inRepository(options) : inFolder(options)
