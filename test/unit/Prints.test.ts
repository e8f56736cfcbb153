import assert from "node:assert/strict"
import * as fs from "node:fs"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Inspectable from "effect/Inspectable"
import * as Logger from "effect/Logger"
import { Image, ImageLayer, Reference, Registry } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { scratch } from "../support/imageArchive.ts"
import { makeTar, sha256 } from "../support/images.ts"

const layerOf = (folder: string) =>
  Effect.gen(function* () {
    const bytes = makeTar({ "a.txt": "a" })
    fs.writeFileSync(`${folder}/layer.tar`, bytes)
    const diffId = sha256(bytes)
    return yield* ImageLayer.unpack({
      descriptor: {
        mediaType: "application/vnd.oci.image.layer.v1.tar",
        digest: diffId,
        size: bytes.length
      },
      diffId,
      blob: `${folder}/layer.tar`
    })
  })

/** Each kind of value, with its line and its JSON. */
const values = (folder: string) =>
  Effect.gen(function* () {
    const layer = yield* layerOf(folder)
    const image = yield* Image.import(`${folder}/layer.tar`, {
      tag: "mine:1",
      config: { environment: { PASSWORD: "secret" } }
    })
    const host = "registry.example:5000"
    const registry = yield* Registry.connect(host, {
      mirrors: ["mirror.example"],
      credentials: { username: "jane", password: "secret" }
    })
    const reference = Either.getOrThrow(Reference.parse("alpine:3"))
    const short = (digest: string | undefined) => digest?.slice(0, "sha256:".length + 12)
    return [
      [
        reference,
        "Reference(docker.io/library/alpine:3)",
        { _id: "berth/Reference", reference: "docker.io/library/alpine:3" }
      ],
      [
        image,
        `Image(docker.io/library/mine:1, ${short(image.digest)}, 1 layer)`,
        { _id: "berth/Image", reference: "docker.io/library/mine:1", digest: image.digest, layers: 1 }
      ],
      [Image.scratch, "Image(scratch, 0 layers)", { _id: "berth/Image", reference: "scratch", layers: 0 }],
      [
        layer,
        `ImageLayer(${short(layer.digest)}, ${layer.folder})`,
        {
          _id: "berth/ImageLayer",
          digest: layer.digest,
          diffId: layer.diffId,
          mediaType: layer.mediaType,
          folder: layer.folder
        }
      ],
      [
        registry,
        "Registry(registry.example:5000, https://registry.example:5000, mirror mirror.example:443)",
        {
          _id: "berth/Registry",
          host,
          origin: "https://registry.example:5000",
          mirrors: ["mirror.example:443"]
        }
      ]
    ] as ReadonlyArray<readonly [value: Inspectable.Inspectable, line: string, json: object]>
  })

/** What the runtime's own console prints of a value. */
const shown = (value: unknown): string => {
  const { Bun, Deno } = globalThis as {
    readonly Bun?: { readonly inspect: (value: unknown) => string }
    readonly Deno?: { readonly inspect: (value: unknown) => string }
  }
  return (Deno?.inspect ?? Bun?.inspect ?? inspect)(value)
}

suite("values print as one line", (effect) => {
  effect("in the REPL, in a console, within other values, in JSON and in a log", function* () {
    const logged: Array<string> = []
    const logger = Logger.map(Logger.logfmtLogger, (line) => void logged.push(line))
    for (const [value, line, json] of yield* values(yield* scratch)) {
      assert.equal(inspect(value), line)
      assert.equal(shown(value), line)
      assert.equal(inspect({ value }, { breakLength: Number.POSITIVE_INFINITY }), `{ value: ${line} }`)
      assert.deepEqual(JSON.parse(JSON.stringify(value)), json)
      assert.equal(String(value), Reference.isReference(value) ? Reference.print(value) : line)
      yield* Effect.provide(Effect.log(value), Logger.replace(Logger.defaultLogger, logger))
      assert.ok(logged.at(-1)!.includes(JSON.stringify(JSON.stringify(value)).slice(1, -1)), logged.at(-1))
      assert.doesNotMatch(inspect(value, { depth: 9 }) + JSON.stringify(value), /secret/)
    }
  })

  effect("each is told from other values by its TypeId", function* () {
    const found = (yield* values(yield* scratch)).map(([value]) => value)
    const guards = {
      Reference: Reference.isReference,
      Image: Image.isImage,
      ImageLayer: ImageLayer.isImageLayer,
      Registry: Registry.isRegistry
    }
    for (const [name, guard] of Object.entries(guards)) {
      for (const value of found) assert.equal(guard(value), inspect(value).startsWith(`${name}(`), name)
      for (const other of [{}, undefined, name]) assert.equal(guard(other), false)
    }
  })
})
