/** An image in which files belong to several users, some of them for nobody else to read. */
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

/** What `stat -c '%u:%g %a'` says of these in a container whose layers keep their owners. */
export const owners = {
  "/home/app": "1000:1001 755",
  "/home/app/private": "1000:1001 700",
  "/home/app/private/secret": "1000:1001 600",
  "/home/app/setuid": "1000:1001 4755",
  "/bin/busybox": "0:0 755"
} as const

/** The layout of such an image at `path`, whose folder is made, with more entries if there are any. */
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

/** A file with an owner, for `ownersImage`. */
export const fileOf = (name: string, fields: Partial<Fields>): Uint8Array => file(name, "x", fields)
