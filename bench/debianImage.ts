/** A large image of real files: Debian packages, a layer for each group of them, as other tools would have made it. */
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"

interface Group {
  readonly packages: ReadonlyArray<string>
  readonly compression: "gzip" | "zstd"
}

const groups: ReadonlyArray<Group> = [
  { packages: ["libc6", "bash", "coreutils", "perl-base", "libtinfo6"], compression: "gzip" },
  { packages: ["gcc-12", "g++-12", "cpp-12", "libgcc-12-dev", "libstdc++-12-dev"], compression: "gzip" },
  { packages: ["libboost1.74-dev"], compression: "zstd" },
  { packages: ["libllvm14", "libclang-cpp14"], compression: "zstd" },
  { packages: ["libpython3.11-minimal", "libpython3.11-stdlib", "perl-modules-5.36"], compression: "gzip" }
]

const mediaTypes = {
  index: "application/vnd.oci.image.index.v1+json",
  manifest: "application/vnd.oci.image.manifest.v1+json",
  config: "application/vnd.oci.image.config.v1+json",
  gzip: "application/vnd.oci.image.layer.v1.tar+gzip",
  zstd: "application/vnd.oci.image.layer.v1.tar+zstd"
} as const

interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

interface Layer {
  readonly descriptor: Descriptor
  readonly diffId: string
}

const run = (command: string, args: ReadonlyArray<string>, cwd: string): void => {
  execFileSync(command, args, { cwd, stdio: ["ignore", "ignore", "pipe"] })
}

const sha256 = (path: string): string =>
  `sha256:${execFileSync("sha256sum", [path], { encoding: "utf8" }).slice(0, 64)}`

const writeBlob = (layout: string, mediaType: string, value: unknown): Descriptor => {
  const bytes = Buffer.from(JSON.stringify(value))
  const hex = createHash("sha256").update(bytes).digest("hex")
  fs.writeFileSync(`${layout}/blobs/sha256/${hex}`, bytes)
  return { mediaType, digest: `sha256:${hex}`, size: bytes.length }
}

/** Moves a tar in, compressed. */
const layerOf = (layout: string, tar: string, compression: Group["compression"]): Layer => {
  const diffId = sha256(tar)
  const file = `${tar}.${compression}`
  const command = compression === "gzip" ? "gzip -6 -n -c" : "zstd -q -3 -c"
  execFileSync("sh", ["-c", `${command} <'${tar}' >'${file}'`])
  const digest = sha256(file)
  const { size } = fs.statSync(file)
  fs.renameSync(file, `${layout}/blobs/sha256/${digest.slice(7)}`)
  return { descriptor: { mediaType: mediaTypes[compression], digest, size }, diffId }
}

const writeManifest = (
  layout: string,
  tag: string,
  layers: ReadonlyArray<Layer>
): Descriptor & { annotations: unknown } => {
  const architecture = process.arch === "x64" ? "amd64" : process.arch
  const config = writeBlob(layout, mediaTypes.config, {
    architecture,
    os: "linux",
    config: { Cmd: ["/bin/bash"] },
    rootfs: { type: "layers", diff_ids: layers.map(({ diffId }) => diffId) }
  })
  const manifest = writeBlob(layout, mediaTypes.manifest, {
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    config,
    layers: layers.map(({ descriptor }) => descriptor)
  })
  return { ...manifest, annotations: { "org.opencontainers.image.ref.name": tag } }
}

export interface Made {
  /** Of the unpacked image. */
  readonly bytes: number
  readonly files: number
  readonly layers: ReadonlyArray<Descriptor>
}

/**
 * Writes an OCI layout with the tags `image`, `image-gzip`, which is the same with all layers in gzip, and `other`, which
 * has all layers of the first but one. Downloads the
 * packages with apt-get.
 */
export const makeDebianImage = (folder: string): Made => {
  const layout = `${folder}/layout`
  fs.mkdirSync(`${layout}/blobs/sha256`, { recursive: true })
  let bytes = 0
  let files = 0
  const both = groups.map(({ compression, packages }, index) => {
    const [debs, root] = [`${folder}/debs${index}`, `${folder}/root${index}`]
    for (const made of [debs, root]) fs.mkdirSync(made)
    // apt's own sandbox user may not be able to write into a folder of root's.
    run("apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download", ...packages], debs)
    for (const deb of fs.readdirSync(debs)) run("dpkg-deb", ["-x", deb, root], debs)
    bytes += Number(execFileSync("du", ["-sb", root], { encoding: "utf8" }).split("\t")[0])
    files += Number(
      execFileSync("sh", ["-c", 'find "$1" -not -type d | wc -l', "sh", root], { encoding: "utf8" })
    )
    const tar = `${folder}/layer${index}.tar`
    run("tar", ["--sort=name", "--numeric-owner", "-cf", tar, "-C", root, "."], folder)
    for (const used of [debs, root]) fs.rmSync(used, { recursive: true })
    const made = layerOf(layout, tar, compression)
    const again = compression === "gzip" ? made : layerOf(layout, tar, "gzip")
    fs.rmSync(tar)
    return { made, again }
  })
  const layers = both.map(({ made }) => made)
  const other = `${folder}/other`
  fs.mkdirSync(other)
  fs.writeFileSync(`${other}/etc-issue`, "another one\n")
  run("tar", ["-cf", `${folder}/other.tar`, "-C", other, "."], folder)
  const changed = [...layers.slice(0, -1), layerOf(layout, `${folder}/other.tar`, "gzip")]
  fs.writeFileSync(`${layout}/oci-layout`, JSON.stringify({ imageLayoutVersion: "1.0.0" }))
  const manifests = [
    writeManifest(layout, "image", layers),
    writeManifest(
      layout,
      "image-gzip",
      both.map(({ again }) => again)
    ),
    writeManifest(layout, "other", changed)
  ]
  const index = { schemaVersion: 2, mediaType: mediaTypes.index, manifests }
  fs.writeFileSync(`${layout}/index.json`, JSON.stringify(index))
  return { bytes, files, layers: layers.map(({ descriptor }) => descriptor) }
}
