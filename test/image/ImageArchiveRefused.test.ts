import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as zlib from "node:zlib"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import fc from "fast-check"
import { type Berth, type BerthError, Image, Store } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { assertFails, configOf, documents, elsewhere, scratch } from "../support/imageArchive.ts"
import { sha256 } from "../support/images.ts"
import * as tar from "../support/tar.ts"

suite("Image.load of untrusted archives", (effect) => {
  const layer = tar.tar(tar.file("bin/x", "x"))
  const config = configOf([layer])
  const good = documents(config, ["l.tar"])
  const refuses = (
    name: string,
    reason: BerthError.ImageError["reason"],
    members: ReadonlyArray<Uint8Array>,
    mention: string
  ) =>
    effect(name, function* () {
      const folder = yield* scratch
      fs.writeFileSync(`${folder}/a.tar`, tar.tar(...members))
      yield* assertFails(reason, Image.load(`${folder}/a.tar`), mention)
    })

  const l = tar.file("l.tar", layer)
  refuses(
    "a member with a path above the archive is refused",
    "Escape",
    [l, tar.file("../evil", "x"), ...good],
    "../evil"
  )
  refuses(
    "a member whose path contains .. is refused",
    "Escape",
    [tar.file("a/../l.tar", layer), ...good],
    ".."
  )
  refuses(
    "a member with an absolute path is refused",
    "Escape",
    [l, tar.file("/etc/evil", "x"), ...good],
    "/etc/evil"
  )
  refuses(
    "a symbolic link out of the archive is refused",
    "Escape",
    [tar.symlink("l.tar", "../l.tar"), ...good],
    "../l.tar"
  )
  refuses(
    "a symbolic link with an absolute target is refused",
    "Escape",
    [tar.symlink("l.tar", "/etc/passwd"), ...good],
    "/etc/passwd"
  )
  refuses(
    "a hard link out of the archive is refused",
    "Escape",
    [tar.hardlink("l.tar", "a/../../x"), ...good],
    ".."
  )
  refuses(
    "links in a circle are refused",
    "Corrupt",
    [tar.symlink("l.tar", "m.tar"), tar.symlink("m.tar", "l.tar"), ...good],
    "link"
  )
  refuses("two members of one name are refused", "Corrupt", [l, l, ...good], "l.tar")
  refuses(
    "a manifest with a layer path out of the archive is refused",
    "Escape",
    documents(config, ["../../../etc/passwd"]),
    "etc/passwd"
  )
  refuses("a missing layer is refused by its name", "NotFound", good, "l.tar")
  refuses("a folder in place of a layer is refused", "NotFound", [tar.folder("l.tar"), ...good], "l.tar")
  refuses(
    "a layer with another diff id than the config's is refused",
    "DigestMismatch",
    [tar.file("l.tar", tar.tar(tar.file("bin/y", "y"))), ...good],
    sha256(layer)
  )
  refuses(
    "a gzip layer with another diff id than the config's is refused",
    "DigestMismatch",
    [tar.file("l.tar", zlib.gzipSync(tar.tar(tar.file("bin/z", "z")))), ...good],
    "diff id"
  )
  refuses(
    "a config with another digest than its name is refused",
    "DigestMismatch",
    [
      l,
      tar.file(`${"0".repeat(64)}.json`, config),
      tar.file("manifest.json", JSON.stringify([{ Config: `${"0".repeat(64)}.json`, Layers: ["l.tar"] }]))
    ],
    "config"
  )
  refuses(
    "more layers than diff ids are refused",
    "Corrupt",
    [l, ...documents(config, ["l.tar", "l.tar"])],
    "2 layers"
  )
  refuses(
    "a diff id that is a path is refused",
    "Corrupt",
    [l, ...documents(configOf([], { rootfs: { type: "layers", diff_ids: ["sha256:../../x"] } }), ["l.tar"])],
    "digest"
  )
  refuses(
    "a name that is not a reference is refused",
    "Corrupt",
    [l, ...documents(config, ["l.tar"], ["../../x:1"])],
    "../../x:1"
  )
  refuses(
    "an archive with an empty manifest is refused",
    "NotFound",
    [tar.file("manifest.json", "[]")],
    "no image"
  )
  refuses(
    "a manifest that is not JSON is refused",
    "Corrupt",
    [tar.file("manifest.json", "{")],
    "manifest.json"
  )
  refuses(
    "a manifest of the wrong shape is refused",
    "Corrupt",
    [tar.file("manifest.json", '[{"Config":1}]')],
    "Config"
  )
  refuses(
    "a manifest larger than 4 MiB is refused",
    "TooLarge",
    [tar.file("manifest.json", " ".repeat(4 * 1024 * 1024 + 1))],
    "manifest.json"
  )
  refuses(
    "an archive of a root filesystem is refused with a hint at Image.import",
    "Unsupported",
    [tar.file("etc/passwd", "")],
    "Image.import"
  )
  refuses(
    "a member name that is too long is refused",
    "Corrupt",
    [tar.pax([["path", "x".repeat(4096)]]), l, ...good],
    "4096"
  )
  refuses(
    "an image for another machine is refused",
    "Platform",
    [l, ...documents(configOf([layer], { architecture: "s390x" }), ["l.tar"])],
    "linux/s390x"
  )
  refuses(
    "a corrupt layer is refused",
    "Corrupt",
    (() => {
      const bad = tar.concat(tar.file("x", "x"), "not a header".repeat(100))
      return [tar.file("l.tar", bad), ...documents(configOf([bad]), ["l.tar"])]
    })(),
    ""
  )
  refuses(
    "an archive with one broken image of two names no image in the store",
    "NotFound",
    (() => {
      const name = `${sha256(tar.bytes(config)).slice(7)}.json`
      const entries = ["l.tar", "gone.tar"].map((each) => ({
        Config: name,
        RepoTags: [`x:${each.length}`],
        Layers: [each]
      }))
      return [l, tar.file(name, config), tar.file("manifest.json", JSON.stringify(entries))]
    })(),
    "gone.tar"
  )

  effect("files that are not archives are refused, each with its reason", function* () {
    const folder = yield* scratch
    const path = `${folder}/file`
    const refused = (reason: BerthError.ImageError["reason"], content: Uint8Array, mention: string) => {
      fs.writeFileSync(path, content)
      return assertFails(reason, Image.load(path), mention)
    }
    yield* refused("Unsupported", new Uint8Array(0), "neither")
    yield* refused("Corrupt", new Uint8Array(10_000).fill(7), "tar")
    yield* refused("Unsupported", Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0), "xz")
    yield* refused("Unsupported", tar.bytes("BZh91AY"), "bzip2")
    const packed = zlib.gzipSync(tar.tar(l, ...good))
    yield* refused("Corrupt", packed.subarray(0, packed.length - 20), "decompressed")
    yield* refused("Corrupt", tar.concat(packed.subarray(0, 20), "garbage"), "decompressed")
    const bomb = zlib.gzipSync(new Uint8Array(10_000_000))
    fs.writeFileSync(path, bomb)
    yield* assertFails("TooLarge", Image.load(path, { maxArchiveBytes: 1_000_000 }), "1000000")
    yield* assertFails("TooLarge", Image.load(Stream.make(bomb, bomb), { maxArchiveBytes: 10_000 }), "10000")
    yield* assertFails("NotFound", Image.load(`${folder}/absent`))
    yield* failure("InvalidOption", Image.load("a\0b"))
    const wrong = yield* failure("InvalidOption", Image.load(folder))
    assert.match(wrong.message, /Image\.fromLayout/)
    const failed = yield* Effect.flip(Image.load(Stream.fail("the network")))
    assert.equal(failed, "the network")
  })

  effect("an archive that is truncated before its last file's end is refused", function* () {
    const folder = yield* scratch
    const whole = tar.tar(...good, l)
    const needed = whole.length - tar.end.length
    const context = yield* Effect.context<Berth.Berth>()
    yield* Effect.promise(() =>
      fc.assert(
        fc.asyncProperty(fc.nat(needed - 1 - 511), async (length) => {
          fs.writeFileSync(`${folder}/cut.tar`, whole.subarray(0, length))
          const loading = elsewhere(folder, assertFailsAtAll(Image.load(`${folder}/cut.tar`)))
          await Effect.runPromise(Effect.provide(loading, context))
        }),
        { numRuns: 25 }
      )
    )
  })

  const assertFailsAtAll = (load: Effect.Effect<unknown, BerthError.BerthError, Berth.Berth>) =>
    Effect.gen(function* () {
      yield* failure("ImageError", load)
      assert.deepEqual(yield* Store.list, [])
    })
})
