/** The parts of a copy: what their files are, and the files themselves, opened. */
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, type BuildFailed, InvalidOption } from "../../BerthError.ts"
import type { Remote } from "../../BuildStep.ts"
import type { Image } from "../../Image.ts"
import * as RootFs from "../../RootFs.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import * as Kept from "../layer/kept.ts"
import { unpackArchive } from "../layer/unpack.ts"
import { O_PATH } from "../system/addon.ts"
import { compressionOf, HEADER_BYTES } from "./archive.ts"
import type { Evaluation, Made } from "./evaluate.ts"
import { failedStep, failure } from "./failure.ts"
import * as fileIndex from "./fileIndex.ts"
import * as files from "./files.ts"
import * as gits from "./git.ts"
import { compile } from "./ignore.ts"
import type { Copy, Git, Node, Part } from "./node.ts"
import { fetched, nameOf, Unavailable } from "./remote.ts"

/** Files of a part, which exist until the scope closes. */
export interface Opened {
  readonly top: number
  readonly selection: files.Selection
  /** The folders with the contents of archives. */
  readonly unpacked: ReadonlyMap<files.Source, number>
}

export interface Prepared extends Pick<Made, "key" | "files" | "refined"> {
  readonly open: Effect.Effect<Opened, BerthError, Berth | Scope.Scope>
}

/** Whether a part is of a build, whose files have owners that a copy keeps. */
export const isBuild = (from: Part["from"]): from is Node =>
  from._tag !== "Context" && from._tag !== "Remote" && from._tag !== "Git"

export const failedCopy =
  (berth: Berth, step: Copy, from: string) =>
  (error: unknown): BerthError => {
    const failed = (reason: BuildFailed["reason"], detail: string) => failure(step, reason, detail, error)
    if (error instanceof files.NoMatch)
      return failed(
        "NoMatch",
        `${from} has no file ${error.pattern}, or its patterns of ignored files leave it out`
      )
    if (error instanceof files.Changed)
      return failed("Changed", `${error.message}: build again when nothing writes to ${from}`)
    if (error instanceof Unavailable) return failed("Unavailable", `${from}: ${error.message}`)
    if (error instanceof SyntaxError)
      return new InvalidOption({ option: "paths", value: step.text, expected: error.message, cause: error })
    return failedStep(berth, step)(error)
  }

const opened = (folder: string, step: Copy): Effect.Effect<number, BerthError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.try({
      try: () => inRoot.openHost(folder, inRoot.O_FOLDER),
      catch: failedAs(`${step.text}: ${folder}`)
    }),
    (fd) => Effect.sync(() => inRoot.using(fd, () => {}))
  )

/** The contents of the archives among selected files. What looks like an archive and is none is copied as it is. */
const unpack = (
  berth: Berth,
  node: Copy,
  top: number,
  { sources }: files.Selection
): Effect.Effect<Opened["unpacked"], BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const found = new Map<files.Source, number>()
    for (const source of sources) {
      if (source.isFolder) continue
      const file = yield* Effect.acquireRelease(
        Effect.try({ try: () => inRoot.open(top, source.path, O_PATH), catch: failedAs(node.text) }),
        (fd) => Effect.sync(() => inRoot.using(fd, () => {}))
      )
      const path = inRoot.via(file)
      const head = Buffer.alloc(HEADER_BYTES)
      const compression = yield* Effect.try({
        try: () => {
          if (!fs.statSync(path).isFile()) return undefined
          const own = fs.openSync(path, "r")
          try {
            return compressionOf(head.subarray(0, fs.readSync(own, head, 0, head.length, 0)))
          } finally {
            fs.closeSync(own)
          }
        },
        catch: failedAs(node.text)
      })
      if (compression === undefined) continue
      // In the state folder: a sweep removes the files of a killed program.
      const folder = `${berth.supervisor.folder}/archive-${randomBytes(8).toString("hex")}`
      const subject = node.place === undefined ? source.path : `${node.place}: ${source.path}`
      if (yield* unpackArchive(berth, folder, path, compression, subject))
        found.set(source, yield* merged(berth, [folder]))
    }
    return found
  })

/** What a part is, to find the layer that has its files, and how to open it. */
export const prepare = (
  { berth }: Evaluation,
  node: Copy,
  part: Part,
  image: Image | undefined
): Effect.Effect<Prepared, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { exclude = [], parents = false } = node.options
    const { from, paths } = part
    const shown = isBuild(from) ? image!.reference : from._tag === "Context" ? from.folder : from.url
    const failed = failedCopy(berth, node, shown)
    const compiled = (patterns: ReadonlyArray<string>) =>
      Effect.try({ try: () => compile(patterns), catch: failed })
    const ignore = yield* compiled(from._tag === "Context" ? from.ignore : [])
    const wanted = { patterns: paths, ignore, exclude: yield* compiled(exclude), parents }
    const select = (top: number, { patterns }: Pick<files.Wanted, "patterns">) =>
      Effect.gen(function* () {
        const index = yield* Effect.promise(() => fileIndex.open(berth, shown))
        return yield* Effect.mapError(
          inRoot.promised(async (signal) => {
            const options = { index, withOwners: image !== undefined, signal }
            const selection = await files.select(top, { ...wanted, patterns }, options)
            await index.save()
            return selection
          }),
          failed
        )
      })
    const keyed = ({ digest, files, sources }: files.Selection) => ({
      key: [sources.map(({ isFolder, name }) => [name, isFolder]), part.unpack, digest],
      files
    })
    const ready = (top: number, selection: files.Selection) =>
      Effect.map(
        part.unpack ? unpack(berth, node, top, selection) : Effect.succeed<Opened["unpacked"]>(new Map()),
        (unpacked): Opened => ({ top, selection, unpacked })
      )
    const selected = (top: number) => Effect.map(select(top, wanted), (selection) => ({ top, selection }))
    if (from._tag === "Remote") return yield* prepareRemote(berth, node, part, from, { select, keyed, ready })
    if (from._tag === "Git") return yield* prepareGit(berth, node, part, from, { select, ready })
    // The layers of an image in the store never change: they say what its files are without a look at them.
    if (image?.layers.every((layer) => layer.startsWith(`${berth.layers}/`)) === true) {
      const { layers } = image
      // Without the folders that a start has for its mounts.
      const source =
        layers.length === 0 ? opened(`${berth.supervisor.folder}/empty`, node) : merged(berth, layers)
      const all = Effect.flatMap(source, selected)
      return {
        key: [paths, part.unpack, Kept.relative(berth, image.layers)],
        // Other layers can have equal files.
        refined: Effect.scoped(Effect.map(all, ({ selection }) => keyed(selection))),
        open: Effect.flatMap(all, ({ selection, top }) => ready(top, selection))
      }
    }
    const source =
      from._tag === "Context"
        ? opened(from.folder, node)
        : Effect.map(RootFs.overlay(image!, { upper: "memory" }), ({ mount }) => mount)
    const { selection, top } = yield* Effect.flatMap(source, selected)
    return { ...keyed(selection), open: ready(top, selection) }
  })

interface Ways {
  readonly select: (
    top: number,
    wanted: Pick<files.Wanted, "patterns">
  ) => Effect.Effect<files.Selection, BerthError>
  readonly keyed: (selection: files.Selection) => Pick<Made, "key" | "files">
  readonly ready: (top: number, selection: files.Selection) => Prepared["open"]
}

/** A commit is its files, so that it is checked out only if no layer has it. */
const prepareGit = (
  berth: Berth,
  node: Copy,
  { paths }: Part,
  git: Git,
  { ready, select }: Pick<Ways, "select" | "ready">
): Effect.Effect<Prepared, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    if (git.problem !== undefined)
      return yield* new InvalidOption({
        option: "address",
        value: "a text that is not shown",
        expected: git.problem
      })
    const failed = failedCopy(berth, node, git.url)
    const found = yield* Effect.mapError(gits.resolved(berth, git), failed)
    const { folder, keepGitDir, submodules = false, url } = git
    return {
      key: ["git", url, found.commit, folder, keepGitDir, submodules, paths],
      files: new Map([[`${url}#${git.ref ?? ""}`, found.commit]]),
      open: Effect.gen(function* () {
        const checkout = yield* Effect.mapError(gits.checkedOut(berth, git, found), failed)
        const top = yield* opened(checkout, node)
        return yield* ready(top, yield* select(top, { patterns: [folder.replace(/[*?[\\]/g, "\\$&")] }))
      })
    }
  })

/** With a checksum, a file is fetched only if no layer has it; without, always. */
const prepareRemote = (
  berth: Berth,
  node: Copy,
  { unpack }: Part,
  remote: Remote,
  { keyed, ready, select }: Ways
): Effect.Effect<Prepared, BerthError, Berth | Scope.Scope> =>
  Effect.gen(function* () {
    const { checksum, url } = remote
    const name = nameOf(url) ?? "index"
    const get = Effect.gen(function* () {
      const folder = yield* Effect.mapError(fetched(berth, remote, name), failedCopy(berth, node, url))
      const top = yield* opened(folder, node)
      const selection = yield* select(top, { patterns: [name.replace(/[*?[\\]/g, "\\$&")] })
      return { top, selection }
    })
    if (checksum !== undefined) {
      const key = ["remote", name, unpack, checksum]
      return { key, open: Effect.flatMap(get, ({ selection, top }) => ready(top, selection)) }
    }
    const { selection, top } = yield* get
    return { ...keyed(selection), open: ready(top, selection) }
  })
