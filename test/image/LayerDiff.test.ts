import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import fc from "fast-check"
import { type Berth, Container, Image, ImageLayer, Namespace, RootFs } from "../../lib/index.ts"
import { type Metadata, metadataOf } from "../../lib/internal/files/metadata.ts"
import * as inRoot from "../../lib/internal/files/rooted.ts"
import { native } from "../../lib/internal/system/addon.ts"
import { concat } from "../../lib/internal/util/bytes.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { pack } from "../support/pack.ts"
import { makeRoot, whyNoBusybox, withConfig, withLayers } from "../support/rootfs.ts"
import { binary, env } from "../support/unpack.ts"

const hostFolder = Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (path) =>
  Effect.sync(() => remove(path))
)

const diff = (upper: string) =>
  Effect.map(Stream.runCollect(ImageLayer.diff({ upper })), (chunks) => concat(chunks))

const unpack = (archive: Uint8Array, folder: string): string => {
  fs.mkdirSync(folder)
  fs.writeFileSync(`${folder}.tar`, archive)
  const done = spawnSync("sh", ["-c", `exec "$0" "$1" <"$1.tar"`, binary, folder], { env, encoding: "utf8" })
  assert.equal(done.status, 0, done.stdout)
  return done.stdout
}

/** Stacks the layers, the lowest first, and gives a path of the root. */
const mounted = (folder: string, layers: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const image = yield* Image.fromRootfs(folder)
    const stacked = Object.assign(Object.create(Object.getPrototypeOf(image)), { ...image, layers })
    const root = yield* RootFs.overlay(stacked, { upper: "disk" })
    return { root: inRoot.via(root.mount), upper: root.upper! }
  })

const sorted = (metadata: Metadata): Metadata => ({
  ...metadata,
  xattrs: metadata.xattrs.toSorted(([one], [other]) => (one < other ? -1 : 1))
})

/** Folders of every root: the targets of mounts are in them, with times of their own. */
const targets = new Set(["proc", "sys", "dev", "etc"])

/** The metadata and contents of a whole tree, with the names that are hard links to one file. */
const describe = (root: string): unknown => {
  const found: Record<string, unknown> = {}
  const names = new Map<string, string>()
  const visit = (path: string): void => {
    const place = inRoot.openHost(`${root}/${path}`.replace(/\/$/, "/."), inRoot.O_RDONLY | PATH)
    inRoot.using(place, (fd) => {
      const status = fs.statSync(inRoot.via(fd))
      const identity = inRoot.identity(fd)
      const first = names.get(identity) ?? path
      names.set(identity, first)
      const at = `${root}/${path}`
      found[path] = {
        type: status.mode & 0o170000,
        ...sorted(metadataOf(fd, status, path)),
        // The root of an overlay has the times of its writable layer, which is new.
        ...(path === "" ? { seconds: 0, nanoseconds: 0 } : {}),
        ...(status.isDirectory() ? {} : { first, rdev: status.rdev }),
        ...(status.isFile() ? { contents: fs.readFileSync(at, "latin1") } : {}),
        ...(status.isSymbolicLink() ? { link: fs.readlinkSync(at) } : {})
      }
      if (status.isDirectory())
        for (const name of fs.readdirSync(at).sort())
          if (path !== "" || !targets.has(name)) visit(path === "" ? name : `${path}/${name}`)
    })
  }
  visit("")
  return found
}
const PATH = 0o10000000 | (fs.constants.O_NOFOLLOW ?? 0)

type Change =
  | { readonly op: "file"; readonly path: string; readonly contents: string; readonly mode: number }
  | { readonly op: "folder" | "new folder"; readonly path: string; readonly mode: number }
  | { readonly op: "symlink" | "link" | "rename"; readonly path: string; readonly from: string }
  | { readonly op: "fifo" | "remove"; readonly path: string }
  | { readonly op: "append"; readonly path: string; readonly contents: string }
  | { readonly op: "mode"; readonly path: string; readonly mode: number }
  | { readonly op: "owner"; readonly path: string; readonly uid: number; readonly gid: number }
  | { readonly op: "time"; readonly path: string; readonly seconds: number; readonly nanoseconds: number }
  | { readonly op: "attribute"; readonly path: string; readonly name: string; readonly value: Uint8Array }

const name = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom("a", "b") },
  { weight: 1, arbitrary: fc.constantFrom("é", "name".repeat(30)) }
)
const path = fc.array(name, { minLength: 1, maxLength: 3, size: "max" }).map((parts) => parts.join("/"))
const mode = fc.constantFrom(0o644, 0o4755, 0o2750, 0o1777, 0o600, 0o2644, 0)
const contents = fc.string({ maxLength: 20 })
const id = fc.constantFrom(0, 1000, 2 ** 21 - 1, 2 ** 21, 2 ** 31 + 5)
const capability = Uint8Array.from([1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])

const change: fc.Arbitrary<Change> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant("file" as const), path, contents, mode }) },
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constantFrom("folder" as const, "new folder" as const), path, mode })
  },
  {
    weight: 4,
    arbitrary: fc.record({
      op: fc.constantFrom("symlink" as const, "link" as const, "rename" as const),
      path,
      from: path
    })
  },
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constantFrom("fifo" as const, "remove" as const, "remove" as const), path })
  },
  fc.record({ op: fc.constant("append" as const), path, contents }),
  fc.record({ op: fc.constant("mode" as const), path, mode }),
  fc.record({ op: fc.constant("owner" as const), path, uid: id, gid: id }),
  fc.record({
    op: fc.constant("time" as const),
    path,
    // libarchive loses the sign of times in the second before 1970: it reads "-0.5" as 0.5.
    seconds: fc.integer({ min: -(2 ** 31), max: 2 ** 33 }).filter((seconds) => seconds !== -1),
    nanoseconds: fc.constantFrom(0, 1, 500_000_000, 999_999_999)
  }),
  fc.oneof(
    fc.record({
      op: fc.constant("attribute" as const),
      path,
      name: fc.constantFrom("user.one", "user.two"),
      value: fc.uint8Array({ maxLength: 8 })
    }),
    fc.record({
      op: fc.constant("attribute" as const),
      path,
      name: fc.constant("security.capability"),
      value: fc.constant(capability)
    })
  )
)

const at = (root: string, path: string): string => `${root}/${path}`
const check = (result: number): void => {
  if (result < 0) throw new Error(`errno ${-result}`)
}

/** Makes one change, and replaces what is in its way. */
const make = (root: string, change: Change): void => {
  const target = at(root, change.path)
  const opened = (use: (fd: number) => number): void =>
    check(inRoot.using(inRoot.openHost(target, PATH), use))
  const isNew = ["file", "folder", "new folder", "symlink", "link", "fifo"].includes(change.op)
  // A hard link to a missing file or a folder would only remove the old name.
  if (change.op === "link" && fs.lstatSync(at(root, change.from)).isDirectory()) return
  if (isNew) fs.mkdirSync(target.slice(0, target.lastIndexOf("/")), { recursive: true })
  if (change.op === "remove" || (isNew && change.op !== "folder"))
    if (!("from" in change) || change.from !== change.path)
      fs.rmSync(target, { recursive: true, force: true })
  switch (change.op) {
    case "file":
      fs.writeFileSync(target, change.contents)
      return fs.chmodSync(target, change.mode)
    case "folder":
    case "new folder":
      fs.mkdirSync(target)
      return fs.chmodSync(target, change.mode)
    case "symlink":
      return fs.symlinkSync(change.from, target)
    case "link":
      return fs.linkSync(at(root, change.from), target)
    case "rename":
      return fs.renameSync(at(root, change.from), target)
    case "fifo":
      return inRoot.using(inRoot.openHost(target.slice(0, target.lastIndexOf("/")), inRoot.O_FOLDER), (fd) =>
        check(native().makeFifo(fd, target.slice(target.lastIndexOf("/") + 1), 0o640))
      )
    case "append":
      if (fs.lstatSync(target).isFile()) fs.appendFileSync(target, change.contents)
      return
    case "mode":
      if (!fs.lstatSync(target).isSymbolicLink()) fs.chmodSync(target, change.mode)
      return
    case "owner":
      return fs.lchownSync(target, change.uid, change.gid)
    case "time":
      return opened((fd) => native().setModified(fd, change.seconds, change.nanoseconds))
    case "attribute":
      return opened((fd) => native().setXattr(fd, change.name, change.value))
    default:
  }
}

/** Makes the changes in their order. A change that the tree does not allow is skipped. */
const apply = (root: string, changes: ReadonlyArray<Change>): void => {
  for (const change of changes) {
    try {
      make(root, change)
    } catch {}
  }
}

// Many changes, as most of them find nothing to change.
const some = fc.array(change, { maxLength: 50, size: "max" })

const namesIn = (archive: Uint8Array): ReadonlyArray<string> =>
  execFileSync("tar", ["-t"], { input: archive, encoding: "utf8" }).trim().split("\n")

suite("ImageLayer.diff", (effect) => {
  effect.asRoot(
    "a diff does not contain what a start makes in a root, whatever the layers hide or link",
    function* () {
      const here = yield* hostFolder
      const [low, high] = [makeRoot(`${here}/low`), `${here}/high`]
      fs.writeFileSync(`${low}/etc/hosts`, "of the image\n")
      fs.mkdirSync(`${low}/srv/old`, { recursive: true })
      fs.mkdirSync(`${high}/etc`, { recursive: true })
      execFileSync("mknod", [`${high}/etc/hosts`, "c", "0", "0"])
      execFileSync("mknod", [`${high}/srv`, "c", "0", "0"])
      fs.symlinkSync("home/app", `${high}/link`)
      const image = withConfig(withLayers(yield* Image.fromRootfs(low), [low, high]), {
        workingDirectory: "/link/work/deep"
      })
      for (const script of ["true", "echo x > new"]) {
        const rootfs = yield* RootFs.overlay(image)
        const namespaces = yield* Namespace.make(["pid", "uts", "ipc", "network"])
        const box = yield* Container.spawn({
          rootfs,
          namespaces,
          command: ["sh", "-c", `cat /etc/hosts; ${script}`]
        })
        assert.equal((yield* box.exit).exitCode, 0)
        const made = [
          "./home/",
          "./home/app/",
          "./home/app/work/",
          "./home/app/work/deep/",
          "./home/app/work/deep/new"
        ]
        const expected = script === "true" ? [] : made.map((name) => name.slice(2))
        assert.deepEqual(namesIn(yield* diff(rootfs.upper!)), ["./", ...expected])
      }
    },
    { skip: whyNoBusybox }
  )

  effect.asRoot(
    "a diff, unpacked above the same lower layer, shows the same tree as the writable layer",
    function* () {
      const runtime = yield* Effect.runtime<Berth.Berth>()
      const law = (before: ReadonlyArray<Change>, after: ReadonlyArray<Change>) =>
        Effect.gen(function* () {
          const here = yield* hostFolder
          const lower = `${here}/lower`
          fs.mkdirSync(lower)
          apply(lower, before)
          const one = yield* mounted(lower, [lower])
          apply(one.root, after)
          const wanted = describe(one.root)
          const archive = yield* diff(one.upper)
          assert.doesNotMatch(unpack(archive, `${here}/layer`), /^(implicit|hardlink|skipped)/m)
          const other = yield* mounted(lower, [lower, `${here}/layer`])
          assert.deepEqual(describe(other.root), wanted)
          assert.ok(Buffer.from(yield* diff(one.upper)).equals(archive), "twice the same bytes")
          const packed = pack(one.upper, ["--compression=none"])
          assert.ok(packed.blob.equals(archive), `native/pack makes the same tar: ${packed.report.join(" ")}`)
        }).pipe(Effect.scoped)
      yield* Effect.promise(() =>
        fc.assert(
          fc.asyncProperty(some, some, (before, after) => Runtime.runPromise(runtime)(law(before, after))),
          { interruptAfterTimeLimit: 12_000, numRuns: 200, includeErrorInReport: true }
        )
      )
    }
  )

  /** A writable layer whose files a script makes. */
  const madeBy = (script: string) =>
    Effect.map(hostFolder, (here) => {
      const upper = `${here}/upper`
      fs.mkdirSync(upper)
      execFileSync("sh", ["-ec", script], { cwd: upper })
      execFileSync("sh", ["-ec", 'find . | while read -r f; do touch -h -d @1000000000.5 "$f"; done'], {
        cwd: upper
      })
      return { here, upper }
    })

  const list = (archive: Uint8Array): ReadonlyArray<string> =>
    execFileSync("tar", ["-t", "--quoting-style=escape"], { input: archive, encoding: "latin1" })
      .trimEnd()
      .split("\n")

  effect("a diff has equal bytes for equal trees, whatever the order in which they were made", function* () {
    const one = yield* madeBy("mkdir a; touch a/y; ln a/y a/x; touch b; chmod 600 b; ln -s a/x link")
    const other = yield* madeBy("touch b; chmod 600 b; ln -s a/x link; mkdir a; touch a/x; ln a/x a/y")
    const archive = yield* diff(one.upper)
    assert.deepEqual(list(archive), ["./", "a/", "a/x", "a/y", "b", "link"])
    assert.ok(Buffer.from(yield* diff(other.upper)).equals(archive))
    // tar(1) writes the first name as a file, and the others as links to it.
    assert.match(execFileSync("tar", ["-tv"], { input: archive, encoding: "utf8" }), /a\/y link to a\/x\n/)
  })

  effect.asRoot("a diff records removed and replaced files and devices", function* () {
    const { upper } = yield* madeBy(
      `mknod gone c 0 0; ln gone gone-too; mkdir d; mknod d/old c 0 0; touch d/a; mknod null c 1 3; mknod disk b 259 1048575; mkfifo p
        python3 -c 'import os; os.setxattr("d", "trusted.overlay.opaque", b"y"); os.setxattr("d", "user.overlay.opaque", b"y")'`
    )
    const archive = yield* diff(upper)
    assert.deepEqual(list(archive), [
      "./",
      "d/",
      "d/.wh..wh..opq",
      "d/a",
      "d/.wh.old",
      "disk",
      ".wh.gone",
      ".wh.gone-too",
      "null",
      "p"
    ])
    const seen = execFileSync("tar", ["-tv"], { input: archive, encoding: "utf8" })
    assert.match(seen, /^c.* 1,3 .*null$/m)
    assert.match(seen, /^b.* 259,1048575 .*disk$/m)
    assert.doesNotMatch(Buffer.from(archive).toString("latin1"), /overlay/)
  })

  effect.asRoot(
    "a diff keeps names that are not UTF-8 and long names, and writes holes as zeros",
    function* () {
      const long = "n".repeat(200)
      const { here, upper } = yield* madeBy(
        `d=$(printf 'caf\\351'); mkdir "$d"; echo in > "$d/f"; ln -s "$(printf 't\\377')" "$d/s"; ln "$d/f" "$d/g"
        mkdir -p ${long}/${long}; echo far > ${long}/${long}/f; truncate -s 300000 sparse; printf x >> sparse`
      )
      assert.equal(unpack(yield* diff(upper), `${here}/layer`).includes("error"), false)
      const tree = (folder: string): string =>
        execFileSync(
          "sh",
          [
            "-ec",
            "find . -printf '%p %y %m %n %s %l %T@\n' | grep -v ' d ' | sort; cat */f; sha256sum sparse"
          ],
          { cwd: folder, encoding: "latin1", env: { ...env, LC_ALL: "C" } }
        )
      assert.match(tree(upper), /caf\xe9\/s l/)
      assert.equal(tree(`${here}/layer`), tree(upper))
    }
  )

  effect("a diff hides a lower file that a socket has replaced", function* () {
    const { here, upper } = yield* madeBy("touch a")
    const server = net.createServer()
    yield* Effect.acquireRelease(
      Effect.promise(() => new Promise<void>((done) => server.listen(`${upper}/s`, done))),
      () => Effect.promise(() => new Promise<void>((done) => server.close(() => done())))
    )
    assert.deepEqual(list(yield* diff(upper)), ["./", "a", ".wh.s"])
    assert.ok(here !== upper)
  })

  effect.asRoot("a diff of a file that a layer cannot hold fails with the file's name", function* () {
    const attribute = (name: string) =>
      `mkdir d; touch d/f; python3 -c 'import os; os.setxattr("d/f", "${name}", b"x")'`
    for (const [script, subject, why] of [
      ["mkdir d; touch d/.wh.f", "d/.wh.f", /begin|name/],
      [attribute("trusted.overlay.redirect"), "d/f", /redirect_dir=off/],
      [attribute("trusted.overlay.metacopy"), "d/f", /metacopy/],
      [attribute("user.a=b"), "d/f", /user\.a=b/]
    ] as const) {
      const { upper } = yield* madeBy(script)
      const error = yield* failure("ImageError", diff(upper))
      assert.equal(error.subject, subject)
      assert.match(error.message, why)
    }
    const missing = yield* failure("OperationFailed", diff("/nowhere/at/all"))
    assert.equal(missing.code, "ENOENT")
  })
})
