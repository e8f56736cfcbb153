/** Builds on a disk that is full: what they say, what they leave, and that they work once there is room. */
import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import { pipeline } from "node:stream"
import * as Effect from "effect/Effect"
import { Berth, type BerthError, Build, Image } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { elsewhere, scratch } from "../support/imageArchive.ts"
import { sh } from "../support/images.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** A filesystem of 16 MiB, mounted until the scope closes. */
const small = Effect.flatMap(scratch, (at) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const mounted = `${at}/small`
      fs.mkdirSync(mounted)
      sh("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", mounted)
      return mounted
    }),
    (mounted) => Effect.sync(() => sh("umount", mounted))
  )
)

const makeRoom = (mounted: string) => sh("mount", "-o", "remount,size=128m", mounted)

/** What does not fit: `big` beyond the disk, `half` only together with its blob. */
const contextIn = (at: string): string => {
  const context = `${at}/context`
  fs.mkdirSync(context)
  fs.writeFileSync(`${context}/big`, randomBytes(30_000_000))
  fs.writeFileSync(`${context}/half`, randomBytes(8_000_000))
  sh("sh", "-c", 'cd "$1" && tar -cf big.tar big', "sh", context)
  return context
}

const serverOf = (file: string) =>
  Effect.acquireRelease(
    Effect.promise(
      () =>
        new Promise<http.Server>((resolve) => {
          const server = http.createServer((_, response) => {
            response.setHeader("connection", "close")
            pipeline(fs.createReadStream(file), response, () => {})
          })
          server.listen(0, "127.0.0.1", () => resolve(server))
        })
    ),
    (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
  )

/** All files of Berth's folder, but for folders of mounts' targets, records, and files that the next use writes anew. */
const filesOf = (folder: string): ReadonlyArray<string> =>
  fs
    .readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => !/\/targets-|^build|^seccomp|^layers\/kept$|^volumes$|\.new$/.test(name))
    .sort()

suite("a build on a full disk", (effect) => {
  const cases: ReadonlyArray<readonly [what: string, text: (url: string) => string, reason: string]> = [
    [
      "a command that fills it",
      () => "RUN dd if=/dev/zero of=/big bs=1M count=30",
      "exit code 1, the disk is full"
    ],
    ["a copy", () => "COPY big /", ""],
    ["an archive", () => "ADD big.tar /", ""],
    ["a file of an address", (url) => `ADD ${url}/big /`, ""],
    ["files that a command would see", () => "RUN --mount=target=/x,source=big cmp /x /x", ""]
  ]
  for (const [what, instruction, mention] of cases)
    effect.asRoot(
      `${what} fails the step with the reason, leaves nothing, and works when there is room`,
      function* () {
        const at = yield* scratch
        const mounted = yield* small
        makeRoot(`${at}/root`)
        const context = contextIn(at)
        const server = yield* serverOf(`${context}/big`)
        const text = `FROM local/base\n${instruction(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)}\n`
        yield* elsewhere(
          mounted,
          Effect.gen(function* () {
            const { folder } = yield* Berth.Berth
            yield* Image.import(`${at}/root`, { tag: "local/base" })
            const build = Build.dockerfile({ context, text })
            const before = filesOf(folder)
            const error = yield* failure("BuildFailed", build)
            assert.equal(error.reason, "Storage", error.message)
            assert.match(error.message, /:2: /)
            assert.match(error.message, /the disk is full \(ENOSPC\): make room on the filesystem of /)
            assert.ok(error.message.includes(folder) && error.message.includes(mention), error.message)
            assert.deepEqual(filesOf(folder), before)
            makeRoom(mounted)
            yield* build
            let ran = 0
            yield* Build.dockerfile({
              context,
              text,
              onEvent: ({ _tag }) => (ran += _tag === "Done" ? 1 : 0)
            })
            assert.equal(ran, 0, "its layer is whole")
          })
        )
      },
      skip
    )

  for (const [instruction, mention] of [
    ["RUN true", ":2: RUN true"],
    ["COPY small /", ":2: COPY small"],
    ["WORKDIR /made", ":2: WORKDIR"],
    ["RUN --mount=type=cache,target=/c true", ":2: RUN"],
    ["COPY <<E /made\ntext\nE", ":2: COPY"]
  ] as const)
    effect.asRoot(
      `without any room, ${instruction.split("\n")[0]} fails with its place, and works when there is room`,
      function* () {
        const at = yield* scratch
        const mounted = yield* small
        makeRoot(`${at}/root`)
        fs.mkdirSync(`${at}/context`)
        fs.writeFileSync(`${at}/context/small`, "text")
        yield* elsewhere(
          mounted,
          Effect.gen(function* () {
            const { folder } = yield* Berth.Berth
            yield* Image.import(`${at}/root`, { tag: "local/base" })
            const text = `FROM local/base\n${instruction}\n`
            const build = Build.dockerfile({ context: `${at}/context`, text })
            sh("sh", "-c", '! head -c 20000000 /dev/zero > "$1" 2>/dev/null', "sh", `${mounted}/filling`)
            const before = filesOf(folder)
            const error = yield* failure("BuildFailed", build)
            assert.equal(error.reason, "Storage", error.message)
            assert.ok(error.message.includes(mention) && error.message.includes(folder), error.message)
            assert.deepEqual(filesOf(folder), before)
            fs.rmSync(`${mounted}/filling`)
            yield* build
          })
        )
      },
      skip
    )

  effect.asRoot(
    "a blob without room fails the build of a named image, an export and a cache, which work when there is room",
    function* () {
      const at = yield* scratch
      const mounted = yield* small
      makeRoot(`${at}/root`)
      const context = contextIn(at)
      yield* elsewhere(
        mounted,
        Effect.gen(function* () {
          const { folder } = yield* Berth.Berth
          yield* Image.import(`${at}/root`, { tag: "local/base" })
          const build = yield* Build.fromDockerfile({ context, text: "FROM local/base\nCOPY half /\n" })
          yield* Build.image(build)
          const before = filesOf(folder)
          const attempts: ReadonlyArray<Effect.Effect<unknown, BerthError.BerthError, Berth.Berth>> = [
            Build.image(build, { tag: "local/named:1" }),
            Build.export(build, { to: `${at}/layout`, format: "oci-layout" }),
            Build.export(build, { to: `${at}/app.tar`, format: "docker-archive" }),
            Build.image(build, { cacheTo: { folder: `${at}/cache` } })
          ]
          for (const attempt of attempts) {
            const error = yield* failure("ImageError", attempt)
            assert.equal(error.reason, "Storage")
            assert.match(error.message, /the disk is full \(ENOSPC\): make room on the filesystem of /)
            assert.deepEqual(filesOf(folder), before)
          }
          assert.deepEqual(
            (yield* Image.list).map(({ name }) => name),
            ["docker.io/local/base:latest"]
          )
          for (const name of ["layout", "app.tar"]) assert.ok(!fs.existsSync(`${at}/${name}`), name)
          makeRoom(mounted)
          for (const attempt of attempts) yield* attempt
        })
      )
    },
    skip
  )

  effect.asRoot(
    "an export to a full disk fails with its place, and leaves no file of it",
    function* () {
      const at = yield* scratch
      const mounted = yield* small
      makeRoot(`${at}/root`)
      const context = contextIn(at)
      yield* elsewhere(
        at,
        Effect.gen(function* () {
          yield* Image.import(`${at}/root`, { tag: "local/base" })
          const build = yield* Build.fromDockerfile({ context, text: "FROM local/base\nCOPY big /\n" })
          for (const format of ["folder", "tar", "oci-archive", "oci-layout", "docker-archive"] as const) {
            const exported = Build.export(build, { to: `${mounted}/${format}`, format, path: "/big" })
            const error = yield* Effect.flip(exported)
            assert.match(error.message, /ENOSPC/, format)
            assert.match(error.message, /make room on the filesystem of /i, format)
            assert.ok(error.message.includes(mounted), error.message)
            assert.deepEqual(fs.readdirSync(mounted), [], format)
          }
        })
      )
    },
    skip
  )
})
