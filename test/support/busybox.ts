/** An image of Busybox in the store of a test, and what the files of images made of it hold. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image } from "../../lib/index.ts"
import { makeRoot } from "./rootfs.ts"

/** Puts the image `local/busybox` into the store. */
export const importBusybox = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  if (!fs.existsSync(`${folder}/busybox`)) makeRoot(`${folder}/busybox`)
  return yield* Image.import(`${folder}/busybox`, { tag: "local/busybox" })
})

/** What a command line of the shell prints in a container of an image; it has to end with 0. */
export const output = (image: Image.Image, command: string) =>
  Effect.map(Container.run(image, { command: ["sh", "-c", command] }), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })
