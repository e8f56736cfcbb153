/** Hard links to files of lower layers, in images, containers and the store. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Container, Image, RootFs, Store } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { elsewhere, scratch } from "../support/imageArchive.ts"
import { makeRootfs, sh, whyNoImages, writeImage, writeIndex } from "../support/images.ts"
import { file, folder, hardlink, tar } from "../support/tar.ts"
import { treeOf } from "../support/trees.ts"

/** Makes a layout: busybox in the lowest layer, a link to it in a folder without an entry, and a link to that link. */
const makeLinked = (at: string): string => {
  makeRootfs(`${at}/rootfs`)
  sh("tar", "-C", `${at}/rootfs`, "-cf", `${at}/lower.tar`, ".")
  const layout = `${at}/layout`
  const layers = [
    fs.readFileSync(`${at}/lower.tar`),
    tar(hardlink("tmp/sh", "bin/busybox"), folder("opt/")),
    tar(folder("opt/"), hardlink("opt/cat", "tmp/sh"))
  ]
  writeIndex(layout, [
    {
      ...writeImage(
        layout,
        layers.map((layer) => ({ tar: layer }))
      ),
      annotations: { "org.opencontainers.image.ref.name": "linked" }
    }
  ])
  return layout
}

const options = { skip: whyNoImages }

suite("hard links across layers", (effect) => {
  effect(
    "a hard link to a file of a lower layer works in a container, and leaves its folder as it was",
    function* () {
      const layout = makeLinked(yield* scratch)
      const image = yield* Image.fromLayout(layout)
      const script = "/opt/cat /etc/passwd | head -n 1; stat -c %a /tmp; stat -c %h /opt/cat"
      const command = ["/tmp/sh", "-c", script.replaceAll(/\b(head|stat)\b/g, "/bin/busybox $1")]
      const { stderr, stdout } = yield* Container.run(image, { entrypoint: [], command })
      assert.equal(stdout, "root:x:0:0:root:/root:/bin/sh\n1777\n2\n", stderr)
      const again = yield* Image.fromLayout(layout)
      assert.deepEqual(again.layers, image.layers, "what was made is used again")
    },
    options
  )

  effect(
    "hard links are made once for several fibers, and leave no temporary files",
    function* () {
      const at = yield* scratch
      const layout = makeLinked(at)
      yield* elsewhere(
        at,
        Effect.gen(function* () {
          const images = yield* Effect.all(
            [0, 1, 2].map(() => Image.fromLayout(layout)),
            { concurrency: "unbounded" }
          )
          for (const image of images) assert.deepEqual(image.layers, images[0]!.layers)
          const parent = images[0]!.layers[2]!.replace(/\/[^/]*$/, "")
          assert.deepEqual(
            fs.readdirSync(parent).filter((name) => name.startsWith(".")),
            []
          )
        })
      )
    },
    options
  )

  effect(
    "a collection keeps the layer of hard links while a name reaches it, and removes it with the last name",
    function* () {
      const at = yield* scratch
      const layout = makeLinked(at)
      sh("skopeo", "copy", "-q", `oci:${layout}:linked`, `oci-archive:${at}/archive.tar:linked:1`)
      yield* elsewhere(
        at,
        Effect.gen(function* () {
          const [image] = yield* Image.load(`${at}/archive.tar`)
          const { layers, removed } = yield* Effect.gen(function* () {
            yield* Store.gc()
            const kept = image.layers.filter((layer) => fs.existsSync(layer))
            yield* Image.remove("linked:1")
            return { layers: kept, removed: yield* Store.gc() }
          })
          assert.deepEqual(layers, image.layers)
          assert.equal(removed.layers, image.layers.length)
        })
      )
    },
    options
  )

  effect(
    "one layer above two different layers is linked with the files of each",
    function* () {
      const at = yield* scratch
      const upper = tar(folder("./"), hardlink("b", "a"))
      const images = yield* Effect.forEach(["one", "two"], (content) => {
        const layout = `${at}/${content}`
        writeIndex(layout, [
          writeImage(layout, [{ tar: tar(folder("./"), file("a", content)) }, { tar: upper }])
        ])
        return Image.fromLayout(layout)
      })
      assert.equal(images[0]!.layers[1], images[1]!.layers[1], "the layer itself is shared")
      for (const [k, content] of ["one", "two"].entries()) {
        const { mount } = yield* RootFs.overlay(images[k]!)
        assert.equal(fs.readFileSync(`/proc/self/fd/${mount}/b`, "utf8"), content)
        assert.deepEqual(treeOf(`/proc/${process.pid}/fd/${mount}/`).b!.linked, ["a", "b"])
      }
    },
    options
  )

  effect(
    "a layer without an end marker, as umoci insert writes it, is unpacked",
    function* () {
      const at = yield* scratch
      fs.writeFileSync(`${at}/file`, "inserted")
      sh("umoci", "init", "--layout", `${at}/layout`)
      sh("umoci", "new", "--image", `${at}/layout:latest`)
      sh("umoci", "insert", "--image", `${at}/layout:latest`, `${at}/file`, "/srv/file")
      const image = yield* Image.fromLayout(`${at}/layout`)
      assert.equal(fs.readFileSync(`${image.layers[0]}/srv/file`, "utf8"), "inserted")
    },
    options
  )
})
