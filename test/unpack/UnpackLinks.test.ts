import assert from "node:assert/strict"
import { readlinkSync } from "node:fs"
import { file, folder, hardlink, symlink, tar } from "../support/tar.ts"
import { check, isWhiteout, wh } from "../support/unpack.ts"

check(
  "a hard link shares its target's inode, whether it comes before or after, and along a chain",
  (place) => {
    const orders = [
      [file("a", "x"), hardlink("b", "a"), hardlink("c", "./b")],
      [hardlink("c", "/b"), hardlink("b", "a"), file("a", "x")],
      [hardlink("b", "a"), hardlink("c", "b"), file("a", "x")],
      [hardlink("c", "b"), file("a", "x"), hardlink("b", "a")]
    ]
    for (const order of orders) {
      const { all } = place.unpack(tar(...order))
      assert.deepEqual(all("hardlink"), [])
      assert.equal(place.stat("a").nlink, 3n)
      assert.equal(place.read("c"), "x")
    }
  }
)

check("a hard link to a file of a lower layer is reported, and a file in its place is removed", (place) => {
  const { all } = place.unpack(
    tar(
      file("dir/l", "old"),
      hardlink("dir/l", "usr/bin/a b"),
      hardlink("m", "dir/l"),
      wh(".wh.w"),
      hardlink("n", "w")
    )
  )
  assert.deepEqual(all("hardlink"), ["usr/bin/a b dir/l", "dir/l m", "w n"])
  assert.deepEqual(place.tree(), ["dir", "w"])
})

check("a hard link whose target comes later gives way to a later entry of its own name", (place) => {
  const { all } = place.unpack(
    tar(
      hardlink("a", "t"),
      hardlink("b", "t"),
      file("a", "later"),
      hardlink("b", "u"),
      file("t", "t"),
      file("u", "u")
    )
  )
  assert.deepEqual(all("hardlink"), [])
  assert.equal(place.read("a"), "later")
  assert.equal(place.read("b"), "u")
})

check("a hard link to a symlink is a link to the symlink", (place) => {
  place.unpack(tar(symlink("s", "/etc/passwd"), hardlink("h", "s")))
  assert.equal(readlinkSync(`${place.layer}/h`), "/etc/passwd")
  assert.equal(place.stat("h").ino, place.stat("s").ino)
})

check("a hard link to itself changes nothing, and another one replaces the file in its place", (place) => {
  place.unpack(tar(file("a", "x"), hardlink("a", "a"), folder("d/"), file("d/f"), hardlink("d", "a")))
  assert.equal(place.read("d"), "x")
  assert.equal(place.stat("a").nlink, 2n)
})

check("a hard link to a folder, to an empty name or out of the layer is refused", (place) => {
  assert.equal(place.fails("corrupt", tar(folder("d/"), hardlink("h", "d"))).path, "h")
  place.fails("corrupt", tar(hardlink("h", "d"), folder("d/")))
  place.fails("corrupt", tar(hardlink("h", "")))
  place.fails("corrupt", tar(hardlink("h", "/")))
  place.fails("escape", tar(hardlink("h", "../../etc/passwd")))
  place.fails("escape", tar(hardlink("h", "a/../b")))
})

check("writes, whiteouts and hard links through a symlinked folder land inside the layer", (place) => {
  for (const target of ["/real/place", "../../../real/place", "real/place"]) {
    place.unpack(
      tar(
        folder("real/place/"),
        symlink("via", target),
        file("via/file", "f"),
        wh("via/.wh.gone"),
        hardlink("via/hard", "via/file"),
        hardlink("other", "via/file"),
        folder("via/sub/", { mtime: 77 })
      )
    )
    assert.equal(readlinkSync(`${place.layer}/via`), target, "absolute symlinks are legitimate")
    assert.equal(place.read("real/place/file"), "f")
    assert.equal(place.stat("real/place/file").nlink, 3n)
    assert.ok(isWhiteout(place, "real/place/gone"))
    assert.equal(place.stat("real/place/sub").mtimeMs, 77_000n)
  }
})

check("writing through a dangling symlink makes its target where the container would see it", (place) => {
  const { all } = place.unpack(tar(symlink("var/run", "/run"), file("var/run/lock/pid", "1")))
  assert.equal(place.read("run/lock/pid"), "1")
  assert.deepEqual(all("implicit"), ["var", "run", "run/lock"])
  place.fails("corrupt", tar(symlink("a", "b"), symlink("b", "a"), file("a/x")))
})

check("replacing one name of a file leaves its other names as they were", (place) => {
  place.unpack(tar(file("a", "first"), hardlink("b", "a"), file("a", "second")))
  assert.equal(place.read("a"), "second")
  assert.equal(place.read("b"), "first")
})
