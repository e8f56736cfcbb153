import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdirSync, mkdtempSync, readFileSync, readlinkSync } from "node:fs"
import { tmpdir } from "node:os"
import test from "node:test"
import { gzipSync } from "node:zlib"
import type { Bytes } from "../support/tar.ts"
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
  symlink,
  tar,
  zstdFrame,
  zstdSkippable
} from "../support/tar.ts"
import type { Place, Report } from "../support/unpack.ts"
import { binary, check, makeSample, native, noise, parse, reason, run, text, wh } from "../support/unpack.ts"

check("names keep their bytes: UTF-8, composed or not, Latin-1, and binary names in PAX", (place) => {
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

check("long names are read from PAX path and linkpath, GNU L and K and the ustar prefix", (place) => {
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
})

check("a path longer than PATH_MAX works for folders, links and whiteouts, and can be replaced", (place) => {
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
})

check("a size above 8 GiB is read in base 256 and in PAX", (place) => {
  for (const head of [
    header({ name: "big", size: 2n ** 33n + 5n }),
    concat(pax([["size", "8589934597"]]), file("big"))
  ])
    assert.match(place.fails("corrupt", concat(head, new Uint8Array(1024))).message, /truncated/i)
})

check("global PAX headers change nothing, and a repeated entry replaces the earlier one", (place) => {
  place.unpack(
    tar(pax([["comment", "by git"]], "g"), file("a", "longer first"), file("a", "second", { mode: 0o600 }))
  )
  assert.equal(place.read("a"), "second")
  assert.equal(place.stat("a").mode & 0o7777n, 0o600n)
})

check("a malformed PAX header is an error", (place) => {
  const bad = entry({ name: "x", type: "x", content: "99 path=elsewhere\n" })
  place.fails("corrupt", tar(bad, file("f")))
})

check("sparse files keep their holes in GNU's formats old, 0.0, 0.1 and 1.0", (place) => {
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

const sample = makeSample()
const sha256 = (content: Uint8Array) => createHash("sha256").update(content).digest("hex")

const verify = (place: Place, report: Report, blob: Uint8Array, stream: Uint8Array) => {
  assert.equal(report.error, undefined, JSON.stringify(report.error))
  assert.deepEqual(report.all("digest"), [`sha256:${sha256(blob)}`])
  assert.deepEqual(report.all("diffid"), [`sha256:${sha256(stream)}`])
  assert.deepEqual(report.all("bytes"), [String(stream.length)])
  assert.equal(place.read("a"), "hello")
  assert.equal(sha256(readFileSync(`${place.layer}/noise`)), sha256(noise(3_000_000)))
}

check("the report's digests cover the whole blob and tar, bytes beyond the tar's end included", (place) => {
  for (const stream of [sample, concat(sample, noise(2_000_000)), sample.subarray(0, -1024)])
    verify(place, place.unpack(stream, "--compression=none"), stream, stream)
  assert.deepEqual(place.unpack(sample).all("entries"), ["4"])
})

check("gzip is read with several or empty members, header fields, and ignored trailing data", (place) => {
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

check("a gzip blob that is truncated, damaged or not gzip fails with a corrupt error", (place) => {
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

check("zstd is read with several frames, and skippable frames between", (place) => {
  const half = sample.length >> 1
  const blobs = [
    zstdFrame(sample),
    concat(zstdSkippable(noise(300_000)), zstdFrame(sample), zstdSkippable(new Uint8Array())),
    concat(zstdFrame(sample.subarray(0, half)), zstdSkippable(bytes("x")), zstdFrame(sample.subarray(half)))
  ]
  for (const blob of blobs) verify(place, place.unpack(blob, "--compression=zstd"), blob, sample)
})

test("the zstd tool's output is read, and a window above 128 MiB is refused", {
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

check("a zstd blob that is truncated, damaged or not zstd fails with a corrupt error", (place) => {
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
  "a tar that is truncated or not a tar fails with a corrupt error, and an empty one is an empty layer",
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

check("decompression bombs end at the limits", (place) => {
  const bomb = gzipSync(tar(file("zeros", new Uint8Array(50_000_000))))
  place.fails("limit", bomb, "--compression=gzip", "--max-bytes=49000000")
  assert.equal(place.unpack(bomb, "--compression=gzip", "--max-bytes=50002000").status, 0)
  const many = tar(file("a"), file("b"), file("c"))
  place.fails("limit", many, "--max-entries=2")
  assert.equal(place.unpack(many, "--max-entries=3").status, 0)
})

test("a sparse map that would exhaust the memory ends at a limit, with a report", {
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
    // libarchive prints its message on standard error.
    const { error } = parse(status, stdout, "")
    assert.deepEqual([error?.kind, error?.errno], ["limit", 12])
  } finally {
    run("rm", ["-rf", "--", base])
  }
})
