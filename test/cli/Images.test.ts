import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before } from "node:test"
import * as Effect from "effect/Effect"
import { Image } from "../../lib/index.ts"
import { berth, events, startBerth } from "../support/cli.ts"
import { makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { ended } from "../support/program.ts"
import { startRegistry, whyNoServer, withoutDockerConfig } from "../support/registry.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = whyNoServer || whyNoBusybox

suite("the commands of images", (effect, folder) => {
  withoutDockerConfig()
  let work = ""
  before(() => {
    work = makeTemporaryFolder()
  })
  after(() => remove(work))

  const call = (...args: ReadonlyArray<string>) =>
    Effect.promise(() => berth([args[0]!, "--folder", folder(), ...args.slice(1)]))
  const digest = /sha256:[0-9a-f]{64}/

  effect(
    "an image is pushed, pulled, listed, inspected, run, named, saved, loaded and collected",
    function* () {
      const registry = yield* Effect.acquireRelease(
        Effect.promise(() => startRegistry()),
        ({ stop }) => Effect.promise(stop)
      )
      const name = `${registry.host}/team/box:1`
      yield* Image.import(makeRoot(`${work}/root`), {
        tag: name,
        config: { command: ["sh", "-c", "echo from the image"] }
      })

      const pushed = yield* call("push", name)
      assert.deepEqual([pushed.code, pushed.stderr], [0, ""])
      assert.equal(pushed.stdout, `${name} ${digest.exec(pushed.stdout)![0]}\n`)
      yield* call("rm", name)
      assert.match((yield* call("gc")).stdout, /^removed [1-9]\d* blobs /)

      const pulled = yield* call("pull", name, "--json")
      const steps = events(pulled.stdout)
      assert.ok(
        steps.some(({ phase, type }) => type === "layer" && phase === "done"),
        pulled.stdout
      )
      assert.deepEqual([steps.at(-1)!.type, steps.at(-1)!.reference], ["image", name])
      assert.equal((yield* call("pull", name)).stdout, `${name} ${steps.at(-1)!.digest}\n`)

      assert.match((yield* call("images")).stdout, new RegExp(`^NAME +DIGEST +PLATFORM\n${name} +sha256:`))
      assert.equal(JSON.parse((yield* call("images", "--json")).stdout)[0].name, name)
      assert.match((yield* call("inspect", name)).stdout, /^command +\["sh","-c","echo from the image"\]$/m)
      assert.equal(JSON.parse((yield* call("inspect", name, "--json")).stdout).layers.length, 1)

      assert.equal((yield* call("run", name)).stdout, "from the image\n")
      assert.equal(
        (yield* call("run", "--pull", "always", name, "--", "echo", "another")).stdout,
        "another\n"
      )
      const other = yield* call("run", "--platform", "linux/s390x", "--pull", "always", name)
      assert.equal(other.code, 125)
      assert.match(other.stderr, /s390x/)

      assert.equal((yield* call("tag", name, "box:2")).code, 0)
      const archive = `${work}/box.tar`
      assert.equal((yield* call("save", "box:2", archive)).code, 0)
      assert.equal((yield* call("rm", "box:2", name)).code, 0)
      assert.match((yield* call("gc", "--dry-run")).stdout, /^would remove [1-9]/)
      assert.match((yield* call("load", archive)).stdout, /^docker\.io\/library\/box:2 sha256:/)
      yield* call("rm", "box:2")
      const fromStdin = yield* Effect.promise(() =>
        berth(["load", "--folder", folder(), "--json"], { input: fs.readFileSync(archive) })
      )
      assert.equal(JSON.parse(fromStdin.stdout)[0].reference, "docker.io/library/box:2")
      yield* call("rm", "box:2")
      yield* call("gc")
    },
    { skip }
  )

  effect("what does not exist gives 3, and a registry that does not answer 5", function* () {
    for (const args of [
      ["inspect", "missing:1"],
      ["tag", "missing:1", "other:1"],
      ["rm", "missing:1"]
    ]) {
      const { code, stderr, stdout } = yield* call(...args)
      assert.deepEqual([code, stdout], [3, ""], args.join(" "))
      assert.match(stderr, /^berth: [^\n]*missing:1[^\n]*\n$/)
    }
    const { code, stderr } = yield* call("pull", "127.0.0.1:1/nobody:1")
    assert.equal(code, 5)
    assert.match(stderr, /^berth: 127\.0\.0\.1:1: [^\n]*\n$/)
    assert.equal((yield* call("pull", "NOT A NAME")).code, 2)
  })

  effect(
    "a Dockerfile is built, its steps are shown, and a failed step is a line with its place",
    function* () {
      const context = `${work}/context`
      fs.mkdirSync(context, { recursive: true })
      yield* Image.import(makeRoot(`${work}/base`), { tag: "local/base:1" })
      fs.writeFileSync(
        `${context}/Dockerfile`,
        "FROM local/base:1\nARG WORD=none\nRUN echo said; echo $WORD > /word\nCMD cat /word\n"
      )
      const built = yield* call("build", "--tag", "local/app:1", "--build-arg", "WORD=mine", context)
      assert.equal(built.code, 0, built.stderr)
      assert.match(built.stdout, /^docker.io\/local\/app:1 sha256:[0-9a-f]{64}\n$/)
      assert.match(built.stderr, /^berth: #1 RUN echo said; .*\nberth: #1 \| said\nberth: #1 done in /)
      assert.equal((yield* call("run", "local/app:1")).stdout, "mine\n")

      const again = yield* call("build", "--json", "--build-arg", "WORD=mine", context)
      assert.deepEqual(
        events(again.stdout).map(({ type }) => type),
        ["cached", "image"]
      )
      const explained = yield* call("build", "--explain", "--build-arg", "WORD=other", context)
      assert.equal(explained.stdout, "#1 RUN echo said; echo $WORD > /word: the variable WORD has changed\n")
      const exported = yield* call(
        "build",
        "-o",
        `${work}/out`,
        "--path",
        "/word",
        "--build-arg",
        "WORD=mine",
        context
      )
      assert.deepEqual([exported.code, exported.stdout], [0, `${work}/out\n`])
      assert.equal(fs.readFileSync(`${work}/out`, "utf8"), "mine\n")
      fs.writeFileSync(`${context}/Dockerfile`, "FROM base\nCOPY --from=more Dockerfile /\n")
      const named = (...places: ReadonlyArray<string>) =>
        call("build", ...places.flatMap((place) => ["--build-context", place]), context)
      const contexts = yield* named("base=docker-image://local/base:1", `more=${context}`)
      assert.equal(contexts.code, 0, contexts.stderr)
      assert.match((yield* named("base")).stderr, /--build-context.*NAME=PLACE/)
      fs.writeFileSync(`${context}/Dockerfile`, "FROM local/base:1\nRUN echo begun; sleep 1000\n")
      const child = startBerth(["build", "--folder", folder(), context])
      let said = ""
      // By its pid, as Deno tells no exit code after `kill`; and once, as a second signal would kill it.
      child.stderr!.on("data", (bytes) => {
        const isFirst = !said.includes("| begun")
        said += bytes
        if (isFirst && said.includes("| begun")) process.kill(child.pid!, "SIGINT")
      })
      const interrupted = yield* Effect.promise(() => ended(child))
      assert.equal(interrupted.code, 130, interrupted.stderr)
      const rest = yield* call("build", "--explain", context)
      assert.match(rest.stdout, /^#1 RUN echo begun; sleep 1000: no build /)
      fs.writeFileSync(`${context}/Dockerfile`, "FROM local/base:1\nRUN echo bad; exit 3\n")
      const failed = yield* call("build", context)
      assert.equal(failed.code, 1)
      assert.match(failed.stderr, /Dockerfile:2: RUN echo bad; exit 3: has ended with exit code 3/)
    },
    { skip: whyNoBusybox }
  )
})
