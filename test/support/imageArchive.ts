/** Helpers for tests of images in archives. */
import assert from "node:assert/strict"
import * as zlib from "node:zlib"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Berth, type BerthError, Container, type Image, Store } from "../../lib/index.ts"
import { berthIn, failure, makeTemporaryFolder, remove } from "./effect.ts"
import { goArchitecture, sh, sha256 } from "./images.ts"
import * as tar from "./tar.ts"
import { unchanged } from "./unchanged.ts"

/** A folder that is removed after the test. */
export const scratch: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(makeTemporaryFolder),
  (path) => Effect.sync(() => remove(path))
)

/** Runs an effect in a new Berth, whose store is empty. */
export const elsewhere = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth>) =>
  Effect.provide(effect, berthIn(`${folder}/berth-${elsewheres++}`))
let elsewheres = 0

export const whyNoZstd: string | false =
  "createZstdDecompress" in zlib ? false : "this runtime's node:zlib has no zstd"

/** The metadata, the times and the hashes of all files of a tree. */
export const treeOf = (folder: string): ReadonlyArray<string> => {
  const format = "%P %y %m %U:%G %s %l %T@\\n"
  const sums = sh("sh", "-c", 'cd "$1" && find . -type f -exec sha256sum {} +', "sh", folder)
  return [...sh("find", folder, "-mindepth", "1", "-printf", format).split("\n"), ...sums.split("\n")].sort()
}

export const unpackedByUmoci = (image: string, bundle: string): ReadonlyArray<string> => {
  sh("umoci", "unpack", "--image", image, bundle)
  return treeOf(`${bundle}/rootfs`)
}

/** Checks that a container of the image reads its second layer, with its entrypoint, user and working directory. */
export const assertRuns = (image: Image.Image, tag: string) =>
  Effect.gen(function* () {
    const result = yield* Container.run(image, { command: ["cat /etc/motd; id -u; pwd"] })
    assert.equal(result.stdout, `this is ${tag}\n1000\n/tmp\n`, result.stderr)
  })

/** The names in the store. */
export const names = Effect.map(Store.list, (tagged) => tagged.map(({ name }) => name).sort())

/** Checks that an effect fails for this reason and leaves the store as it was. */
export const assertFails = (
  reason: BerthError.ImageError["reason"],
  effect: Effect.Effect<unknown, BerthError.BerthError, Berth.Berth>,
  ...mentions: ReadonlyArray<string>
) =>
  Effect.gen(function* () {
    const error = yield* failure("ImageError", unchanged(effect))
    assert.equal(error.reason, reason, error.message)
    for (const mention of mentions) assert.ok(error.message.includes(mention), error.message)
  })

/** The config of an image with these layers. */
export const configOf = (layers: ReadonlyArray<Uint8Array>, changes: object = {}): string =>
  JSON.stringify({
    architecture: goArchitecture,
    os: "linux",
    config: { Env: ["PATH=/bin"] },
    rootfs: { type: "layers", diff_ids: layers.map(sha256) },
    ...changes
  })

/** The documents that `docker save` writes beside the layers of one image. */
export const documents = (
  config: string,
  layers: ReadonlyArray<string>,
  tags: ReadonlyArray<string> | null = ["example/made:1"]
): ReadonlyArray<Uint8Array> => {
  const name = `${sha256(tar.bytes(config)).slice("sha256:".length)}.json`
  return [
    tar.file(name, config),
    tar.file("manifest.json", JSON.stringify([{ Config: name, RepoTags: tags, Layers: layers }]))
  ]
}
