import assert from "node:assert/strict"
import { concat, entry, file, folder, hardlink, symlink, tar } from "../support/tar.ts"
import { check } from "../support/unpack.ts"

check("folders, files and symlinks of one name replace each other, and the last entry wins", (place) => {
  const forms: Record<string, Uint8Array> = {
    file: file("n", "content"),
    folder: concat(folder("n/"), file("n/in", "inside"), folder("n/deep/er/"), symlink("n/deep/up", "..")),
    symlink: symlink("n", "somewhere"),
    fifo: entry({ name: "n", type: "6" })
  }
  for (const [first, one] of Object.entries(forms))
    for (const [second, other] of Object.entries(forms)) {
      place.unpack(tar(one, other))
      const stat = place.stat("n")
      const is = {
        file: stat.isFile(),
        folder: stat.isDirectory(),
        symlink: stat.isSymbolicLink(),
        fifo: stat.isFIFO()
      }
      assert.ok(is[second as keyof typeof is], `${first} then ${second}`)
    }
})

check("a folder with a second entry keeps its contents and gets the new metadata", (place) => {
  place.unpack(
    tar(
      folder("a/", { mode: 0o700, mtime: 5 }),
      file("a/x", "kept"),
      folder("a", { mode: 0o751, uid: 7, mtime: 9 })
    )
  )
  assert.equal(place.read("a/x"), "kept")
  const stat = place.stat("a")
  assert.deepEqual([stat.mode & 0o7777n, stat.uid, stat.mtimeMs], [0o751n, 7n, 9000n])
})

check("a folder that a symlink has replaced is not written into", (place) => {
  place.unpack(tar(folder("a/"), file("a/one"), folder("b/"), symlink("a", "b"), file("a/two", "2")))
  assert.deepEqual(place.tree(), ["a", "b", "b/two"])
})

check("parents without an entry are made with mode 0755, and a later entry sets their metadata", (place) => {
  const { all } = place.unpack(tar(file("a/b/c"), file("d/e/f"), folder("a/", { mode: 0o700, gid: 3 })))
  assert.deepEqual(all("implicit"), ["a/b", "d", "d/e"])
  assert.equal(place.stat("a").mode & 0o7777n, 0o700n)
  assert.equal(place.stat("a/b").mode & 0o7777n, 0o755n)
  place.unpack(tar(file("a/b/c"), file("a", "replaced")))
  assert.equal(place.read("a"), "replaced")
})

check("CVE-2021-29136: `./`, `/` and `.` name the root, which must be a folder", (place) => {
  for (const name of ["./", "/", ".", "//./"]) {
    place.unpack(tar(folder(name, { mode: 0o750 }), file("./a"), folder("b///")))
    assert.deepEqual(place.tree(), ["a", "b"])
    assert.equal(place.stat(".").mode & 0o7777n, 0o750n)
    place.fails("escape", tar(symlink(name, "/etc")))
    place.fails("escape", tar(hardlink(name, "a")))
    place.fails("escape", tar(entry({ name, type: "6" })))
  }
  place.fails("escape", tar(file(".", "x")))
  place.fails("corrupt", tar(file("")))
})

check("a file entry with a trailing slash is a folder, and a file as a parent is an error", (place) => {
  place.unpack(tar(entry({ name: "old/", type: "0" }), entry({ name: "older/", type: "\0", format: "v7" })))
  assert.ok(place.stat("old").isDirectory() && place.stat("older").isDirectory())
  const error = place.fails("corrupt", tar(file("a"), file("a/b")))
  assert.equal(error.path, "a/b")
  assert.equal(error.errno, 20, "ENOTDIR")
  place.fails("corrupt", tar(symlink("a", "f"), file("f"), file("a/b")))
})

check("folders and files of mode 000 are filled", (place) => {
  place.unpack(
    tar(folder("a/", { mode: 0 }), folder("a/b/", { mode: 0o100 }), file("a/b/c", "x", { mode: 0 }))
  )
  assert.equal(place.read("a/b/c"), "x")
  assert.equal(place.stat("a").mode & 0o7777n, 0n)
  assert.equal(place.stat("a/b/c").mode & 0o7777n, 0n)
})
