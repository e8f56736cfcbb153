import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import * as net from "node:net"
import { describe, test } from "node:test"
import { allowTime, makeTemporaryFolder, whyNotRoot } from "../support/effect.ts"
import { pack } from "../support/pack.ts"
import { run, text } from "../support/unpack.ts"

allowTime()

const sha256 = (bytes: Uint8Array): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`

const list = (tar: Buffer): ReadonlyArray<string> =>
  text(run("tar", ["-tv", "--numeric-owner", "--full-time", "--utc", "--quoting-style=escape"], tar).stdout)
    .trimEnd()
    .split("\n")
    .map((line) => line.replace(/ +/g, " "))

const inFolder = (name: string, body: (here: string) => unknown) =>
  test(name, { skip: whyNotRoot }, async () => {
    const here = makeTemporaryFolder()
    try {
      await body(here)
    } finally {
      // A tree deeper than a path may be is beyond fs.rm.
      execFileSync("rm", ["-rf", "--", here])
    }
  })

const sh = (cwd: string, script: string): string =>
  execFileSync("sh", ["-ec", script], { cwd, encoding: "utf8" })

describe("berth-pack", () => {
  inFolder("the digests and the size are those of the blob and of the tar, for each compression", (here) => {
    sh(here, "head -c 3000000 /dev/urandom > noise; head -c 3000000 /dev/zero > zeros; mkdir d; echo x > d/x")
    const plain = pack(here, ["--compression=none"])
    for (const [name, tool] of [
      ["gzip", "gzip"],
      ["zstd", "zstd"]
    ] as const) {
      const { blob, report, status } = pack(here, [`--compression=${name}`])
      assert.equal(status, 0)
      assert.deepEqual(report, ["ok", sha256(blob), String(blob.length), sha256(plain.blob)])
      const tar = Buffer.from(run(tool, ["-dc"], blob).stdout)
      assert.ok(tar.equals(plain.blob))
      assert.ok(pack(here, [`--compression=${name}`]).blob.equals(blob), "twice the same bytes")
    }
    assert.deepEqual(plain.report, ["ok", sha256(plain.blob), String(plain.blob.length), sha256(plain.blob)])
  })

  inFolder("times after the latest one become it, and others stay as they are", (here) => {
    sh(
      here,
      "touch -d @1000.5 old; touch -d @2000.5 new; touch -d @2000 equal; touch -d @9999999999 far; touch -d @1500 ."
    )
    const times = list(pack(here, ["--compression=none", "--max-time=2000"]).blob).map((line) =>
      line.split(" ").slice(3).join(" ")
    )
    assert.deepEqual(times, [
      "1970-01-01 00:25:00 ./",
      "1970-01-01 00:33:20 equal",
      "1970-01-01 00:33:20 far",
      "1970-01-01 00:33:20 new",
      "1970-01-01 00:16:40.5 old"
    ])
  })

  inFolder(
    "a socket and a whiteout are marks, and a name that looks like a mark is refused",
    async (here) => {
      const server = net.createServer()
      await new Promise<void>((done) => server.listen(`${here}/socket`, done))
      try {
        sh(here, "mkdir d; mknod d/gone c 0 0; mknod null c 1 3")
        assert.deepEqual(
          list(pack(here, ["--compression=none"]).blob).map((line) => line.split(" ").at(-1)),
          ["./", "d/", "d/.wh.gone", "null", ".wh.socket"]
        )
        sh(here, "touch d/.wh.file")
        const { report, status } = pack(here)
        assert.equal(status, 1)
        assert.deepEqual(report.slice(0, 5), ["error", "unsupported", "0", "-", "d/.wh.file"])
      } finally {
        await new Promise<void>((done) => server.close(() => done()))
      }
    }
  )

  inFolder("a layer above a limit is refused with the file that is too much", (here) => {
    sh(here, "truncate -s 1M a; truncate -s 2M b")
    assert.deepEqual(pack(here, ["--max-hole-bytes=2000000"]).report.slice(1, 5), [
      "holes",
      "27",
      "read",
      "b"
    ])
    assert.equal(pack(here, ["--max-hole-bytes=3145728"]).status, 0)
    assert.deepEqual(pack(here, ["--max-bytes=100000"]).report.slice(1, 5), ["limit", "0", "-", "a"])
    for (const option of ["--max-bytes=x", "--unknown", "--compression=xz"])
      assert.equal(pack(here, [option]).report[1], "confine")
  })

  inFolder("a full disk is reported as the blob's failure", (here) => {
    sh(here, "head -c 3000000 /dev/urandom > noise")
    const { report } = pack(here, [], "ulimit -f 1000;")
    assert.deepEqual(report.slice(1, 4), ["storage", "27", "write"])
  })

  inFolder("a tree is as deep as a path may be, and one that is deeper is refused with an error", (here) => {
    const deep = "d/".repeat(2000)
    sh(here, `mkdir -p ${deep}; echo x > ${deep}x`)
    const { blob, status } = pack(here, ["--compression=none"])
    assert.equal(status, 0)
    assert.equal(list(blob).length, 2002)
    sh(here, `cd -P ${deep}; mkdir -p ${"d/".repeat(200)}`)
    assert.deepEqual(pack(here).report.slice(1, 4), ["io", "36", "open"])
  })

  inFolder("no link leads out of the layer, and nothing is opened with an effect", (here) => {
    sh(here, `ln -s / root; ln -s ../../etc/passwd file; mkfifo fifo; mknod zero c 1 5; ln fifo other`)
    const lines = list(pack(here, ["--compression=none"]).blob)
    assert.deepEqual(
      lines.map((line) => line.split(" ").slice(5).join(" ")),
      ["./", "fifo", "file -> ../../etc/passwd", "other link to fifo", "root -> /", "zero"]
    )
  })

  inFolder(
    "entries that are replaced all the time give a tar that can be read, or an error",
    async (here) => {
      sh(here, "mkdir d; i=0; while [ $i -lt 200 ]; do echo $i > d/$i; i=$((i+1)); done")
      const churn = spawn(
        "sh",
        [
          "-c",
          `while :; do
          rm -rf d/7; mkdir d/7; touch d/7/in; rm -rf d/7; ln -s /etc/passwd d/7; rm -rf d/7; echo longer than before > d/7
          mv d e; mkdir d; ln -s / d/100; rm -rf d; mv e d; : > d/9; head -c 100000 /dev/zero > d/9
        done`
        ],
        { cwd: here }
      )
      try {
        for (let k = 0; k < 60; k++) {
          const { blob, report, status } = pack(here, ["--compression=none"])
          if (status === 0) for (const line of list(blob)) assert.doesNotMatch(line, /root:x:0|shadow/)
          else assert.match(report[1]!, /^io$/)
          assert.equal(blob.includes("root:x:0:0"), false, "nothing of the host is in it")
        }
      } finally {
        churn.kill("SIGKILL")
        await new Promise((resolve) => churn.on("close", resolve))
      }
    }
  )
})
