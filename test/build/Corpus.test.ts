/**
 * Builds a corpus of Dockerfiles with Berth and with buildah, and compares the images: configuration and files. Where they may differ, the
 * corpus says how and why.
 */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import { isDeepStrictEqual } from "node:util"
import * as Effect from "effect/Effect"
import { Berth, Build, Image } from "../../lib/index.ts"
import { documentsOf } from "../../lib/internal/image/derive.ts"
import { merged } from "../../lib/internal/layer/crossLayerLinks.ts"
import { type Buildah, type Built, buildahIn, listing, whyNoBuildah } from "../support/buildah.ts"
import { suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { type Case, FIELDS } from "./corpus/case.ts"
import { makeContext } from "./corpus/context.ts"
import { corpus } from "./corpus/index.ts"

/** buildah takes most of a second for each of them: all are compared with `BERTH_CORPUS=all`. */
const isChosen = (index: number): boolean => process.env.BERTH_CORPUS === "all" || index % 6 === 0

const whyNot = (index: number) =>
  whyNoBusybox || whyNoBuildah || (isChosen(index) ? false : "one of six, unless BERTH_CORPUS is all")

/** Empty values are those that are not there. */
const known = (value: unknown): unknown =>
  value === null || value === "" || (typeof value === "object" && Object.keys(value as object).length === 0)
    ? undefined
    : value

/** The compared fields that are set; `/` is where a container without a working directory begins. The label of buildah is not compared. */
const fieldsOf = (config: Built["config"]): Record<string, unknown> =>
  Object.fromEntries(
    FIELDS.map((field) => {
      const value = field === "WorkingDir" && config[field] === "/" ? undefined : config[field]
      if (field !== "Labels" || typeof value !== "object" || value === null) return [field, known(value)]
      const { "io.buildah.version": _, ...labels } = value as Record<string, unknown>
      return [field, known(labels)]
    }).filter(([, value]) => value !== undefined)
  )

const builtBy = (image: Image.Image): Effect.Effect<Built, unknown, Berth.Berth> =>
  Effect.scoped(
    Effect.gen(function* () {
      const root = yield* merged(yield* Berth.Berth, image.layers)
      const tree = yield* Effect.promise(() => listing(`/proc/${process.pid}/fd/${root}`))
      const { raw } = yield* documentsOf(image)
      return { config: { ...(raw.config as Built["config"]), Author: raw.author }, tree }
    })
  )

/** What two images have differently: `[Berth's, the expected]` by field and path. */
const differences = (ours: Built, theirs: Built, allowed: Case["differs"]) => {
  const config = [
    fieldsOf(ours.config),
    fieldsOf({ ...fieldsOf(theirs.config), ...allowed?.config })
  ] as const
  const tree = [
    Object.fromEntries(ours.tree),
    { ...Object.fromEntries(theirs.tree), ...allowed?.tree }
  ] as const
  return Object.fromEntries(
    [config, tree].flatMap(([one, other]: readonly [Record<string, unknown>, Record<string, unknown>]) =>
      [...new Set([...Object.keys(one), ...Object.keys(other)])]
        .map((key) => [key, [one[key] ?? null, other[key] ?? null]] as const)
        .filter(([, [own, expected]]) => !isDeepStrictEqual(own, expected))
    )
  )
}

/** The folder that the server gives files of. */
let served = ""

const server = http.createServer(({ url = "" }, response) => {
  response.setHeader("connection", "close")
  const redirected = url.replace(/^\/redirect/, "")
  if (redirected !== url) response.writeHead(302, { location: redirected }).end()
  else fs.createReadStream(`${served}${url}`).pipe(response)
})
await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
server.unref()
const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`

suite("Dockerfiles as buildah builds them", (effect, folder) => {
  let buildah: Promise<Buildah> | undefined
  const context = () => `${folder()}/context`
  const prepare = async (root: string): Promise<Buildah> => {
    makeRoot(root)
    // Where buildah leaves empty files and folders after a RUN, so that both have them.
    for (const name of ["dev", "proc", "sys", "run"]) fs.mkdirSync(`${root}/${name}`)
    for (const name of ["hosts", "hostname", "resolv.conf"]) fs.writeFileSync(`${root}/etc/${name}`, "")
    makeContext(context())
    served = context()
    const made = buildahIn(`${folder()}/buildah`)
    await made.base(root)
    return made
  }

  const begun = new Map<number, Promise<Built>>()
  /** What buildah makes of a Dockerfile. Two run at a time: that of the next one begins with each. */
  const byBuildah = async (other: Buildah, index: number): Promise<Built> => {
    const begin = (at: number): void => {
      const one = corpus[at]
      if (one === undefined || begun.has(at)) return
      if (!isChosen(at)) return begin(at + 1)
      const { args = {}, instead, target, text } = one
      const file = `${folder()}/Dockerfile-${at}`
      fs.writeFileSync(file, (instead?.text ?? text).replaceAll("URL", address))
      const options = [
        ...["--file", file],
        ...(target === undefined ? [] : ["--target", target]),
        ...Object.entries(args).flatMap(([name, value]) => ["--build-arg", `${name}=${value}`])
      ]
      const built = other.build(`case-${at}`, options, context())
      // The test of that one reports it.
      built.catch(() => {})
      begun.set(at, built)
    }
    begin(index)
    begin(index + 1)
    return await begun.get(index)!
  }

  for (const [index, { args, differs, name, target, text }] of corpus.entries())
    effect(
      name,
      function* () {
        const root = `${folder()}/root`
        if (buildah === undefined) {
          buildah = prepare(root)
          yield* Effect.promise(() => buildah!)
          yield* Image.import(root, { tag: "base" })
        }
        const other = yield* Effect.promise(() => buildah!)
        const ours = Build.dockerfile({
          context: context(),
          text: text.replaceAll("URL", address),
          args,
          target,
          tag: `case-${index}`
        })
        const [own, expected] = yield* Effect.all(
          [Effect.flatMap(ours, builtBy), Effect.promise(() => byBuildah(other, index))],
          { concurrency: "unbounded" }
        )
        assert.deepEqual(differences(own, expected, differs), {})
        if (differs !== undefined)
          assert.notDeepEqual(
            differences(own, expected, undefined),
            {},
            "buildah does the same now: take the difference out of the corpus"
          )
      },
      { skip: whyNot(index) }
    )
})
