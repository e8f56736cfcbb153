/** Copies between the host and a container: a tree with every attribute, and what holds for containers of any machine. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container } from "../../lib/index.ts"
import { failure } from "./effect.ts"
import { temporaryFolder } from "./scoped.ts"

// node:fs has no xattrs, and its times are not exact to the nanosecond.
const python = (script: string, ...args: ReadonlyArray<string>): string =>
  execFileSync("python3", ["-c", script, ...args], { encoding: "utf8" }).trim()

export const describe = (folder: string): unknown =>
  JSON.parse(
    python(
      `
import os, sys, json, hashlib
found = {}
first = {}
for folder, folders, files in os.walk(sys.argv[1]):
    for name in folders + files:
        path = os.path.join(folder, name)
        s = os.lstat(path)
        kept = [oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
        if os.path.islink(path): kept.append(os.readlink(path))
        elif os.path.isfile(path):
            kept += [s.st_size, hashlib.sha256(open(path, "rb").read()).hexdigest(), s.st_blocks * 512 < s.st_size]
        kept.append({n: os.getxattr(path, n, follow_symlinks=False).hex() for n in os.listxattr(path, follow_symlinks=False)})
        rel = os.path.relpath(path, sys.argv[1])
        if not os.path.isdir(path) or os.path.islink(path):
            kept.append(first.setdefault((s.st_dev, s.st_ino), rel) if s.st_nlink > 1 else None)
        found[rel] = kept
print(json.dumps(dict(sorted(found.items()))))`,
      folder
    )
  )

/** A tree with every attribute that a copy has to keep. */
export const makeTree = (folder: string): string => {
  const tree = `${folder}/tree`
  python(
    `
import os, sys
t = sys.argv[1]
os.umask(0)
os.makedirs(t + "/d/e/empty")
def put(name, data, mode):
    with open(t + "/" + name, "wb") as f: f.write(data)
    os.chmod(t + "/" + name, mode)
put("plain", b"plain", 0o644)
put("d/set-user-id", b"#!", 0o4755)
put("d/e/secret", os.urandom(1500000), 0o600)
put("d/ unusual \\u00e9 \\U0001f433 name", b"x", 0o640)
put("x" * 200, b"long", 0o644)
put("empty", b"", 0o444)
os.link(t + "/d/e/secret", t + "/hard")
root = os.getuid() == 0
if root: os.chown(t + "/d/set-user-id", 123, 3000000)
os.chmod(t + "/d/set-user-id", 0o4755)
with open(t + "/sparse", "wb") as f:
    f.truncate(8 * 1024 * 1024); f.seek(1024 * 1024); f.write(b"data" * 1000)
os.symlink("/etc/passwd", t + "/d/absolute")
os.symlink("e/secret", t + "/d/relative")
os.symlink("nowhere", t + "/dangling")
os.link(t + "/dangling", t + "/dangling-too", follow_symlinks=False)
os.mkfifo(t + "/fifo", 0o620)
os.setxattr(t + "/plain", "user.berth", b"\\xff\\x00bytes")
if root: os.setxattr(t + "/d/set-user-id", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
os.setxattr(t + "/d", "user.folder", b"f")
if root: os.chown(t + "/dangling", 7, 8, follow_symlinks=False)
n = 1
for folder, folders, files in os.walk(t, topdown=False):
    for name in folders + files:
        os.utime(os.path.join(folder, name), ns=(0, 1234567890123456789 + n), follow_symlinks=False); n += 1000000007
os.utime(t + "/empty", ns=(0, -1500000001))
os.chmod(t + "/d/e", 0o2711)
os.utime(t + "/d/e", ns=(0, 1234567890123456789))
os.utime(t, ns=(0, 987654321987654321))
os.chmod(t, 0o750)`,
    tree
  )
  return tree
}

export const whyNoPython = (() => {
  try {
    python("")
    return false as const
  } catch {
    return "no python3, which makes the tree"
  }
})()

export const shell = (box: Container.Container, script: string) =>
  Effect.map(Container.exec(box, ["/bin/sh", "-c", script]), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })

/** Copies a tree into a folder and out again, which keeps every attribute. */
export const keepsAttributes = (box: Container.Container, into: string) =>
  Effect.gen(function* () {
    const here = yield* temporaryFolder
    const tree = makeTree(here)
    yield* Container.copyIn(box, tree, into)
    yield* Container.copyOut(box, `${into}/tree`, `${here}/back`, { keepPrivileges: true })
    assert.deepEqual(describe(`${here}/back`), describe(tree))
    const own = fs.statSync(`${here}/back`, { bigint: true })
    assert.equal(own.mode & 0o7777n, 0o750n)
    const seen = yield* shell(
      box,
      `cd ${into}/tree; cat plain; stat -c '%a %u %g' d/set-user-id; stat -c %h hard`
    )
    assert.equal(seen, `plain4755 ${process.getuid?.() === 0 ? "123 3000000" : "0 0"}\n2\n`)
  })

/** Copies files where docker cp puts them. */
export const placesAsDocker = (box: Container.Container) =>
  Effect.gen(function* () {
    const here = yield* temporaryFolder
    fs.mkdirSync(`${here}/d`)
    fs.writeFileSync(`${here}/d/f`, "f")
    fs.writeFileSync(`${here}/g`, "g")
    fs.symlinkSync("d", `${here}/l`)
    yield* shell(
      box,
      "mkdir /into /merged; echo kept > /merged/kept; ln -s into /link; echo old > /old; ln -s /old /to-old"
    )
    yield* Container.copyIn(box, `${here}/g`, "/new")
    yield* Container.copyIn(box, `${here}/g`, "/into/")
    yield* box.pipe(Container.copyIn(`${here}/d`, "/into"))
    yield* Container.copyIn(box, `${here}/d`, "/named")
    yield* Container.copyIn(box, `${here}/d/.`, "/merged")
    yield* Container.copyIn(box, `${here}/d/.`, "/contents")
    yield* Container.copyIn(box, `${here}/l`, "/copied-link")
    yield* Container.copyIn(box, `${here}/l/`, "/followed")
    yield* Container.copyIn(box, `${here}/g`, "/link/through")
    yield* Container.copyIn(box, `${here}/g`, "/to-old")
    yield* Container.copyIn(box, `${here}/d`, "/in-a-new-folder/")
    const names = [
      "new",
      "into/g",
      "into/d/f",
      "named/f",
      "merged/f",
      "merged/kept",
      "contents/f",
      "followed/f",
      "into/through",
      "old",
      "in-a-new-folder/f"
    ]
    assert.equal(
      yield* shell(box, `cd /; cat ${names.join(" ")}; readlink copied-link; readlink to-old`),
      "ggfffkept\nffggfd\n/old\n"
    )
  })

/** Copies that are impossible: each fails with its errno, and replaces no folder by a file. */
export const refusesTheImpossible = (box: Container.Container) =>
  Effect.gen(function* () {
    const here = yield* temporaryFolder
    fs.mkdirSync(`${here}/d`)
    fs.writeFileSync(`${here}/f`, "f")
    yield* shell(box, "mkdir -p /d/f /e/d; echo > /file")
    const cases: ReadonlyArray<readonly [from: string, to: string, code: string]> = [
      [`${here}/nothing`, "/", "ENOENT"],
      [`${here}/f`, "/no/such/folder", "ENOENT"],
      [`${here}/f`, "/nothing/", "ENOENT"],
      [`${here}/f`, "/d", "EISDIR"],
      [`${here}/f`, "/file/", "ENOTDIR"],
      [`${here}/f`, "/file/x", "ENOTDIR"],
      [`${here}/d`, "/file", "ENOTDIR"],
      [`${here}/f/`, "/x", "ENOTDIR"],
      ["/dev/null", "/x", "EINVAL"]
    ]
    for (const [from, to, code] of cases) {
      const error = yield* failure("OperationFailed", Container.copyIn(box, from, to))
      assert.equal(error.code, code, `${from} ${to}: ${error.message}`)
    }
    const missing = yield* failure("OperationFailed", Container.copyOut(box, "/nothing", here))
    assert.match(missing.message, /\/nothing.*: (?:lstat|open): ENOENT/)
    yield* failure("InvalidOption", Container.copyIn(box, "a\0b", "/"))
    yield* failure("InvalidOption", Container.copyOut(box, "a\0b", "/"))
    yield* failure("OperationFailed", Stream.run(Stream.empty, Container.tarIn(box, "/nothing")))
  })
