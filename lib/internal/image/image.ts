/** `Image`, and the images that need nothing but a folder. */
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import { hasProperty } from "effect/Predicate"
import { type BerthError, ImageError, InvalidOption, Unsupported } from "../../BerthError.ts"
import type { Image, ImageConfig, TypeId as ImageTypeId } from "../../Image.ts"
import { hostPlatform } from "../oci/platform.ts"
import { defaultPath } from "../util/defaultPath.ts"
import * as digests from "../util/digest.ts"
import { prints } from "../util/prints.ts"

export const TypeId: ImageTypeId = Symbol.for("berth/Image") as ImageTypeId

export const isImage = (u: unknown): u is Image => hasProperty(u, TypeId)

const Proto = {
  ...prints<Image>({
    id: "berth/Image",
    json: ({ digest, layers, reference }) => ({ reference, digest, layers: layers.length }),
    line: ({ digest, layers, reference }) =>
      [
        reference,
        ...(digest === undefined || digest === reference ? [] : [digests.shortened(digest)]),
        `${layers.length} ${layers.length === 1 ? "layer" : "layers"}`
      ].join(", ")
  }),
  [TypeId]: TypeId
}

export const make = (
  fields: Pick<Image, "reference" | "digest" | "layers" | "config" | "upper" | "layout">
): Image => Object.assign(Object.create(Proto), fields)

/** The same image with another layer on top. It has no manifest: the layer has never been a tar. */
export const withLayer = (image: Image, layer: string): Image =>
  make({ ...image, digest: undefined, layout: undefined, layers: [...image.layers, layer] })

const plainConfig = (environment: Readonly<Record<string, string>>): ImageConfig => {
  const { architecture, os } = hostPlatform()
  return {
    entrypoint: [],
    command: [],
    environment,
    workingDirectory: "/",
    user: "",
    stopSignal: undefined,
    exposedPorts: [],
    volumes: [],
    labels: {},
    healthcheck: undefined,
    architecture,
    os
  }
}

export const scratch: Image = make({
  reference: "scratch",
  digest: undefined,
  layers: [],
  config: plainConfig({}),
  upper: "disk"
})

const ofFolder = (reference: string, folder: string): Image =>
  make({
    reference,
    digest: undefined,
    layers: [folder],
    config: plainConfig({ PATH: defaultPath }),
    upper: folder === "/" ? "memory" : "disk"
  })

export const host: Effect.Effect<Image, BerthError> = Effect.suspend(
  (): Effect.Effect<Image, BerthError> =>
    process.platform === "linux"
      ? Effect.succeed(ofFolder("host", "/"))
      : new Unsupported({
          feature: "the image of the host",
          why: `this is ${process.platform}`,
          hint: "Berth runs on Linux: use a Linux machine or virtual machine"
        })
)

export const fromRootfs = (path: string): Effect.Effect<Image, BerthError> =>
  Effect.gen(function* () {
    const resolved = yield* Effect.tryPromise({
      try: async () => {
        const real = await fs.realpath(path)
        return { real, isDirectory: (await fs.stat(real)).isDirectory() }
      },
      catch: (cause): BerthError => {
        const code = String((cause as { code?: unknown }).code ?? "")
        return code === "ENOENT"
          ? new ImageError({ reason: "NotFound", subject: path, detail: "there is no such folder", cause })
          : code.startsWith("ERR_")
            ? new InvalidOption({ option: "path", value: JSON.stringify(path), expected: "a path", cause })
            : new ImageError({ reason: "Storage", subject: path, detail: String(cause), cause })
      }
    })
    if (!resolved.isDirectory)
      return yield* new InvalidOption({ option: "path", value: JSON.stringify(path), expected: "a folder" })
    return ofFolder(resolved.real, resolved.real)
  })
