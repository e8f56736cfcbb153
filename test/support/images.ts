/** Real images for tests: made by umoci from a static busybox, or by hand where no tool would make them. */
import assert from "node:assert/strict"
import { type ChildProcess, execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { gzipSync } from "node:zlib"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Berth from "../../lib/Berth.ts"
import type { BerthError, ImageError, RegistryError } from "../../lib/BerthError.ts"
import { remove } from "./effect.ts"
import { program } from "./program.ts"

export { remove }

/** The output of a program, which has to end with exit code 0. */
export const sh = (command: string, ...args: ReadonlyArray<string>): string =>
  execFileSync(command, args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })

export const makeTemporaryFolder = (): string => fs.mkdtempSync(path.join(os.tmpdir(), "berth-test-"))

/** A Berth that keeps everything in `folder`. */
export const berthIn = (folder: string): Layer.Layer<Berth.Berth, BerthError> =>
  Berth.layerWith({ folder }).pipe(Layer.provide(NodeFileSystem.layer))

/** Runs an effect in a Berth whose folder is `folder`. */
export const run = <A, E>(folder: string, effect: Effect.Effect<A, E, Berth.Berth>): Promise<A> =>
  Effect.runPromise(Effect.provide(effect, berthIn(folder)))

/** Runs an effect that has to fail, and gives its error. */
export const runError = (
  folder: string,
  effect: Effect.Effect<unknown, BerthError, Berth.Berth>
): Promise<BerthError> => run(folder, Effect.flip(effect))

/** Checks the tag, the reason and the mentions of an error. */
export const assertError =
  <E extends ImageError | RegistryError>(tag: E["_tag"]) =>
  (error: BerthError, reason: E["reason"], ...mentions: ReadonlyArray<string>): void => {
    assert.equal(error._tag, tag, error.message)
    assert.equal((error as E).reason, reason, error.message)
    for (const mention of mentions) {
      assert.ok(error.message.includes(mention), `${error.message} does not mention ${mention}`)
    }
  }

export const assertImageError = assertError<ImageError>("ImageError")

/** Another process that uses the library; storeWriter.ts has its commands. */
export const child = (...args: ReadonlyArray<string>): ChildProcess =>
  program("storeWriter.ts", args, { stdio: ["ignore", "pipe", "inherit"] })

export const ended = (process: ChildProcess): Promise<number | null> =>
  new Promise((resolve) => process.on("exit", (code) => resolve(code)))

const busybox = ["/bin/busybox", "/usr/bin/busybox"].find((file) => fs.existsSync(file))

/** Why images cannot be made here, or false. */
export const whyNoImages: string | false =
  busybox === undefined
    ? "no busybox-static on this machine"
    : !["umoci", "skopeo", "zstd"].every((name) => fs.existsSync(`/usr/bin/${name}`))
      ? "no umoci, skopeo or zstd on this machine"
      : false

/** A folder with a busybox and the links and files that a shell needs. */
export const makeRootfs = (folder: string): void => {
  for (const name of ["bin", "etc", "tmp", "root", "proc", "sys", "dev"]) {
    fs.mkdirSync(`${folder}/${name}`, { recursive: true })
  }
  fs.copyFileSync(busybox!, `${folder}/bin/busybox`)
  fs.chmodSync(`${folder}/bin/busybox`, 0o755)
  for (const name of [
    "sh",
    "ls",
    "cat",
    "echo",
    "sleep",
    "true",
    "false",
    "id",
    "env",
    "hostname",
    "uname"
  ]) {
    fs.symlinkSync("busybox", `${folder}/bin/${name}`)
  }
  fs.writeFileSync(`${folder}/etc/passwd`, "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
  fs.writeFileSync(`${folder}/etc/group`, "root:x:0:\napp:x:1000:\n")
  fs.chmodSync(`${folder}/tmp`, 0o1777)
}

/**
 * An OCI layout made by umoci: busybox in one layer, `/etc/motd` in a second; gzip. Not by `umoci insert`, whose tar
 * ends where its last file does. The second has no entry for `/etc`, whose time does not change.
 */
export const makeImage = (layout: string, tag = "latest"): void => {
  const scratch = makeTemporaryFolder()
  try {
    const image = `${layout}:${tag}`
    const bundle = `${scratch}/bundle`
    const rootless = process.getuid?.() === 0 ? [] : ["--rootless"]
    if (!fs.existsSync(layout)) {
      sh("umoci", "init", "--layout", layout)
    }
    sh("umoci", "new", "--image", image)
    sh("umoci", "unpack", ...rootless, "--image", image, bundle)
    makeRootfs(`${bundle}/rootfs`)
    const time = new Date("2024-01-01T00:00:00Z")
    fs.utimesSync(`${bundle}/rootfs/etc`, time, time)
    sh("umoci", "repack", "--refresh-bundle", "--image", image, bundle)
    fs.writeFileSync(`${bundle}/rootfs/etc/motd`, `this is ${tag}\n`)
    fs.utimesSync(`${bundle}/rootfs/etc`, time, time)
    sh("umoci", "repack", "--image", image, bundle)
    const settings = [
      ["entrypoint", "/bin/sh"],
      ["entrypoint", "-c"],
      ["cmd", "echo hello"],
      ["env", "PATH=/bin"],
      ["env", "GREETING=hello=world"],
      ["workingdir", "/tmp"],
      ["user", "app"],
      ["label", "org.example.purpose=test"],
      ["exposedports", "8080/tcp"],
      ["volume", "/data"],
      ["stopsignal", "SIGINT"]
    ]
    sh(
      "umoci",
      "config",
      "--image",
      image,
      ...settings.flatMap(([name, value]) => [`--config.${name}`, value!])
    )
    sh("umoci", "gc", "--layout", layout)
  } finally {
    remove(scratch)
  }
}

export const sha256 = (bytes: Uint8Array): string =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`

export interface Blob {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

/** Writes a blob into a layout. */
export const writeBlob = (layout: string, mediaType: string, content: string | Uint8Array): Blob => {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content
  const digest = sha256(bytes)
  fs.mkdirSync(`${layout}/blobs/sha256`, { recursive: true })
  fs.writeFileSync(blobFile(layout, digest), bytes)
  return { mediaType, digest, size: bytes.length }
}

export const blobFile = (layout: string, digest: string): string =>
  `${layout}/blobs/${digest.replace(":", "/")}`

/** Makes a folder of blobs a layout. */
export const writeIndex = (layout: string, manifests: ReadonlyArray<unknown>): void => {
  fs.mkdirSync(layout, { recursive: true })
  fs.writeFileSync(`${layout}/oci-layout`, '{"imageLayoutVersion":"1.0.0"}')
  fs.writeFileSync(`${layout}/index.json`, JSON.stringify({ schemaVersion: 2, manifests }))
}

export const types = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  tar: "application/vnd.oci.image.layer.v1.tar",
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd"
}

/** A tar with these files, made by tar(1). */
export const makeTar = (files: Readonly<Record<string, string>>): Uint8Array => {
  const folder = makeTemporaryFolder()
  try {
    for (const [name, content] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(`${folder}/${name}`), { recursive: true })
      fs.writeFileSync(`${folder}/${name}`, content)
    }
    return execFileSync("tar", ["-C", folder, "-c", ...fs.readdirSync(folder)], { maxBuffer: 2 ** 28 })
  } finally {
    remove(folder)
  }
}

export const zstd = (bytes: Uint8Array): Uint8Array =>
  execFileSync("zstd", ["-q", "-c"], { input: bytes, maxBuffer: 2 ** 30 })

export const goArchitecture: string = { x64: "amd64", arm64: "arm64" }[process.arch as string] ?? process.arch

export const otherArchitecture = goArchitecture === "arm64" ? "amd64" : "arm64"

/** Folders of unfinished layers, and locks of layers. */
export const unfinished = (berth: string): ReadonlyArray<string> =>
  fs.existsSync(`${berth}/layers/sha256`)
    ? fs.readdirSync(`${berth}/layers/sha256`).filter((name) => !/^[0-9a-f]{64}(\.implicit)?$/.test(name))
    : []

/** Writes an image that no tool would write, and gives the descriptor of its manifest. */
export const writeImage = (
  layout: string,
  layers: ReadonlyArray<{
    readonly tar: Uint8Array
    readonly as?: "tar" | "gzip" | "zstd"
    readonly type?: string
  }>,
  changes: {
    readonly manifest?: Readonly<Record<string, unknown>>
    readonly config?: Readonly<Record<string, unknown>>
    readonly diffIds?: ReadonlyArray<string>
  } = {}
): Blob => {
  const blobs = layers.map(({ as = "gzip", tar, type }) =>
    writeBlob(layout, type ?? types[as], as === "tar" ? tar : as === "gzip" ? gzipSync(tar) : zstd(tar))
  )
  const config = {
    architecture: goArchitecture,
    os: "linux",
    rootfs: { type: "layers", diff_ids: changes.diffIds ?? layers.map(({ tar }) => sha256(tar)) },
    ...changes.config
  }
  const manifest = {
    schemaVersion: 2,
    mediaType: types.manifest,
    config: writeBlob(layout, types.config, JSON.stringify(config)),
    layers: blobs,
    ...changes.manifest
  }
  return writeBlob(layout, types.manifest, JSON.stringify(manifest))
}
