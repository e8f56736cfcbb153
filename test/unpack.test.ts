import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  unlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import test from "node:test"
import { fileURLToPath } from "node:url"
import { gzipSync } from "node:zlib"
import type { Bytes } from "./support/tar.ts"
import {
  bytes,
  concat,
  end,
  entry,
  file,
  folder,
  hardlink,
  header,
  latin1,
  long,
  pax,
  paxRecords,
  symlink,
  tar,
  zstdFrame,
  zstdSkippable
} from "./support/tar.ts"

const native = process.env.BERTH_NATIVE ?? fileURLToPath(new URL("../native/build", import.meta.url))
const binary = `${native}/berth-unpack`

const reason: string | false =
  process.getuid?.() !== 0
    ? "needs root: owners, devices and trusted.* xattrs"
    : existsSync(binary)
      ? false
      : "native/build/berth-unpack is not built"

// LeakSanitizer stops the process with ptrace, which a process that is not dumpable refuses.
const env = { ...process.env, ASAN_OPTIONS: "detect_leaks=0" }

const run = (command: string, args: ReadonlyArray<string>, input: Uint8Array = new Uint8Array()) => {
  // From a file, through a shell: where the reader stops early a pipe gives EPIPE, which not every runtime forgives,
  // nor does every runtime pass a descriptor of its own on.
  const path = `${tmpdir()}/berth-unpack-input-${process.pid}`
  writeFileSync(path, input)
  try {
    const redirected = ["-c", `exec "$0" "$@" <${path}`, command, ...args]
    const done = spawnSync("sh", redirected, { env, maxBuffer: 1 << 28 })
    return { status: done.status, stdout: new Uint8Array(done.stdout), stderr: String(done.stderr) }
  } finally {
    unlinkSync(path)
  }
}

const text = (content: Uint8Array): string => new TextDecoder("latin1").decode(content)

interface Report {
  readonly status: number | null
  readonly lines: ReadonlyArray<ReadonlyArray<string>>
  readonly error?: { kind: string; errno: number; call: string; path: string; message: string }
  /** The decoded arguments of every line with that key, joined with a space. */
  readonly all: (key: string) => ReadonlyArray<string>
}

const parse = (status: number | null, stdout: Uint8Array, stderr: string): Report => {
  assert.equal(stderr, "", "nothing on standard error")
  const lines = text(stdout)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.split(" "))
  const all = (key: string) =>
    lines.filter((line) => line[0] === key).map((line) => line.slice(1).map(unescape).join(" "))
  const [first] = lines
  if (status === 0) {
    assert.deepEqual(lines.at(-1), ["ok"])
    return { status, lines, all }
  }
  assert.equal(status, 1)
  assert.equal(lines.length, 1, "a failure is one line")
  const [key, kind, errno, call, path, message] = first as [string, string, string, string, string, string]
  assert.equal(key, "error")
  const error = { kind, errno: Number(errno), call, path: unescape(path), message: unescape(message) }
  return { status, lines, all, error }
}

/** A folder of its own for each test: `layer` is unpacked into, anything beside it must stay as it was. */
interface Place {
  readonly base: string
  readonly layer: string
  readonly unpack: (archive: Uint8Array, ...options: ReadonlyArray<string>) => Report
  readonly fails: (
    kind: string,
    archive: Uint8Array,
    ...options: ReadonlyArray<string>
  ) => NonNullable<Report["error"]>
  readonly stat: (path: string) => ReturnType<typeof lstatBig>
  readonly read: (path: string) => string
  /** Every path in the layer, in latin1 so that no byte is lost, sorted. */
  readonly tree: () => ReadonlyArray<string>
  readonly xattrs: (path: string) => Map<string, string>
}

const lstatBig = (path: string) => lstatSync(path, { bigint: true })

const mountsOf = (path: string) =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes(path))

const check = (name: string, body: (place: Place) => void | Promise<void>, skip = reason) =>
  test(name, { skip, timeout: 120_000 }, async () => {
    const base = mkdtempSync(`${tmpdir()}/berth-unpack-`)
    let layer = `${base}/layer`
    let count = 0
    writeFileSync(`${base}/canary`, "untouched")
    const before = readdirSync("/").sort()
    const unpack = (archive: Uint8Array, ...options: ReadonlyArray<string>): Report => {
      layer = `${base}/layer${count++ || ""}`
      mkdirSync(layer)
      const done = run(binary, [...options, layer], archive)
      return parse(done.status, done.stdout, done.stderr)
    }
    try {
      await body({
        base,
        get layer() {
          return layer
        },
        unpack,
        fails: (kind, archive, ...options) => {
          const { error } = unpack(archive, ...options)
          assert.ok(error, `expected ${kind}, got success`)
          assert.equal(error.kind, kind, `${error.message} ${error.path}`)
          return error
        },
        stat: (path) => lstatBig(`${layer}/${path}`),
        read: (path) => readFileSync(`${layer}/${path}`, "utf8"),
        tree: () =>
          text(run("find", [layer, "-mindepth", "1", "-printf", "%P\\0"]).stdout)
            .split("\0")
            .filter((path) => path !== "")
            .sort(),
        xattrs: (path) => {
          const args = ["--format=pax", "--xattrs", "--xattrs-include=*", "--no-recursion"]
          const done = run("tar", [...args, "-C", layer, "-cf", "-", "--", path])
          const found = new Map<string, string>()
          for (const [key, value] of paxRecords(done.stdout))
            if (key.startsWith("SCHILY.xattr.")) found.set(key.slice(13), text(value))
          return found
        }
      })
      assert.equal(readFileSync(`${base}/canary`, "utf8"), "untouched")
      assert.deepEqual(readdirSync("/").sort(), before)
      assert.deepEqual(mountsOf(base), [], "no mount is left")
    } finally {
      // rm, because a path longer than PATH_MAX is too long for fs.rm.
      run("rm", ["-rf", "--", base])
    }
  })

const isWhiteout = (place: Place, path: string): boolean => {
  const stat = place.stat(path)
  return stat.isCharacterDevice() && stat.rdev === 0n
}

const opaque = (place: Place, path: string) => place.xattrs(path).get("trusted.overlay.opaque")

/** What a shell says of the layers mounted as an overlay, topmost first; the mount dies with the command. */
const overlay = (place: Place, layers: ReadonlyArray<string>, script: string): string => {
  mkdirSync(`${place.base}/merged`, { recursive: true })
  const mount = `mount -t overlay overlay -o lowerdir=${layers.join(":")} ${place.base}/merged`
  const done = run("unshare", ["--mount", "sh", "-ec", `${mount}; cd ${place.base}/merged; ${script}`])
  return text(done.stdout) + done.stderr
}

const wh = (path: string) => file(path)

// ---- (1) to (4): whiteouts

check("a whiteout hides what lower layers have, and is a 0:0 character device", (place) => {
  place.unpack(tar(folder("a/"), wh("a/.wh.gone")))
  assert.deepEqual(place.tree(), ["a", "a/gone"])
  assert.ok(isWhiteout(place, "a/gone"))
})

check("(1) a whiteout speaks of lower layers only, whatever its order in the tar", (place) => {
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

check("(2) an opaque folder keeps its own files, and no whiteouts that overlayfs would list", (place) => {
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

check("(2) a whiteout of a folder that the layer has too makes it opaque, inside and out", (place) => {
  place.unpack(tar(wh(".wh.a"), folder("a/"), wh("a/.wh.x"), wh("a/b/.wh.y"), file("a/b/mine")))
  assert.equal(opaque(place, "a"), "y")
  assert.deepEqual(place.tree(), ["a", "a/b", "a/b/mine"])
})

check("overlayfs shows exactly what the layers say", (place) => {
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

check("(2) an opaque mark on the root is reported, because overlayfs takes none there", (place) => {
  const { all } = place.unpack(tar(wh(".wh..wh..opq"), wh(".wh.x"), file("a")))
  assert.deepEqual(all("opaque"), ["."])
  assert.deepEqual(place.tree(), ["a"])
})

check("(3) a whiteout of a missing path makes the folders above it, and reports them", (place) => {
  const { all } = place.unpack(tar(wh("a/b/.wh.c")))
  assert.ok(isWhiteout(place, "a/b/c"))
  assert.deepEqual(all("implicit"), ["a", "a/b"])
  assert.equal(place.stat("a/b").mode & 0o7777n, 0o755n)
})

check("(3) a whiteout whose parent is not a folder is refused", (place) => {
  const error = place.fails("corrupt", tar(file("a"), wh("a/.wh.b")))
  assert.equal(error.path, "a/.wh.b")
})

check("(3) a whiteout of a symlink is not one of its target", (place) => {
  place.unpack(tar(file("target", "kept"), symlink("link", "target"), wh(".wh.link")))
  assert.equal(readlinkSync(`${place.layer}/link`), "target")
  assert.equal(place.read("target"), "kept")
})

check("(3) names that only look like whiteouts are refused, and those of aufs skipped", (place) => {
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

check("(4) folder, file and symlink replace each other, and the last entry wins", (place) => {
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

check("(4) a folder that comes again keeps its contents and takes the new metadata", (place) => {
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

check("(4) a folder replaced by a symlink is not written into any more", (place) => {
  place.unpack(tar(folder("a/"), file("a/one"), folder("b/"), symlink("a", "b"), file("a/two", "2")))
  assert.deepEqual(place.tree(), ["a", "b", "b/two"])
})

check("(4) a whiteout, then a file, then a folder of one name leave an opaque folder", (place) => {
  place.unpack(tar(wh(".wh.a"), file("a"), folder("a/"), file("a/x")))
  assert.equal(opaque(place, "a"), "y")
})

// ---- (5) to (7): links and paths

check("(5) a hard link shares its target's inode, before or after it, and along a chain", (place) => {
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
})

check("(5) a hard link to a file of a lower layer is reported, with its place cleared", (place) => {
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

check("(5) a hard link that waits for its target gives way to a later entry of its name", (place) => {
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

check("(5) a hard link to a symlink is a link to the symlink", (place) => {
  place.unpack(tar(symlink("s", "/etc/passwd"), hardlink("h", "s")))
  assert.equal(readlinkSync(`${place.layer}/h`), "/etc/passwd")
  assert.equal(place.stat("h").ino, place.stat("s").ino)
})

check("(5) a hard link to itself changes nothing, and one replaces what was there", (place) => {
  place.unpack(tar(file("a", "x"), hardlink("a", "a"), folder("d/"), file("d/f"), hardlink("d", "a")))
  assert.equal(place.read("d"), "x")
  assert.equal(place.stat("a").nlink, 2n)
})

check("(5) a hard link to a folder, to nothing or out of the root is refused", (place) => {
  assert.equal(place.fails("corrupt", tar(folder("d/"), hardlink("h", "d"))).path, "h")
  place.fails("corrupt", tar(hardlink("h", "d"), folder("d/")))
  place.fails("corrupt", tar(hardlink("h", "")))
  place.fails("corrupt", tar(hardlink("h", "/")))
  place.fails("escape", tar(hardlink("h", "../../etc/passwd")))
  place.fails("escape", tar(hardlink("h", "a/../b")))
})

check("(6) writes, whiteouts and hard links through a symlinked folder land inside the layer", (place) => {
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

check("(6) what a dangling symlink leads to is made, where the container would see it", (place) => {
  const { all } = place.unpack(tar(symlink("var/run", "/run"), file("var/run/lock/pid", "1")))
  assert.equal(place.read("run/lock/pid"), "1")
  assert.deepEqual(all("implicit"), ["var", "run", "run/lock"])
  place.fails("corrupt", tar(symlink("a", "b"), symlink("b", "a"), file("a/x")))
})

check("(7) no entry reaches out of the folder", (place) => {
  const name = place.base.slice(1)
  for (const path of [
    "../canary",
    "..",
    "a/..",
    "a/../../canary",
    "/../canary",
    "./../canary",
    "a/./.././../canary"
  ]) {
    assert.equal(place.fails("escape", tar(file(path, "pwned"))).path, path)
    place.fails("escape", tar(folder(path)))
    place.fails("escape", tar(symlink(path, "/")))
    place.fails("escape", tar(hardlink("h", path)))
  }
  place.unpack(tar(file(`/${name}/canary`, "inside"), file("///etc//./passwd", "x")))
  assert.equal(place.read(`${name}/canary`), "inside", "an absolute path starts at the layer's root")
  for (const link of ["/", `/${name}`, "..", "../../../../../../..", `../../../../../..//${name}`]) {
    place.unpack(
      tar(symlink("out", link), file("out/canary", "pwned"), wh("out/.wh.gone"), folder("out/dir/"))
    )
    place.unpack(
      tar(symlink("out", link), symlink("two", "out"), file("two/canary", "pwned"), file("two/a/b"))
    )
    const { all } = place.unpack(tar(symlink("out", link), hardlink("stolen", "out/canary")))
    assert.deepEqual(all("hardlink"), ["out/canary stolen"])
  }
  place.unpack(tar(symlink("canary", `/${name}/canary`), file("canary", "replaced")))
  assert.equal(place.read("canary"), "replaced")
  place.unpack(tar(symlink("l", `/${name}/canary`), hardlink("h", "l"), file("h", "not through it")))
  assert.equal(place.read("h"), "not through it")
})

// ---- (8) to (10): metadata

const v2 = Uint8Array.of(1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
const v3 = concat(Uint8Array.of(1, 0, 0, 3), v2.subarray(4), Uint8Array.of(0xe8, 3, 0, 0))
const xattr = (name: string, value: Bytes): readonly [string, Bytes] => [`SCHILY.xattr.${name}`, value]

check("(8) file capabilities, version 2 and 3, survive the change of owner", (place) => {
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

check("(8) xattrs are binary, and those that would speak to overlayfs are left out", (place) => {
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

check("(8) a user xattr on a symlink, which Linux has not, is no error", (place) => {
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

check("(9) set-id and sticky bits survive the change of owner, whatever the umask", (place) => {
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

check("(9) times have nanoseconds, may be negative or beyond 2^33, and a folder's are set last", (place) => {
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
  // stat(1), because Deno has milliseconds only.
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

check("(10) ids go up to 2^32 - 2, in base 256 and in PAX, and no further", (place) => {
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

// ---- (11) to (15): format

check("(11) names keep their bytes: UTF-8 composed or not, Latin-1, and PAX that is neither", (place) => {
  const composed = "d/é 日本"
  const decomposed = "d/e\u0301"
  const wild = concat("d/", latin1("w\xff\xfe"))
  const target = concat("t", latin1("\xe9"))
  place.unpack(
    tar(
      pax([["path", composed]]),
      file("x"),
      pax([["path", decomposed]]),
      file("x"),
      file(concat("d/", latin1("caf\xe9"))),
      file("d/plain-日本"),
      pax([["path", wild]]),
      file("x"),
      pax([
        ["hdrcharset", "BINARY"],
        ["path", concat(wild, "2")]
      ]),
      file("x"),
      pax([
        ["path", "d/link"],
        ["linkpath", target]
      ]),
      symlink("x", "y"),
      pax([["path", concat("d/", latin1("\xc3\x28/"))]]),
      entry({ name: "x" })
    )
  )
  const raw = (name: Bytes) => text(bytes(name))
  const names = ["d/link", "d/plain-日本", composed, decomposed, wild, concat(wild, "2"), latin1("d/caf\xe9")]
  assert.deepEqual(place.tree(), ["d", latin1("d/\xc3\x28"), ...names].map(raw).sort())
  assert.equal(text(run("readlink", ["-n", `${place.layer}/d/link`]).stdout), text(target))
})

check(
  "(11) long names: PAX path and linkpath, GNU L and K, ustar prefix, components of 255 bytes",
  (place) => {
    const name = "n".repeat(255)
    const deep = `${name}/${name}/f`
    const goal = `../${"t/".repeat(200)}t`
    place.unpack(
      tar(
        pax([
          ["path", `pax/${deep}`],
          ["linkpath", goal]
        ]),
        symlink("short", "short"),
        long("K", goal),
        long("L", `gnu/${deep}`),
        symlink("short", "short", { format: "gnu" }),
        file("f", "x", { prefix: `ustar/${"p".repeat(100)}` }),
        file("v7", "x", { format: "v7" })
      )
    )
    for (const form of ["pax", "gnu"]) assert.equal(readlinkSync(`${place.layer}/${form}/${deep}`), goal)
    assert.equal(place.read(`ustar/${"p".repeat(100)}/f`), "x")
    assert.equal(place.read("v7"), "x")
    const error = place.fails("io", tar(pax([["path", `${name}n/x`]]), file("x")))
    assert.equal(error.errno, 36, "ENAMETOOLONG")
  }
)

check(
  "(11) a path longer than PATH_MAX works, for folders, links and whiteouts, and can be replaced",
  (place) => {
    const part = "p".repeat(250)
    const far = Array.from({ length: 20 }, () => part).join("/")
    const at = (name: string, made: Uint8Array, link?: string) =>
      concat(
        pax([
          ["path", `${far}/${name}`],
          ...(link === undefined ? [] : [["linkpath", `${far}/${link}`] as const])
        ]),
        made
      )
    const entries = [
      at("d/", folder("x", { mtime: 42 })),
      at("d/f", file("x", "far")),
      at("d/h", hardlink("x", "y"), "d/f")
    ]
    const { all } = place.unpack(tar(...entries, at("d/.wh.w", wh("x"))))
    assert.deepEqual(all("hardlink"), [])
    const seen = place.tree().map((path) => path.slice(far.length + 1))
    assert.deepEqual(seen.slice(-5), ["", "d", "d/f", "d/h", "d/w"])
    const times = text(run("find", [place.layer, "-name", "d", "-printf", "%T@"]).stdout)
    assert.equal(Number(times), 42)
    place.unpack(tar(...entries, pax([["path", part]]), file("x", "gone")))
    assert.deepEqual(place.tree(), [part])
  }
)

check("(11) a size above 8 GiB, in base 256 and in PAX, is read as such", (place) => {
  for (const head of [
    header({ name: "big", size: 2n ** 33n + 5n }),
    concat(pax([["size", "8589934597"]]), file("big"))
  ])
    assert.match(place.fails("corrupt", concat(head, new Uint8Array(1024))).message, /truncated/i)
})

check("(11) global PAX headers change nothing, and entries that come twice replace each other", (place) => {
  place.unpack(
    tar(pax([["comment", "by git"]], "g"), file("a", "longer first"), file("a", "second", { mode: 0o600 }))
  )
  assert.equal(place.read("a"), "second")
  assert.equal(place.stat("a").mode & 0o7777n, 0o600n)
})

check("(11) a PAX header that is malformed is an error, and not ignored", (place) => {
  const bad = entry({ name: "x", type: "x", content: "99 path=elsewhere\n" })
  place.fails("corrupt", tar(bad, file("f")))
})

check("(12) sparse files, GNU's old format, 0.0, 0.1 and 1.0, keep their holes", (place) => {
  const size = 10_000_000
  const at = 4_096_000
  const data = "d".repeat(512)
  const same = (map: string) => concat(bytes(map), new Uint8Array((512 - (map.length % 512)) % 512))
  const number = (value: number) => value.toString(8).padStart(11, "0")
  const old = entry({
    name: "old",
    type: "S",
    format: "gnu",
    content: data,
    patch: (block) => {
      block.set(bytes(`${number(at)}\0${number(512)}\0${number(size)}\0${number(0)}\0`), 386)
      block.set(bytes(number(size)), 483)
    }
  })
  place.unpack(
    tar(
      old,
      pax([
        ["GNU.sparse.size", String(size)],
        ["GNU.sparse.numblocks", "1"],
        ["GNU.sparse.offset", String(at)],
        ["GNU.sparse.numbytes", "512"]
      ]),
      file("v0.0", data),
      pax([
        ["GNU.sparse.size", String(size)],
        ["GNU.sparse.numblocks", "1"],
        ["GNU.sparse.name", "v0.1"],
        ["GNU.sparse.map", `${at},512`]
      ]),
      file("GNUSparseFile.1/v0.1", data),
      pax([
        ["GNU.sparse.major", "1"],
        ["GNU.sparse.minor", "0"],
        ["GNU.sparse.name", "v1.0"],
        ["GNU.sparse.realsize", String(size)]
      ]),
      file("GNUSparseFile.2/v1.0", concat(same(`1\n${at}\n512\n`), data))
    )
  )
  const want = Buffer.alloc(size)
  want.write(data, at)
  for (const name of ["old", "v0.0", "v0.1", "v1.0"]) {
    assert.ok(readFileSync(`${place.layer}/${name}`).equals(want), name)
    assert.ok(place.stat(name).blocks < 100n, `${name} takes ${place.stat(name).blocks} blocks`)
  }
})

check(
  "(13) devices and fifos are made; a 0:0 device, or one the kernel would cut to it, is refused",
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
    // A type that isn't the header's: the mode field of a multi-volume entry may claim anything.
    place.fails("unsupported", tar(entry({ name: "s", type: "M", mode: 0o140_755 })))
  }
)

check("(14) parents that have no entry are made 0755, and an entry later makes them explicit", (place) => {
  const { all } = place.unpack(tar(file("a/b/c"), file("d/e/f"), folder("a/", { mode: 0o700, gid: 3 })))
  assert.deepEqual(all("implicit"), ["a/b", "d", "d/e"])
  assert.equal(place.stat("a").mode & 0o7777n, 0o700n)
  assert.equal(place.stat("a/b").mode & 0o7777n, 0o755n)
  place.unpack(tar(file("a/b/c"), file("a", "replaced")))
  assert.equal(place.read("a"), "replaced")
})

check("(14) `./`, `/` and `.` are the root, which must be a folder (CVE-2021-29136)", (place) => {
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

check("(14) a file with a trailing slash is a folder; one in the way of a path is an error", (place) => {
  place.unpack(tar(entry({ name: "old/", type: "0" }), entry({ name: "older/", type: "\0", format: "v7" })))
  assert.ok(place.stat("old").isDirectory() && place.stat("older").isDirectory())
  const error = place.fails("corrupt", tar(file("a"), file("a/b")))
  assert.equal(error.path, "a/b")
  assert.equal(error.errno, 20, "ENOTDIR")
  place.fails("corrupt", tar(symlink("a", "f"), file("f"), file("a/b")))
})

check("(14) folders of mode 000 and files of mode 000 are filled all the same", (place) => {
  place.unpack(
    tar(folder("a/", { mode: 0 }), folder("a/b/", { mode: 0o100 }), file("a/b/c", "x", { mode: 0 }))
  )
  assert.equal(place.read("a/b/c"), "x")
  assert.equal(place.stat("a").mode & 0o7777n, 0n)
  assert.equal(place.stat("a/b/c").mode & 0o7777n, 0n)
})

const sha256 = (content: Uint8Array) => createHash("sha256").update(content).digest("hex")
const noise = (length: number) => {
  let state = 1
  return Uint8Array.from({ length }, () => {
    state = (state * 48271) % 2147483647
    return state & 0xff
  })
}
const sample = tar(
  folder("./"),
  file("a", "hello"),
  file("noise", noise(3_000_000)),
  file("z", new Uint8Array(5_000_000))
)

const verify = (place: Place, report: Report, blob: Uint8Array, stream: Uint8Array) => {
  assert.equal(report.error, undefined, JSON.stringify(report.error))
  assert.deepEqual(report.all("digest"), [`sha256:${sha256(blob)}`])
  assert.deepEqual(report.all("diffid"), [`sha256:${sha256(stream)}`])
  assert.deepEqual(report.all("bytes"), [String(stream.length)])
  assert.equal(place.read("a"), "hello")
  assert.equal(sha256(readFileSync(`${place.layer}/noise`)), sha256(noise(3_000_000)))
}

check("(15) the report has the digests of the blob and of the tar, beyond the tar's end too", (place) => {
  for (const stream of [sample, concat(sample, noise(2_000_000)), sample.subarray(0, -1024)])
    verify(place, place.unpack(stream, "--compression=none"), stream, stream)
  assert.deepEqual(place.unpack(sample).all("entries"), ["4"])
})

check("(15) gzip: one member or several, empty ones, header fields, and trailing data ignored", (place) => {
  const whole = gzipSync(sample)
  const named = concat(
    Uint8Array.of(0x1f, 0x8b, 8, 0x1c, 0, 0, 0, 0, 0, 3, 4, 0),
    "abcd",
    "name\0",
    "comment\0",
    whole.subarray(10)
  )
  const pieces: Array<Uint8Array> = []
  for (let at = 0; at < sample.length; at += 700_001) pieces.push(gzipSync(sample.subarray(at, at + 700_001)))
  const blobs = {
    whole,
    stored: gzipSync(sample, { level: 0 }),
    named,
    members: concat(...pieces, gzipSync("")),
    zeros: concat(whole, new Uint8Array(300_000)),
    garbage: concat(whole, "trailing garbage"),
    half: concat(whole, Uint8Array.of(0x1f))
  }
  for (const blob of Object.values(blobs))
    verify(place, place.unpack(blob, "--compression=gzip"), blob, sample)
})

check("(15) gzip that is truncated, damaged or something else is corrupt", (place) => {
  const whole = gzipSync(sample)
  const flip = (at: number) => {
    const damaged = Uint8Array.from(whole)
    damaged[at]! ^= 0x55
    return damaged
  }
  const blobs = [
    new Uint8Array(),
    whole.subarray(0, 5),
    whole.subarray(0, 1_000_000),
    whole.subarray(0, -1),
    whole.subarray(0, -8),
    flip(whole.length - 1),
    flip(whole.length - 6),
    flip(1_000_000),
    concat(whole, whole.subarray(0, 15)),
    sample,
    zstdFrame(sample)
  ]
  for (const blob of blobs) place.fails("corrupt", blob, "--compression=gzip")
})

check("(15) zstd: one frame or several, with skippable ones between", (place) => {
  const half = sample.length >> 1
  const blobs = [
    zstdFrame(sample),
    concat(zstdSkippable(noise(300_000)), zstdFrame(sample), zstdSkippable(new Uint8Array())),
    concat(zstdFrame(sample.subarray(0, half)), zstdSkippable(bytes("x")), zstdFrame(sample.subarray(half)))
  ]
  for (const blob of blobs) verify(place, place.unpack(blob, "--compression=zstd"), blob, sample)
})

test("(15) what the zstd tool makes is read, and a window above 128 MiB is refused", {
  timeout: 120_000,
  skip: reason || (spawnSync("zstd", ["--version"]).status === 0 ? false : "the zstd tool is not installed")
}, () => {
  const base = mkdtempSync(`${tmpdir()}/berth-unpack-`)
  try {
    mkdirSync(`${base}/layer`)
    const blob = run("zstd", ["-q", "-c", "-19", "--check"], sample.subarray(0, 3_000_000)).stdout
    const rest = run("zstd", ["-q", "-c", "-1"], sample.subarray(3_000_000)).stdout
    const done = run(binary, ["--compression=zstd", `${base}/layer`], concat(blob, rest))
    assert.equal(parse(done.status, done.stdout, done.stderr).all("diffid")[0], `sha256:${sha256(sample)}`)
    const wide = Uint8Array.from(zstdFrame(sample))
    wide[5] = 18 << 3
    mkdirSync(`${base}/wide`)
    const refused = run(binary, ["--compression=zstd", `${base}/wide`], wide)
    assert.equal(parse(refused.status, refused.stdout, refused.stderr).error?.kind, "limit")
  } finally {
    run("rm", ["-rf", "--", base])
  }
})

check("(15) zstd that is truncated, damaged or something else is corrupt", (place) => {
  const whole = zstdFrame(sample)
  for (const blob of [
    new Uint8Array(),
    whole.subarray(0, 3),
    whole.subarray(0, -1),
    concat(zstdSkippable(bytes("abc")), whole.subarray(0, 2_000_000)),
    zstdSkippable(bytes("abcdef")).subarray(0, 10),
    concat(whole, "garbage"),
    sample
  ])
    place.fails("corrupt", blob, "--compression=zstd")
})

check(
  "(15) a tar that is truncated or none at all is corrupt, and an empty one is an empty layer",
  (place) => {
    place.fails("corrupt", sample.subarray(0, 2_000_000))
    place.fails("corrupt", sample.subarray(0, 700))
    place.fails("corrupt", noise(10_240))
    place.fails("corrupt", concat(file("a"), noise(1024)))
    for (const empty of [end, new Uint8Array(10_240), new Uint8Array()]) {
      const { all } = place.unpack(empty)
      assert.deepEqual(all("entries"), ["0"])
      assert.deepEqual(place.tree(), [])
      assert.equal(place.stat(".").mode & 0o7777n, 0o755n)
    }
  }
)

check("(15) bombs end at the limits", (place) => {
  const bomb = gzipSync(tar(file("zeros", new Uint8Array(50_000_000))))
  place.fails("limit", bomb, "--compression=gzip", "--max-bytes=49000000")
  assert.equal(place.unpack(bomb, "--compression=gzip", "--max-bytes=50002000").status, 0)
  const many = tar(file("a"), file("b"), file("c"))
  place.fails("limit", many, "--max-entries=2")
  assert.equal(place.unpack(many, "--max-entries=3").status, 0)
})

test("(15) a sparse map made to exhaust the memory ends at a limit, with a report", {
  timeout: 120_000,
  skip: reason || (native.includes("sanitize") && "memory is not limited under the sanitizers")
}, () => {
  const base = mkdtempSync(`${tmpdir()}/berth-unpack-`)
  try {
    const sparse = [
      ["GNU.sparse.major", "1"],
      ["GNU.sparse.minor", "0"],
      ["GNU.sparse.realsize", "9"]
    ] as const
    const holes = 10_000_000
    const { status, stdout } = run(
      binary,
      [base],
      tar(pax(sparse), file("s", concat(`${holes}\n`, Buffer.alloc(4 * holes, "1\n0\n"))))
    )
    // libarchive says its part on standard error.
    const { error } = parse(status, stdout, "")
    assert.deepEqual([error?.kind, error?.errno], ["limit", 12])
  } finally {
    run("rm", ["-rf", "--", base])
  }
})

check("a full disk is an io error that names the entry and the errno", (place) => {
  mkdirSync(`${place.base}/small`)
  const script = `mount -t tmpfs -o size=1m tmpfs ${place.base}/small && exec ${binary} ${place.base}/small`
  const done = run("unshare", ["--mount", "sh", "-c", script], tar(file("a b", noise(3_000_000))))
  const { error } = parse(done.status, done.stdout, done.stderr)
  assert.deepEqual([error?.kind, error?.errno, error?.call, error?.path], ["io", 28, "write", "a b"])
})

check("wrong arguments are an error of the confinement", (place) => {
  for (const args of [
    [],
    ["--what", "/"],
    ["--max-bytes=1x", "/"],
    ["--max-bytes=", "/"],
    ["--compression=xz", "/"]
  ]) {
    const done = run(binary, args)
    assert.equal(parse(done.status, done.stdout, done.stderr).error?.kind, "confine")
  }
  const done = run(binary, [`${place.base}/missing dir`])
  const { error } = parse(done.status, done.stdout, done.stderr)
  assert.deepEqual([error?.kind, error?.errno, error?.call], ["confine", 2, "open"])
})

// ---- the process

const fieldsOf = (pid: number) =>
  new Map(
    readFileSync(`/proc/${pid}/status`, "utf8")
      .split("\n")
      .map((line) => line.split(":\t") as [string, string])
  )

const until = async (what: string, done: () => boolean) => {
  for (let tries = 0; tries < 500; tries++) {
    if (done()) return
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  assert.fail(`waited too long for ${what}`)
}

check("before it reads, it sees nothing but its folder and can do nothing but write it", async (place) => {
  mkdirSync(`${place.base}/world`)
  writeFileSync(`${place.base}/world/only`, "")
  // A descriptor that the caller left open by mistake: not one of this may be left inside.
  const leak = openSync(place.base, "r")
  const child = spawn(binary, [`${place.base}/world`], { stdio: ["pipe", "pipe", "inherit", leak], env })
  const gone = new Promise((resolve) => child.on("exit", resolve))
  try {
    const pid = child.pid!
    // Two threads: the second is started last of all.
    await until("its second thread", () => fieldsOf(pid).get("Threads") === "2")
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const fields = fieldsOf(Number(thread))
      // CHOWN DAC_OVERRIDE FOWNER FSETID, MKNOD, SETFCAP, and SYS_ADMIN for trusted.*
      const kept = (1n << 0n) | (1n << 1n) | (1n << 3n) | (1n << 4n) | (1n << 21n) | (1n << 27n) | (1n << 31n)
      assert.equal(BigInt(`0x${fields.get("CapEff")}`), kept)
      assert.equal(BigInt(`0x${fields.get("CapPrm")}`), kept)
      assert.equal(BigInt(`0x${fields.get("CapBnd")}`) & ~kept, 0n)
      assert.equal(BigInt(`0x${fields.get("CapInh")}`), 0n)
      assert.equal(fields.get("NoNewPrivs"), "1")
    }
    assert.deepEqual(readdirSync(`/proc/${pid}/root`), ["only"])
    assert.equal(readFileSync(`/proc/${pid}/mountinfo`, "utf8").trim().split("\n").length, 1)
    assert.notEqual(readlinkSync(`/proc/${pid}/ns/net`), readlinkSync("/proc/self/ns/net"))
    const open = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
    assert.deepEqual(
      open.filter((target) => target.startsWith("/") && target !== "/" && !target.startsWith("/dev/")),
      []
    )
    assert.match(readFileSync(`/proc/${pid}/limits`, "utf8"), /Max core file size +0 +0 /)
    child.stdin!.end(tar(file("x")))
    assert.equal(await gone, 0)
  } finally {
    closeSync(leak)
    child.kill("SIGKILL")
    await gone
  }
})

check(
  "(16) killed at any point, it leaves no mount and no process, and the folder can be removed",
  async (place) => {
    const blob = gzipSync(concat(sample, end), { level: 1 })
    for (const delay of [0, 2, 5, 10, 20, 40]) {
      const world = `${place.base}/world${delay}`
      mkdirSync(world)
      const child = spawn(binary, ["--compression=gzip", world], { stdio: ["pipe", "ignore", "ignore"], env })
      const gone = new Promise((resolve) => child.on("exit", resolve))
      child.stdin!.on("error", () => {})
      child.stdin!.write(blob.subarray(0, 2_000_000))
      await new Promise((resolve) => setTimeout(resolve, delay))
      child.kill("SIGKILL")
      await gone
      assert.deepEqual(mountsOf(world), [])
      assert.equal(run("rm", ["-r", "--", world]).status, 0)
    }
  }
)

const mapped = ["--user", "--map-root-user"]
const noUserNamespaces =
  reason || (run("unshare", [...mapped, "true"]).status === 0 ? false : "user namespaces can't be made here")

check(
  "in a user namespace of one id, devices are skipped, marks are user.*, and owners may be ignored",
  (place) => {
    const archive = tar(
      folder("./"),
      folder("d/"),
      wh("d/.wh..wh..opq"),
      wh(".wh.gone"),
      entry({ name: "null", type: "3", major: 1, minor: 3 }),
      entry({ name: "fifo", type: "6" }),
      file("of-another", "x", { uid: 1000, gid: 1000, mode: 0o640 })
    )
    const inside = (name: string, ...options: ReadonlyArray<string>) => {
      mkdirSync(`${place.base}/${name}`)
      const done = run(
        "unshare",
        [...mapped, binary, "--xattr=user", ...options, `${place.base}/${name}`],
        archive
      )
      return parse(done.status, done.stdout, done.stderr)
    }
    const refused = inside("strict").error
    assert.deepEqual(
      [refused?.kind, refused?.errno, refused?.call, refused?.path],
      ["io", 22, "fchownat", "of-another"]
    )
    const { all, error } = inside("lenient", "--ignore-chown")
    assert.equal(error, undefined)
    assert.deepEqual(all("skipped"), ["null"])
    assert.ok(
      lstatSync(`${place.base}/lenient/gone`).isCharacterDevice(),
      "whiteouts need no privilege since 5.8"
    )
    assert.equal(lstatSync(`${place.base}/lenient/of-another`).mode & 0o7777, 0o640)
    const args = [
      "--format=pax",
      "--xattrs",
      "--xattrs-include=*",
      "--no-recursion",
      "-C",
      `${place.base}/lenient`
    ]
    const records = paxRecords(run("tar", [...args, "-cf", "-", "d"]).stdout)
    assert.equal(text(records.get("SCHILY.xattr.user.overlay.opaque") ?? new Uint8Array()), "y")
  },
  noUserNamespaces
)

check("a file with several names is replaced under one of them, and not written through", (place) => {
  place.unpack(tar(file("a", "first"), hardlink("b", "a"), file("a", "second")))
  assert.equal(place.read("a"), "second")
  assert.equal(place.read("b"), "first")
})
