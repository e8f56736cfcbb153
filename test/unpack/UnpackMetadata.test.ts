import assert from "node:assert/strict"
import { lstatSync, mkdirSync } from "node:fs"
import type { Bytes } from "../support/tar.ts"
import { concat, entry, file, folder, pax, symlink, tar } from "../support/tar.ts"
import { binary, check, run, text, wh } from "../support/unpack.ts"

const v2 = Uint8Array.of(1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
const v3 = concat(Uint8Array.of(1, 0, 0, 3), v2.subarray(4), Uint8Array.of(0xe8, 3, 0, 0))
const xattr = (name: string, value: Bytes): readonly [string, Bytes] => [`SCHILY.xattr.${name}`, value]

check("file capabilities, version 2 and 3, survive the change of owner", (place) => {
  place.unpack(
    tar(
      pax([xattr("security.capability", v2)]),
      file("ping", "x", { uid: 1, gid: 2, mode: 0o4755 }),
      pax([xattr("security.capability", v3)]),
      file("pong", "x", { uid: 1 })
    )
  )
  assert.equal(place.xattrs("ping").get("security.capability"), text(v2))
  assert.equal(place.xattrs("pong").get("security.capability"), text(v3))
  assert.equal(place.stat("ping").mode & 0o7777n, 0o4755n)
})

check("xattrs with binary values are kept, and those of overlayfs are left out", (place) => {
  const value = Uint8Array.of(0, 1, 0xff, 0x0a, 0x3d, 0)
  const records = [
    xattr("user.binary", value),
    xattr("trusted.overlay.opaque", "y"),
    xattr("trusted.overlay.redirect", "/etc"),
    xattr("trusted.other", "y"),
    xattr("user.overlay.opaque", "y"),
    xattr("user.overlay.whiteout", "y"),
    xattr("security.selinux", "system_u:object_r:x"),
    xattr("system.unknown", "x"),
    ["LIBARCHIVE.xattr.trusted.overlay.metacopy", "eQ=="] as const
  ]
  place.unpack(tar(pax(records), folder("d/"), pax(records), file("f")))
  for (const path of ["d", "f"]) assert.deepEqual([...place.xattrs(path)], [["user.binary", text(value)]])
})

check("a user xattr on a symlink, which Linux does not support, is ignored", (place) => {
  const { status } = place.unpack(
    tar(
      pax([xattr("user.a", "b")]),
      symlink("s", "t"),
      pax([xattr("user.a", "b")]),
      entry({ name: "p", type: "6" })
    )
  )
  assert.equal(status, 0)
})

check("set-id and sticky bits survive the change of owner, whatever the umask", (place) => {
  const archive = tar(
    file("suid", "x", { mode: 0o4711, uid: 5, gid: 6 }),
    file("sgid", "x", { mode: 0o2755 }),
    file("open", "x", { mode: 0o666 }),
    folder("tmp/", { mode: 0o1777 }),
    folder("shared/", { mode: 0o2775, gid: 8 }),
    file("shared/of-root", "x", { mode: 0o664, gid: 0 }),
    folder("shared/plain", { mode: 0o755, gid: 0 }),
    file("shared/made/x"),
    entry({ name: "fifo", type: "6", mode: 0o622, uid: 3 })
  )
  mkdirSync(`${place.base}/masked`)
  const done = run("sh", ["-c", `umask 077; exec ${binary} ${place.base}/masked`], archive)
  assert.equal(done.status, 0)
  const mode = (path: string) => {
    const { mode, uid, gid } = lstatSync(`${place.base}/masked/${path}`)
    return `${(mode & 0o7777).toString(8)} ${uid}:${gid}`
  }
  assert.equal(mode("suid"), "4711 5:6")
  assert.equal(mode("sgid"), "2755 0:0")
  assert.equal(mode("open"), "666 0:0")
  assert.equal(mode("tmp"), "1777 0:0")
  assert.equal(mode("shared"), "2775 0:8")
  assert.equal(mode("shared/of-root"), "664 0:0")
  assert.equal(mode("shared/plain"), "755 0:0")
  assert.equal(mode("shared/made"), "755 0:0")
  assert.equal(mode("fifo"), "622 3:0")
  assert.equal(mode("."), "755 0:0")
})

check("times have nanoseconds, may be negative or beyond 2^33, and are set last on folders", (place) => {
  place.unpack(
    tar(
      folder("./", { mtime: 123, mode: 0o711, uid: 4 }),
      pax([["mtime", "1.000000001"]]),
      folder("d/"),
      file("d/x", "x", { mtime: -5 }),
      pax([["mtime", "-1.25"]]),
      file("d/before", "x"),
      file("d/late", "x", { mtime: 2n ** 33n + 1n }),
      pax([["mtime", "1234567890.987654321"]]),
      symlink("d/s", "x"),
      wh("d/.wh.w"),
      file("made/x")
    )
  )
  // stat(1), because Deno gives times in milliseconds only.
  const time = (path: string) => text(run("stat", ["-c", "%.9Y", `${place.layer}/${path}`]).stdout).trim()
  assert.equal(time("."), "123.000000000")
  assert.equal(time("d"), "1.000000001")
  assert.equal(time("d/x"), "-5.000000000")
  assert.equal(time("d/before"), "-1.250000000")
  assert.equal(time("d/late"), "8589934593.000000000")
  assert.equal(time("d/s"), "1234567890.987654321")
  assert.equal(time("made"), "0.000000000", "the same layer gives the same tree")
  assert.equal(place.stat(".").mode & 0o7777n, 0o711n)
  assert.equal(place.stat(".").uid, 4n)
})

check("ids up to 2^32 - 2 are read in base 256 and in PAX, and larger ones are refused", (place) => {
  const most = 2 ** 32 - 2
  place.unpack(
    tar(
      file("octal", "", { uid: 2 ** 21 - 1, gid: 2 ** 21 }),
      file("binary", "", { uid: 2 ** 31, gid: most }),
      pax([
        ["uid", String(most)],
        ["gid", "3000000000"]
      ]),
      file("pax")
    )
  )
  const ids = (path: string) => [place.stat(path).uid, place.stat(path).gid]
  assert.deepEqual(ids("octal"), [2n ** 21n - 1n, 2n ** 21n])
  assert.deepEqual(ids("binary"), [2n ** 31n, BigInt(most)])
  assert.deepEqual(ids("pax"), [BigInt(most), 3_000_000_000n])
  for (const id of [2 ** 32 - 1, 2 ** 32, 2n ** 62n, -1]) {
    place.fails("corrupt", tar(file("f", "", { uid: id })))
    place.fails("corrupt", tar(pax([["gid", String(id)]]), file("f")))
  }
})

check(
  "devices and fifos are made, and a 0:0 device, or one that the kernel would truncate to it, is refused",
  (place) => {
    place.unpack(
      tar(
        entry({ name: "null", type: "3", major: 1, minor: 3, mode: 0o666 }),
        entry({ name: "disk", type: "4", major: 8, minor: 300, uid: 9 }),
        entry({ name: "zero-block", type: "4" }),
        entry({ name: "fifo", type: "6", mode: 0o640 })
      )
    )
    assert.equal(place.stat("null").rdev, 0x103n)
    assert.equal(place.stat("null").mode, 0o20666n)
    assert.ok(place.stat("disk").isBlockDevice())
    assert.equal(place.stat("disk").uid, 9n)
    assert.ok(place.stat("fifo").isFIFO())
    place.fails("unsupported", tar(entry({ name: "c", type: "3" })))
    place.fails("unsupported", tar(entry({ name: "c", type: "3", major: 4096, minor: 0 })))
    place.fails("unsupported", tar(entry({ name: "c", type: "3", major: 0, minor: 2 ** 20 })))
    // The type bits of a multi-volume entry's mode field may differ from the header's type.
    place.fails("unsupported", tar(entry({ name: "s", type: "M", mode: 0o140_755 })))
  }
)
