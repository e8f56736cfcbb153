import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Image } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { elsewhere, scratch } from "../support/imageArchive.ts"
import { sh, whyNoImages, writeImage, writeIndex } from "../support/images.ts"
import { file, folder, tar } from "../support/tar.ts"
import { unchanged } from "../support/unchanged.ts"

/** A filesystem of 8 MiB, mounted until the scope closes. */
const small = Effect.flatMap(scratch, (at) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const mounted = `${at}/small`
      fs.mkdirSync(mounted)
      sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mounted)
      return mounted
    }),
    (mounted) => Effect.sync(() => sh("umount", mounted))
  )
)

/** Makes an archive of one image with one gzip layer that holds these bytes. */
const archiveOf = (at: string, name: string, content: Uint8Array): string => {
  const layout = `${at}/${name}`
  const image = writeImage(layout, [{ tar: tar(folder("./"), file("data", content)) }])
  writeIndex(layout, [{ ...image, annotations: { "org.opencontainers.image.ref.name": name } }])
  sh("tar", "-C", layout, "-cf", `${layout}.tar`, ".")
  return `${layout}.tar`
}

suite("loading an image on a full disk", (effect) => {
  const cases = {
    "a load without room for a layer's blob": () => randomBytes(12_000_000),
    "a load with room for a layer's blob, but not for its files,": () => new Uint8Array(20_000_000).fill(7)
  }
  for (const [name, content] of Object.entries(cases))
    effect.asRoot(
      `${name} fails with the reason, and leaves the store as it was`,
      function* () {
        const at = yield* scratch
        const mounted = yield* small
        yield* elsewhere(
          mounted,
          Effect.gen(function* () {
            yield* Image.load(archiveOf(at, "fits", randomBytes(1000)))
            const error = yield* failure(
              "ImageError",
              unchanged(Image.load(archiveOf(at, "large", content())))
            )
            assert.equal(error.reason, "Storage")
            assert.match(error.message, /the disk is full \(ENOSPC\): make room on the filesystem of /)
            // The failed load has freed its space.
            yield* Image.load(archiveOf(at, "other", randomBytes(3_000_000)))
          })
        )
      },
      { skip: whyNoImages }
    )
})
