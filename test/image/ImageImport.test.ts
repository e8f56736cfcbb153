import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as zlib from "node:zlib"
import { Container, Image, Store } from "../../lib/index.ts"
import * as inRoot from "../../lib/internal/files/rooted.ts"
import { native, O_PATH } from "../../lib/internal/system/addon.ts"
import { failure, suite } from "../support/effect.ts"
import { assertFails, elsewhere, scratch, treeOf } from "../support/imageArchive.ts"
import { makeRootfs, sh, whyNoImages } from "../support/images.ts"
import * as tar from "../support/tar.ts"

const note = "user.note"

const setNote = (path: string): void =>
  inRoot.using(inRoot.openHost(path, O_PATH), (fd) =>
    assert.equal(native().setXattr(fd, note, tar.bytes("kept")), 0)
  )

const noteOf = (path: string): string =>
  inRoot.using(inRoot.openHost(path, O_PATH), (fd) => {
    const value = new Uint8Array(64)
    return new TextDecoder().decode(value.subarray(0, native().xattr(fd, note, value)))
  })

const whyNoBuildah = spawnSync("buildah", ["--version"]).status === 0 ? false : "no buildah on this machine"

suite("Image.import", (effect) => {
  const config = {
    command: ["/bin/cat", "/etc/imported"],
    environment: { PATH: "/bin", A: "b=c" },
    user: "app"
  }

  const rootfs = (folder: string): string => {
    const root = `${folder}/rootfs`
    fs.mkdirSync(root)
    makeRootfs(root)
    fs.writeFileSync(`${root}/etc/imported`, "imported\n")
    fs.linkSync(`${root}/etc/imported`, `${root}/etc/linked`)
    if (process.getuid?.() === 0) fs.chownSync(`${root}/etc/imported`, 1000, 1000)
    fs.chmodSync(`${root}/bin/busybox`, 0o4755)
    fs.utimesSync(`${root}/etc/group`, 1, 2.5)
    setNote(`${root}/etc/passwd`)
    fs.chmodSync(root, 0o751)
    return root
  }
  const options = { skip: whyNoImages }

  effect(
    "an imported folder runs, can be saved and does not change with the folder",
    function* () {
      const folder = yield* scratch
      const root = rootfs(folder)
      const before = treeOf(root)
      const image = yield* Image.import(root, { config, tag: "mine:1" })
      assert.equal(image.reference, "docker.io/library/mine:1")
      assert.equal((yield* Store.resolve("docker.io/library/mine:1")).digest, image.digest)
      const again = yield* elsewhere(folder, Image.import(root, { config }))
      assert.deepEqual([again.digest, again.reference], [image.digest, again.digest])
      fs.writeFileSync(`${root}/etc/imported`, "changed\n")
      assert.equal((yield* Container.run(image)).stdout, "imported\n")
      const layer = image.layers[0]!
      assert.deepEqual(treeOf(layer), before)
      assert.equal(fs.statSync(`${layer}/etc/linked`).ino, fs.statSync(`${layer}/etc/imported`).ino)
      assert.equal(fs.statSync(layer).mode & 0o7777, 0o751)
      assert.equal(noteOf(`${layer}/etc/passwd`), "kept")
      assert.deepEqual(image.config.environment, { PATH: "/bin", A: "b=c" })
      yield* Image.save("mine:1", `${folder}/a.tar`, { format: "docker-archive" })
      const inspected = JSON.parse(sh("skopeo", "inspect", "--config", `docker-archive:${folder}/a.tar`))
      assert.deepEqual(inspected.config.Cmd, config.command)
      assert.deepEqual(inspected.history, [{ created_by: "berth import" }])
    },
    options
  )

  effect.asRoot(
    "buildah builds on an image that was imported, and on a commit of it",
    function* () {
      const folder = yield* scratch
      const image = yield* Image.import(rootfs(folder), { config: { user: "root" }, tag: "mine:built" })
      const box = yield* Container.start(image, { command: ["/bin/sh", "-c", "echo more > /more"] })
      yield* box.exit
      const committed = yield* Container.commit(box, { tag: "mine:committed" })
      const where = ["--storage-driver", "vfs", "--root", `${folder}/buildah`, "--runroot", `${folder}/run`]
      const buildah = (...args: ReadonlyArray<string>): string => sh("buildah", ...where, ...args)
      for (const [k, made] of [image, committed].entries()) {
        yield* Image.save(made, `${folder}/${k}.tar`, { format: "oci-archive" })
        const from = buildah("from", `oci-archive:${folder}/${k}.tar`).trim()
        fs.writeFileSync(`${folder}/added`, "added\n")
        buildah("copy", from, `${folder}/added`, "/added")
        buildah("commit", "--format", "oci", from, `oci-archive:${folder}/${k}-built.tar`)
        const config = JSON.parse(sh("skopeo", "inspect", "--config", `oci-archive:${folder}/${k}-built.tar`))
        assert.equal(config.history.length, k + 2)
        buildah("rm", from)
      }
    },
    { skip: whyNoImages || whyNoBuildah }
  )

  effect(
    "a tar imports as the same layer plain, in gzip and in zstd",
    function* () {
      const folder = yield* scratch
      const root = rootfs(folder)
      const plain = execFileSync("tar", ["-C", root, "-c", "."], { maxBuffer: 2 ** 28 })
      const files = {
        tar: plain,
        "tar.gz": zlib.gzipSync(plain),
        "tar.zst": execFileSync("zstd", ["-qc"], { input: plain, maxBuffer: 2 ** 28 })
      }
      const layers = new Set<string>()
      for (const [ending, bytes] of Object.entries(files)) {
        fs.writeFileSync(`${folder}/root.${ending}`, bytes)
        const image = yield* Image.import(`${folder}/root.${ending}`, { config })
        layers.add(image.layers.join())
        assert.equal((yield* Container.run(image)).stdout, "imported\n")
      }
      assert.equal(layers.size, 1)
      const left = fs.readdirSync(`${[...layers][0]}/..`).filter((name) => name.startsWith("."))
      assert.deepEqual(left, [])
    },
    options
  )

  effect("an import takes the platform and the other fields of the config from its options", function* () {
    const folder = yield* scratch
    fs.writeFileSync(`${folder}/a.tar`, tar.tar(tar.file("a", "a")))
    const image = yield* Image.import(`${folder}/a.tar`, {
      config: {
        entrypoint: ["/a"],
        workingDirectory: "/w",
        stopSignal: "SIGINT",
        exposedPorts: ["80/tcp"],
        volumes: ["/v"],
        labels: { l: "m" },
        architecture: "s390x"
      }
    })
    const { entrypoint, workingDirectory, stopSignal, exposedPorts, volumes, labels, architecture } =
      image.config
    assert.deepEqual(
      [entrypoint, workingDirectory, stopSignal, exposedPorts, volumes, labels, architecture],
      [["/a"], "/w", "SIGINT", ["80/tcp"], ["/v"], { l: "m" }, "s390x"]
    )
    yield* Image.save(image, `${folder}/out.tar`, { format: "oci-archive" })
    yield* assertFails("Platform", elsewhere(folder, Image.load(`${folder}/out.tar`)), "s390x")
    yield* elsewhere(folder, Image.load(`${folder}/out.tar`, { platform: "linux/s390x" }))
  })

  effect(
    "an import of something else than a root filesystem is refused, and leaves the store as it was",
    function* () {
      const folder = yield* scratch
      const importing = (content: Uint8Array, more: Image.ImportOptions = {}) => {
        fs.writeFileSync(`${folder}/a`, content)
        return Image.import(`${folder}/a`, more)
      }
      const good = tar.tar(tar.file("a", "a"))
      yield* assertFails("Corrupt", importing(new Uint8Array(2000).fill(1)))
      yield* assertFails("Corrupt", importing(zlib.gzipSync(good).subarray(0, 40)))
      yield* assertFails("TooLarge", importing(zlib.gzipSync(good), { maxBytes: 100 }))
      yield* assertFails("Unsupported", importing(Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a)), "xz")
      yield* assertFails("NotFound", Image.import(`${folder}/absent`))
      yield* failure("InvalidData", importing(good, { tag: "No Good" }))
      yield* failure("InvalidOption", importing(good, { config: { user: "a\0b" } }))
      yield* failure("InvalidOption", importing(good, { config: { environment: { "a=b": "c" } } }))
    }
  )
})
