/** An image whose files have several owners; some files can only be read by their owner. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Image } from "../../lib/index.ts"
import { writeImage, writeIndex } from "./images.ts"
import { makeRoot } from "./rootfs.ts"
import { type Fields, file, folder, tar } from "./tar.ts"

const app = { uid: 1000, gid: 1001 }

const owned: ReadonlyArray<Uint8Array> = [
  folder("home/app/", { ...app, mode: 0o755 }),
  folder("home/app/private/", { ...app, mode: 0o700 }),
  file("home/app/private/secret", "app's\n", { ...app, mode: 0o600 }),
  file("home/app/setuid", "#!/bin/sh\n", { ...app, mode: 0o4755 })
]

/** The output of `stat -c '%u:%g %a'` for files of that image where layers keep their owners. */
export const owners = {
  "/home/app": "1000:1001 755",
  "/home/app/private": "1000:1001 700",
  "/home/app/private/secret": "1000:1001 600",
  "/home/app/setuid": "1000:1001 4755",
  "/bin/busybox": "0:0 755"
} as const

/** Makes the image as a layout at `path`, with more entries if there are any, and gives it. */
export const ownersImage = (path: string, more: ReadonlyArray<Uint8Array> = []) =>
  Effect.suspend(() => {
    if (!fs.existsSync(path)) {
      makeRoot(`${path}.root`)
      const root = execFileSync("tar", ["-C", `${path}.root`, "--owner=0", "--group=0", "-c", "."], {
        maxBuffer: 2 ** 26
      })
      const config = { config: { Cmd: ["/bin/sleep", "1000"], Env: ["PATH=/bin"] } }
      const layers = [{ tar: new Uint8Array(root) }, { tar: tar(...owned, ...more) }]
      writeIndex(path, [writeImage(path, layers, { config })])
    }
    return Image.fromLayout(path)
  })

/** A file for `ownersImage` with the given owner. */
export const fileOf = (name: string, fields: Partial<Fields>): Uint8Array => file(name, "x", fields)
