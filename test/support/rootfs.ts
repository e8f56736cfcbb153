/** A root filesystem of a static busybox and little else, and images of it. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Image } from "../../lib/index.ts"

const busybox = ["/bin/busybox", "/usr/bin/busybox"].find((file) => fs.existsSync(file))

/** Why there is no busybox, or false. */
export const whyNoBusybox: string | false =
  busybox === undefined ? "no busybox: apt-get install busybox-static" : false

/** Makes a root in a folder: busybox with all its names, the users root and app (1000), and app's second group extra (2000). */
export const makeRoot = (folder: string): string => {
  for (const name of ["bin", "etc", "tmp", "root", "home/app"])
    fs.mkdirSync(`${folder}/${name}`, { recursive: true })
  fs.chmodSync(folder, 0o755)
  fs.copyFileSync(busybox!, `${folder}/bin/busybox`)
  fs.chmodSync(`${folder}/bin/busybox`, 0o755)
  for (const name of execFileSync(busybox!, ["--list"], { encoding: "utf8" }).trim().split("\n"))
    if (name !== "busybox") fs.symlinkSync("busybox", `${folder}/bin/${name}`)
  fs.writeFileSync(
    `${folder}/etc/passwd`,
    "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
  )
  fs.writeFileSync(`${folder}/etc/group`, "root:x:0:\nstaff:x:1001:\nextra:x:2000:app\n")
  fs.chmodSync(`${folder}/tmp`, 0o1777)
  return folder
}

/** An image of the root at `folder`, which is made if it is missing, with changes of its configuration. */
export const makeImage = (folder: string, config: Partial<Image.ImageConfig> = {}) =>
  Effect.map(
    Effect.suspend(() => Image.fromRootfs(fs.existsSync(`${folder}/bin/sh`) ? folder : makeRoot(folder))),
    (image) => withConfig(image, config)
  )

export const withConfig = (image: Image.Image, config: Partial<Image.ImageConfig>): Image.Image =>
  Object.assign(Object.create(Object.getPrototypeOf(image)), image, {
    config: { ...image.config, ...config }
  })

/** The same image with other layers, the lowest first. */
export const withLayers = (image: Image.Image, layers: ReadonlyArray<string>): Image.Image =>
  Object.assign(Object.create(Object.getPrototypeOf(image)), image, { layers })

/** An image of a new root, after a change that makes it hostile. */
export const makeEvilImage = (name: string, change: (folder: string) => void) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    const root = makeRoot(`${folder}/${name}`)
    change(root)
    return yield* Image.fromRootfs(root)
  })
