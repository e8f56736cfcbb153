import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  unlinkSync,
  writeFileSync
} from "node:fs"
import { tmpdir } from "node:os"
import test from "node:test"
import { fileURLToPath } from "node:url"
import { file, folder, paxRecords, tar } from "./tar.ts"

export const native =
  process.env.BERTH_NATIVE ?? fileURLToPath(new URL("../../native/build", import.meta.url))
export const binary = `${native}/berth-unpack`

export const reason: string | false =
  process.getuid?.() !== 0
    ? "needs root: owners, devices and trusted.* xattrs"
    : existsSync(binary)
      ? false
      : "native/build/berth-unpack is not built"

// LeakSanitizer stops the process with ptrace, which a process that is not dumpable refuses.
export const env = { ...process.env, ASAN_OPTIONS: "detect_leaks=0" }

export const run = (command: string, args: ReadonlyArray<string>, input: Uint8Array = new Uint8Array()) => {
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

export const text = (content: Uint8Array): string => new TextDecoder("latin1").decode(content)

export interface Report {
  readonly status: number | null
  readonly lines: ReadonlyArray<ReadonlyArray<string>>
  readonly error?: { kind: string; errno: number; call: string; path: string; message: string }
  /** The decoded arguments of every line with that key, joined with a space. */
  readonly all: (key: string) => ReadonlyArray<string>
}

export const parse = (status: number | null, stdout: Uint8Array, stderr: string): Report => {
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
export interface Place {
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

export const mountsOf = (path: string) =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .filter((line) => line.includes(path))

export const check = (name: string, body: (place: Place) => void | Promise<void>, skip = reason) =>
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

export const isWhiteout = (place: Place, path: string): boolean => {
  const stat = place.stat(path)
  return stat.isCharacterDevice() && stat.rdev === 0n
}

export const opaque = (place: Place, path: string) => place.xattrs(path).get("trusted.overlay.opaque")

export const wh = (path: string) => file(path)

export const noise = (length: number) => {
  let state = 1
  return Uint8Array.from({ length }, () => {
    state = (state * 48271) % 2147483647
    return state & 0xff
  })
}

/** A layer of a few megabytes, part of it noise that no compression makes smaller. */
export const makeSample = () =>
  tar(folder("./"), file("a", "hello"), file("noise", noise(3_000_000)), file("z", new Uint8Array(5_000_000)))
