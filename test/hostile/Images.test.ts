/** Layers that are small, and would take long to unpack. */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { tmpdir } from "node:os"
import { concat, file, folder, hardlink, pax, symlink, tar } from "../support/tar.ts"
import { binary, check, env, parse } from "../support/unpack.ts"

const path = (part: string, count: number): string => Array.from({ length: count }, () => part).join("/")
const named = (name: string, entry: Uint8Array, link?: string): Uint8Array =>
  concat(pax([["path", name], ...(link === undefined ? [] : [["linkpath", link] as const])]), entry)
const range = (count: number): ReadonlyArray<number> => Array.from({ length: count }, (_, i) => i)

/** Hard links in an order in which each pass over them, from either end, can resolve only one more. */
const zigzag = (count: number, at: string): ReadonlyArray<Uint8Array> => {
  const order = range(count).map((i) => (i % 2 === 0 ? i / 2 : count - (i + 1) / 2))
  const turn = new Array<number>(count)
  order.forEach((place, i) => {
    turn[place] = i
  })
  return turn.map((i) => named(`${at}l${i}`, hardlink("l", "t"), i === 0 ? `${at}target` : `${at}l${i - 1}`))
}

/** In memory, if possible: what is measured is the unpacker, and most of its time would be the disk's file system. */
const memory = fs.existsSync("/dev/shm") ? "/dev/shm" : tmpdir()

/** The unpacker's report on a tar, and the seconds of processor time that it has used. */
const measuredIn = (parent: string, archive: Uint8Array, ...options: ReadonlyArray<string>) => {
  const base = fs.mkdtempSync(`${parent}/berth-unpack-`)
  try {
    fs.mkdirSync(`${base}/layer`)
    fs.writeFileSync(`${base}/tar`, archive)
    // `times` prints the shell's own user and system time, then those of its children.
    const script = '"$0" "$@" <"$TAR"; code=$?; times >&2; exit $code'
    const done = spawnSync("sh", ["-c", script, binary, ...options, `${base}/layer`], {
      env: { ...env, TAR: `${base}/tar` },
      maxBuffer: 1 << 28
    })
    const last = String(done.stderr).trimEnd().split("\n").at(-1)!
    const seconds = [...last.matchAll(/(\d+)m([\d.]+)s/g)].map(([, m, s]) => 60 * Number(m) + Number(s))
    const report = parse(done.status, new Uint8Array(done.stdout), "")
    return { report, seconds: seconds[0]! + seconds[1]! }
  } finally {
    spawnSync("rm", ["-rf", "--", base])
  }
}

const measured = (archive: Uint8Array, ...options: ReadonlyArray<string>) =>
  measuredIn(memory, archive, ...options)

/** Tests that twice the entries take about twice the time. Quadratic code would take four times as long. */
const isLinear = (name: string, make: (count: number) => ReadonlyArray<Uint8Array>, count: number) =>
  check(name, () => {
    const half = measured(tar(...make(count / 2)))
    const whole = measured(tar(...make(count)))
    for (const { report } of [half, whole]) assert.equal(report.status, 0, report.error?.message)
    const said = `${half.seconds} s for ${count / 2}, ${whole.seconds} s for ${count}`
    assert.ok(whole.seconds < 8 || whole.seconds < 3.2 * half.seconds, said)
    assert.ok(whole.seconds < 30, said)
  })

isLinear(
  "replacing a folder of thousands of non-empty folders by a file takes linear time",
  (count) => [...range(count).map((i) => file(`d/${i}/x`)), file("d")],
  16_000
)

isLinear(
  "replacing thousands of folders by files takes linear time",
  (count) => range(count).flatMap((i) => [file(`d${i}/x`), file(`d${i}`)]),
  16_000
)

isLinear(
  "replacing nested folders by files, from the innermost out, takes linear time",
  (count) => {
    const nested = range(count).map((i) => path("a", i + 1))
    return [
      ...nested.map((name) => named(`${name}/`, folder("f/"))),
      ...nested.toReversed().map((name) => named(name, file("f")))
    ]
  },
  2_000
)

isLinear(
  "resolving hard links that precede their targets takes linear time, whatever their order",
  (count) => [...zigzag(count, ""), file("target", "x")],
  9_900
)

isLinear(
  "resolving hard links between deep folders takes linear time",
  (count) => {
    const deep = `${path("a", 500)}/`
    return [...zigzag(count, deep), named(`${deep}target`, file("f", "x"))]
  },
  2_000
)

isLinear(
  "a chain of hard links from one deep folder to another and back takes linear time",
  (count) => {
    const at = (i: number) => `${path(i % 2 === 0 ? "a" : "b", 900)}/l${i}`
    return [
      named(at(0), file("f", "x")),
      ...range(count).map((i) => named(at(i + 1), hardlink("l", "t"), at(i)))
    ]
  },
  2_000
)

isLinear(
  "files in two folders 2,000 deep, in turns and behind a link, take linear time",
  (count) => [
    symlink("s", "t"),
    ...range(count).map((i) => named(`s/${path("a", 2_000)}/${i % 2}/f${i}`, file("f")))
  ],
  1_000
)

isLinear(
  "whiteouts in deep folders, with as many opaque marks, take linear time",
  (count) => {
    const deep = path("a", 1_000)
    return range(count).flatMap((i) => [
      named(`${deep}/${i}/.wh..wh..opq`, file("f")),
      named(`${deep}/${i}/.wh.gone`, file("f")),
      named(`${deep}/.wh.gone${i}`, file("f"))
    ])
  },
  800
)

isLinear(
  "repeated opaque marks of one folder take linear time",
  (count) => range(count).map(() => file("d/.wh..wh..opq")),
  32_000
)

isLinear(
  "tens of thousands of whiteouts take linear time",
  (count) => range(count).map((i) => file(`.wh.${i}`)),
  16_000
)

isLinear(
  "whiteouts of the layer's own folders take linear time",
  (count) => range(count).flatMap((i) => [folder(`d${i}/`), file(`.wh.d${i}`)]),
  8_000
)

isLinear(
  "parent folders whose entries come later take linear time",
  (count) => [...range(count).map((i) => file(`d${i}/f`)), ...range(count).map((i) => folder(`d${i}/`))],
  8_000
)

/** Files behind 36 links, each of which leads through 2,000 folders to the next. */
const behindLinks = (count: number): Uint8Array => {
  const deep = path("a", 2_000)
  return tar(
    named(`${deep}/`, folder("d/")),
    ...range(18).flatMap((i) => [
      named(`m${i}`, symlink("l", "t"), `/${deep}/n${i}`),
      named(`${deep}/n${i}`, symlink("l", "t"), `/m${i + 1}`)
    ]),
    folder("m18/"),
    ...range(count).map((i) => file(`m0/${i % 2}/f`))
  )
}

check("a path through links and 72,000 folders ends at a limit within seconds", () => {
  assert.equal(measured(behindLinks(10)).report.status, 0)
  const { report, seconds } = measured(behindLinks(10_000))
  assert.equal(report.error?.kind, "limit", report.error?.message)
  assert.match(report.error.message, /links and folders/)
  assert.ok(seconds < 30, `${seconds} s`)
})

check("a layer beyond a limit fails with the limit's name", (place) => {
  const message = (archive: Uint8Array, ...options: ReadonlyArray<string>) =>
    place.fails("limit", archive, ...options).message
  assert.match(message(tar(file("a", "a".repeat(5000))), "--max-bytes=4000"), /maxBytes/)
  const hole = pax([
    ["GNU.sparse.size", String(2n ** 60n)],
    ["GNU.sparse.numblocks", "1"],
    ["GNU.sparse.map", "0,0"],
    ["GNU.sparse.name", "s"]
  ])
  assert.match(message(tar(hole, file("s")), `--max-bytes=${2 ** 40}`), /holes.*maxBytes/)
  assert.match(message(tar(...range(5).map((i) => file(`${i}`))), "--max-entries=4"), /maxEntries/)
  const implied = tar(named(`${path("a", 100)}/f`, file("f")))
  assert.match(message(implied, "--max-entries=50"), /maxEntries/)
  assert.match(message(tar(named(path("a", 9_000), file("f")))), /path is longer than 16384 bytes/)
  assert.match(message(tar(named("l", hardlink("l", "t"), path("a", 9_000)))), /target is longer than/)
  assert.match(message(tar(...range(10_001).map((i) => hardlink(`l${i}`, "none")))), /hard links/)
})

check("a layer that takes more processor time than its length allows ends at a limit", () => {
  const { report, seconds } = measured(behindLinks(10_000), "--max-cpu=1")
  assert.equal(report.error?.kind, "limit", report.error?.message)
  // A fast machine reaches the other limit first.
  assert.match(report.error.message, /maxCpuSeconds|links and folders/)
  assert.ok(seconds < 10, `${seconds} s`)
  // Each piece of the tar extends the limit, so a long tar may take longer.
  const long = measured(tar(...range(20_000).map((i) => file(`${i % 100}/f${i}`))), "--max-cpu=2")
  assert.equal(long.report.status, 0, long.report.error?.message)
})

check("headers with thousands of attributes, repeated names or empty records end within seconds", () => {
  for (const header of [
    pax(range(5_000).map((i) => [`SCHILY.xattr.user.x${i}`, "v"] as const)),
    pax(range(20_000).map(() => ["path", "p".repeat(50)] as const)),
    concat(...range(10_000).map(() => pax([["comment", "x"]], "g"))),
    concat(...range(10_000).map(() => pax([["comment", "x"]])))
  ]) {
    const { report, seconds } = measuredIn(tmpdir(), tar(header, file("f")))
    assert.ok(report.status === 0 || report.error !== undefined)
    assert.ok(seconds < 10, `${seconds} s`)
  }
})
