import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Image, Store } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import {
  assertFails,
  assertRuns,
  elsewhere,
  scratch,
  treeOf,
  unpackedByUmoci,
  whyNoZstd
} from "../support/imageArchive.ts"
import { blobFile, makeImage, makeTar, sh, whyNoImages, writeImage, writeIndex } from "../support/images.ts"
import { podmanIn, whyNoPodman } from "../support/podman.ts"

suite("Image.save", (effect) => {
  const options = { skip: whyNoImages }

  /** An image with gzip layers in the store, copied by skopeo, and the original's tree as unpacked by umoci. */
  const stored = (folder: string, tag: string) =>
    Effect.gen(function* () {
      const layout = `${folder}/original`
      makeImage(layout, tag)
      sh("skopeo", "copy", `oci:${layout}:${tag}`, `oci-archive:${folder}/original.tar:example.test/${tag}:1`)
      const [image] = yield* Image.load(`${folder}/original.tar`)
      return {
        image,
        name: `example.test/${tag}:1`,
        tree: unpackedByUmoci(`${layout}:${tag}`, `${folder}/bundle`)
      }
    })

  effect.asRoot(
    "a saved oci-archive and oci-layout are read by skopeo and umoci, with the same digest and tree",
    function* () {
      const folder = yield* scratch
      const { image, name, tree } = yield* stored(folder, "saved")
      yield* Image.save(name, `${folder}/a.tar`, { format: "oci-archive" })
      yield* image.pipe(Image.save(`${folder}/layout`, { format: "oci-layout", tag: "mine" }))
      const inspected = JSON.parse(sh("skopeo", "inspect", `oci-archive:${folder}/a.tar:${name}`))
      assert.equal(inspected.Digest, image.digest)
      assert.equal(JSON.parse(sh("skopeo", "inspect", `oci:${folder}/layout:mine`)).Digest, image.digest)
      sh("skopeo", "copy", `oci-archive:${folder}/a.tar`, `oci:${folder}/copied:x`)
      assert.deepEqual(unpackedByUmoci(`${folder}/copied:x`, `${folder}/bundle-archive`), tree)
      assert.deepEqual(unpackedByUmoci(`${folder}/layout:mine`, `${folder}/bundle-layout`), tree)
      const [again] = yield* elsewhere(folder, Image.load(`${folder}/a.tar`))
      assert.deepEqual([again.reference, again.digest], [name, image.digest])
    },
    options
  )

  effect.asRoot(
    "a saved docker-archive has uncompressed layers, which skopeo copies into the same tree",
    function* () {
      const folder = yield* scratch
      const { image, name, tree } = yield* stored(folder, "docker")
      const archive = `${folder}/a.tar`
      yield* Image.save(image, archive, { format: "docker-archive" })
      assert.deepEqual(JSON.parse(sh("tar", "-xOf", archive, "manifest.json"))[0].RepoTags, [name])
      sh("skopeo", "copy", `docker-archive:${archive}:${name}`, `oci:${folder}/copied:x`)
      assert.deepEqual(unpackedByUmoci(`${folder}/copied:x`, `${folder}/bundle-docker`), tree)
      const [again] = yield* elsewhere(
        folder,
        Effect.flatMap(Image.load(archive), ([loaded]) => Effect.as(assertRuns(loaded, "docker"), [loaded]))
      )
      assert.deepEqual(again!.config, image.config)
    },
    options
  )

  effect.asRoot(
    "podman loads and runs a saved image with the same config and tree, and an image saved by podman loads and runs",
    function* () {
      const folder = yield* scratch
      const { podman, run } = podmanIn(folder)
      const { image, name, tree } = yield* stored(folder, "podman")
      for (const format of ["docker-archive", "oci-archive"] as const) {
        yield* Image.save(image, `${folder}/${format}.tar`, { format })
        assert.match(podman("load", "--input", `${folder}/${format}.tar`), /example\.test\/podman:1/)
        const [{ Config, RootFS }] = JSON.parse(podman("image", "inspect", name))
        assert.deepEqual(
          [Config.Entrypoint, Config.Cmd, Config.User, Config.WorkingDir, Config.StopSignal],
          [image.config.entrypoint, image.config.command, "app", "/tmp", "SIGINT"]
        )
        assert.equal(RootFS.Layers.length, 2)
        const mounted = podman("image", "mount", name).trim()
        // The upper layer lacks an entry for /etc, so podman sets the time of the load.
        const others = (lines: ReadonlyArray<string>) => lines.filter((line) => !line.startsWith("etc d"))
        assert.deepEqual(others(treeOf(mounted)), others(tree))
        podman("image", "unmount", name)
        assert.equal(run(name, "cat /etc/motd; id -u; pwd"), "this is podman\n1000\n/tmp\n")
        podman("save", "--format", format, "--output", `${folder}/podman-${format}.tar`, name)
        podman("rmi", name)
        const [back] = yield* elsewhere(
          folder,
          Effect.flatMap(Image.load(`${folder}/podman-${format}.tar`), ([loaded]) =>
            Effect.as(assertRuns(loaded, "podman"), [loaded])
          )
        )
        assert.equal(back!.reference, name)
      }
    },
    { skip: whyNoImages || whyNoPodman }
  )

  effect("saving the same image again writes the same bytes and no other file", function* () {
    const folder = yield* scratch
    const [a, b] = [makeTar({ a: "a" }), makeTar({ b: "b" })]
    writeIndex(`${folder}/layout`, [
      writeImage(`${folder}/layout`, [{ tar: a }, { tar: b, as: "tar" }, { tar: a }])
    ])
    sh("tar", "-C", `${folder}/layout`, "-cf", `${folder}/in.tar`, ".")
    fs.mkdirSync(`${folder}/out`)
    const [image] = yield* Image.load(`${folder}/in.tar`)
    for (const format of ["oci-archive", "docker-archive"] as const) {
      const path = (n: number) => `${folder}/out/${format}-${n}`
      yield* Image.save(image, path(1), { format, tag: "registry.test/x:1" })
      yield* elsewhere(
        folder,
        Effect.zipRight(
          Image.load(`${folder}/in.tar`),
          Image.save(image.digest!, path(2), { format, tag: "registry.test/x:1" })
        )
      )
      // An existing file is replaced.
      yield* Image.save(image, path(2), { format, tag: "registry.test/x:1" })
      assert.ok(fs.readFileSync(path(1)).equals(fs.readFileSync(path(2))))
      yield* elsewhere(folder, Image.load(path(1)))
    }
    assert.equal(fs.readdirSync(`${folder}/out`).length, 4)
    assert.equal(sh("tar", "-tf", `${folder}/out/docker-archive-1`).trim().split("\n").length, 4)
  })

  effect("an image that cannot be saved is refused before anything is written", function* () {
    const folder = yield* scratch
    const layer = makeTar({ refused: "x" })
    writeIndex(`${folder}/layout`, [writeImage(`${folder}/layout`, [{ tar: layer, as: "zstd" }])])
    sh("tar", "-C", `${folder}/layout`, "-cf", `${folder}/in.tar`, ".")
    fs.mkdirSync(`${folder}/out`)
    const [image] = yield* Image.load(`${folder}/in.tar`)
    const save = (
      subject: Image.Image | string,
      changes: Partial<Image.SaveOptions> = {},
      path = `${folder}/out/a`
    ) => Image.save(subject, path, { format: "oci-archive", ...changes })
    yield* assertFails("NotFound", save("nothing:1"), "nothing:1")
    yield* assertFails(
      "NotFound",
      save(
        yield* Effect.map(Image.fromLayout(`${folder}/layout`), (each) =>
          Object.assign(Object.create(Object.getPrototypeOf(each)), {
            ...each,
            digest: `sha256:${"0".repeat(64)}`
          })
        )
      )
    )
    for (const wrong of [
      save(Image.scratch),
      save(yield* Image.fromRootfs(folder)),
      save(image, { tag: "no good" }),
      save(image, { format: "zip" as never }),
      save(image, {}, `${folder}/out`),
      save(image, { format: "oci-layout" }, folder),
      save(image, {}, "a\0b")
    ])
      yield* failure("InvalidOption", wrong)
    yield* failure("InvalidData", save(image, { tag: "Upper/CASE", format: "docker-archive" }))
    yield* assertFails("Storage", save(image, {}, `${folder}/absent/a`))
    const docker = save(image, { format: "docker-archive" })
    if (whyNoZstd === false) yield* docker
    else yield* assertFails("Unsupported", docker, "oci-archive")
    assert.deepEqual(fs.readdirSync(`${folder}/out`), whyNoZstd === false ? ["a"] : [])
  })

  effect("saving an image with a corrupt blob fails and leaves no file", function* () {
    const folder = yield* scratch
    const layer = makeTar({ changed: "x" })
    const layout = `${folder}/layout`
    const entry = writeImage(layout, [{ tar: layer }])
    writeIndex(layout, [entry])
    sh("tar", "-C", layout, "-cf", `${folder}/in.tar`, ".")
    fs.mkdirSync(`${folder}/out`)
    yield* elsewhere(
      folder,
      Effect.gen(function* () {
        const [image] = yield* Image.load(`${folder}/in.tar`)
        const { layers } = JSON.parse(new TextDecoder().decode(yield* Store.read(image.digest as never)))
        const blob = blobFile(yield* Store.folder, layers[0].digest)
        const bytes = fs.readFileSync(blob)
        bytes[bytes.length - 1]! ^= 1
        fs.writeFileSync(blob, bytes)
        for (const format of ["oci-archive", "oci-layout"] as const)
          yield* assertFails(
            "DigestMismatch",
            Image.save(image, `${folder}/out/x`, { format }),
            layers[0].digest
          )
        yield* failure("ImageError", Image.save(image, `${folder}/out/x`, { format: "docker-archive" }))
      })
    )
    assert.deepEqual(fs.readdirSync(`${folder}/out`), [])
  })

  effect("an image of a layout that is not in the store is saved from the layout", function* () {
    const folder = yield* scratch
    const layout = `${folder}/layout`
    writeIndex(layout, [writeImage(layout, [{ tar: makeTar({ layout: "x" }) }])])
    const image = yield* Image.fromLayout(layout)
    yield* Image.save(image, `${folder}/a.tar`, { format: "oci-archive", tag: "registry.test/layout:1" })
    const [loaded] = yield* elsewhere(folder, Image.load(`${folder}/a.tar`))
    assert.deepEqual([loaded.reference, loaded.digest], ["registry.test/layout:1", image.digest])
  })
})
