import assert from "node:assert/strict"
import { mkdirSync, readlinkSync } from "node:fs"
import { file, folder, symlink, tar } from "../support/tar.ts"
import type { Place } from "../support/unpack.ts"
import { check, isWhiteout, opaque, run, text, wh } from "../support/unpack.ts"

/** The output of a shell script on the layers, mounted as an overlay for it; the topmost layer comes first. */
const overlay = (place: Place, layers: ReadonlyArray<string>, script: string): string => {
  mkdirSync(`${place.base}/merged`, { recursive: true })
  const mount = `mount -t overlay overlay -o lowerdir=${layers.join(":")} ${place.base}/merged`
  const done = run("unshare", ["--mount", "sh", "-ec", `${mount}; cd ${place.base}/merged; ${script}`])
  return text(done.stdout) + done.stderr
}

check("a whiteout hides a file of lower layers as a 0:0 character device", (place) => {
  place.unpack(tar(folder("a/"), wh("a/.wh.gone")))
  assert.deepEqual(place.tree(), ["a", "a/gone"])
  assert.ok(isWhiteout(place, "a/gone"))
})

check("a whiteout affects lower layers only, whatever its place in the tar", (place) => {
  for (const flip of [false, true]) {
    const order = (...entries: Array<Uint8Array>) => tar(...(flip ? entries.reverse() : entries))
    place.unpack(order(wh(".wh.file"), file("file", "mine")))
    assert.equal(place.read("file"), "mine")
    place.unpack(order(wh(".wh.link"), symlink("link", "elsewhere")))
    assert.equal(readlinkSync(`${place.layer}/link`), "elsewhere")
    place.unpack(order(wh(".wh.dir"), folder("dir", { mode: 0o700 })))
    assert.equal(opaque(place, "dir"), "y", "a folder that replaces a lower one is opaque")
    assert.equal(place.stat("dir").mode & 0o7777n, 0o700n)
    const { all } = place.unpack(order(wh(".wh.dir"), file("dir/mine", "kept")))
    assert.equal(opaque(place, "dir"), "y")
    assert.equal(place.read("dir/mine"), "kept")
    assert.deepEqual(all("implicit"), [], "a folder that is new has nothing to learn from a lower one")
  }
})

check("an opaque folder keeps its own files, and has no whiteouts that overlayfs would list", (place) => {
  const entries = [
    folder("a/"),
    wh("a/.wh.x"),
    wh("a/.wh..wh..opq"),
    wh("a/.wh.y"),
    file("a/new", "new"),
    wh("a/sub/.wh.z"),
    wh(".wh.kept")
  ]
  for (const order of [entries, [...entries].reverse()]) {
    place.unpack(tar(...order))
    assert.deepEqual(place.tree(), ["a", "a/new", "a/sub", "kept"])
    assert.equal(opaque(place, "a"), "y")
    assert.equal(opaque(place, "a/sub"), undefined)
  }
})

check("a whiteout of a folder that is also in the layer makes the folder opaque", (place) => {
  place.unpack(tar(wh(".wh.a"), folder("a/"), wh("a/.wh.x"), wh("a/b/.wh.y"), file("a/b/mine")))
  assert.equal(opaque(place, "a"), "y")
  assert.deepEqual(place.tree(), ["a", "a/b", "a/b/mine"])
})

check("overlayfs shows the same tree as the layers describe", (place) => {
  const lower = place.unpack(
    tar(
      folder("a/"),
      file("a/x", "1"),
      file("a/y", "2"),
      folder("a/sub/"),
      file("a/sub/s"),
      file("top"),
      file("b/c")
    )
  )
  assert.equal(lower.status, 0)
  const below = place.layer
  place.unpack(
    tar(wh("a/.wh..wh..opq"), wh("a/.wh.x"), wh("a/sub/.wh.s"), file("a/new"), wh(".wh.top"), wh("b/.wh.c"))
  )
  const seen = overlay(place, [place.layer, below], "find . | sort | tr '\\n' ' '; ls -A a a/sub b >&2")
  assert.ok(seen.startsWith(". ./a ./a/new ./a/sub ./b "), seen)
  assert.ok(!seen.includes("cannot access"), seen)
})

check("an opaque mark on the root is reported, as overlayfs ignores one there", (place) => {
  const { all } = place.unpack(tar(wh(".wh..wh..opq"), wh(".wh.x"), file("a")))
  assert.deepEqual(all("opaque"), ["."])
  assert.deepEqual(place.tree(), ["a"])
})

check("a whiteout of a missing path makes its parent folders and reports them", (place) => {
  const { all } = place.unpack(tar(wh("a/b/.wh.c")))
  assert.ok(isWhiteout(place, "a/b/c"))
  assert.deepEqual(all("implicit"), ["a", "a/b"])
  assert.equal(place.stat("a/b").mode & 0o7777n, 0o755n)
})

check("a whiteout whose parent is not a folder is refused", (place) => {
  const error = place.fails("corrupt", tar(file("a"), wh("a/.wh.b")))
  assert.equal(error.path, "a/.wh.b")
})

check("a whiteout of a symlink does not hide its target", (place) => {
  place.unpack(tar(file("target", "kept"), symlink("link", "target"), wh(".wh.link")))
  assert.equal(readlinkSync(`${place.layer}/link`), "target")
  assert.equal(place.read("target"), "kept")
})

check("invalid names of whiteouts are refused, and those of aufs are skipped", (place) => {
  place.fails("corrupt", tar(wh(".wh.")))
  place.fails("escape", tar(wh("a/.wh..")))
  place.fails("escape", tar(wh("a/.wh...")))
  place.fails("corrupt", tar(wh(".wh.a/b")))
  place.unpack(
    tar(
      folder(".wh..wh.plnk/"),
      file(".wh..wh.plnk/12.34", "x"),
      wh(".wh..wh.aufs"),
      folder(".wh..wh.orph/"),
      wh("a/.wh..wh.x"),
      file("b")
    )
  )
  assert.deepEqual(place.tree(), ["b"])
  place.unpack(tar(wh(".wh....")))
  assert.ok(isWhiteout(place, "..."), "a name of three dots is a name")
})

check("a whiteout, a file and a folder of one name, in this order, leave an opaque folder", (place) => {
  place.unpack(tar(wh(".wh.a"), file("a"), folder("a/"), file("a/x")))
  assert.equal(opaque(place, "a"), "y")
})
