import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Build, Container, Image, Process, Volume } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { sshAgent, whyNoAgent } from "../support/ssh.ts"

const skip = { skip: whyNoBusybox }

const busybox = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  const root = `${folder}/busybox`
  if (!fs.existsSync(root)) makeRoot(root)
  return yield* Image.import(root)
})

/** An empty folder of the host, which goes with the suite's. */
const emptyFolder = (name: string) =>
  Effect.map(Berth.Berth, ({ folder }) => {
    const path = `${folder}/${name}`
    fs.rmSync(path, { recursive: true, force: true })
    fs.mkdirSync(path)
    return path
  })

suite("the result of a Build", (effect) => {
  effect(
    "an export copies files, one file, or an archive, and what it copies has no rights on the host",
    function* () {
      const here = yield* emptyFolder("exported")
      const app = Build.from(yield* busybox).pipe(
        Build.run("mkdir -p /out/deep; echo made > /out/made; ln -s made /out/link; chmod 4755 /out/made")
      )
      yield* Build.export(app, { path: "/out/.", to: `${here}/dist` })
      assert.deepEqual(fs.readdirSync(`${here}/dist`).sort(), ["deep", "link", "made"])
      assert.equal(fs.readlinkSync(`${here}/dist/link`), "made")
      assert.equal(fs.statSync(`${here}/dist/made`).mode & 0o7777, 0o755)
      yield* Build.export(app, { path: "/out/made", to: `${here}/one` })
      assert.equal(fs.readFileSync(`${here}/one`, "utf8"), "made\n")
      yield* Build.export(app, { path: "/out", to: `${here}/out.tar`, format: "tar" })
      const names = execFileSync("tar", ["-tvf", `${here}/out.tar`], { encoding: "utf8" })
      assert.match(names, /-rwsr-xr-x .* out\/made\n/)
      yield* Build.export(app, { to: `${here}/all` })
      assert.ok(fs.existsSync(`${here}/all/bin/busybox`))
      assert.ok(!fs.existsSync(`${here}/all/etc/resolv.conf`), "without what a start makes")
      assert.deepEqual(fs.readdirSync(here).sort(), ["all", "dist", "one", "out.tar"])
    },
    skip
  )

  effect(
    "an export of the image is an archive or a layout that other tools read",
    function* () {
      const here = yield* emptyFolder("images")
      const app = Build.from(yield* busybox).pipe(Build.run("echo made > /made"))
      const tag = "127.0.0.1:5000/team/app:1"
      yield* Build.export(app, { to: `${here}/layout`, format: "oci-layout", tag })
      yield* Build.export(app, { to: `${here}/app.tar`, format: "docker-archive", tag })
      for (const source of [`oci:${here}/layout:${tag}`, `docker-archive:${here}/app.tar`])
        assert.equal(
          JSON.parse(execFileSync("skopeo", ["inspect", source], { encoding: "utf8" })).Layers.length,
          2
        )
    },
    skip
  )

  effect(
    "an export that is impossible is refused before the first step runs",
    function* () {
      const events: Array<Build.BuildEvent> = []
      const app = Build.from(yield* busybox).pipe(Build.run("echo never > /never"))
      const options = { to: "/tmp/x", onEvent: (event: Build.BuildEvent) => events.push(event) }
      const format = yield* failure(
        "InvalidOption",
        Build.export(app, { ...options, format: "zip" as "tar" })
      )
      assert.equal(format.option, "format")
      assert.equal((yield* failure("InvalidOption", Build.export(app, { ...options, to: "" }))).option, "to")
      assert.deepEqual(events, [])
      const missing = yield* failure("OperationFailed", Build.export(app, { ...options, path: "/no/such" }))
      assert.equal(missing.code, "ENOENT")
    },
    skip
  )

  effect(
    "an explanation names what has changed, and nothing runs",
    function* () {
      const here = yield* emptyFolder("context")
      for (const name of ["a", "b", "gone"]) fs.writeFileSync(`${here}/${name}`, name)
      const base = yield* busybox
      const app = (environment: Readonly<Record<string, string>>) =>
        Build.from(base).pipe(
          Build.workdir("/app"),
          Build.config({ environment }),
          Build.run("echo $V > version"),
          Build.copy({ from: Build.local(here), paths: ["."] }),
          Build.run("cat a b > both")
        )
      const reasons = (environment: Readonly<Record<string, string>>) =>
        Effect.map(Build.explain(app(environment)), (steps) =>
          steps.map(({ isMade, reasons, text }) => [text, isMade ? "made" : reasons.join("; ")])
        )
      const unknown = "no build of this step, after the same steps, is recorded"
      assert.deepEqual(yield* reasons({ V: "1" }), [
        ["WORKDIR /app", unknown],
        ["RUN echo $V > version", "a step before it runs"],
        ["COPY . .", "a step before it runs"],
        ["RUN cat a b > both", "a step before it runs"]
      ])
      yield* Build.image(app({ V: "1" }))
      assert.ok((yield* Build.explain(app({ V: "1" }))).every(({ isMade }) => isMade))
      assert.deepEqual((yield* reasons({ V: "2", W: "1" })).slice(0, 3), [
        ["WORKDIR /app", "made"],
        ["RUN echo $V > version", "the variable V has changed; the variable W is new"],
        ["COPY . .", "a step before it runs"]
      ])
      fs.writeFileSync(`${here}/b`, "changed")
      fs.rmSync(`${here}/gone`)
      fs.writeFileSync(`${here}/new`, "")
      const why = "the file b has changed; the file new is new; the file gone is gone"
      assert.deepEqual((yield* reasons({ V: "1" }))[2], ["COPY . .", why])
      const events: Array<Build.BuildEvent> = []
      yield* Build.image(app({ V: "1" }), { onEvent: (event) => events.push(event) })
      const started = events.flatMap((event) => (event._tag === "Started" ? [event.reasons.join("; ")] : []))
      assert.deepEqual(started, [why, "the image below has changed"])
    },
    skip
  )

  effect(
    "a shell has the files, user and variables before the step that fails, and its caches",
    function* () {
      const app = Build.from(yield* busybox).pipe(
        Build.run("echo before > /before"),
        Build.run("touch /made; false", {
          env: { NAME: "value" },
          user: "1:1",
          cache: { "/cache": "shell" }
        }),
        Build.run("echo never > /never")
      )
      const command = [
        "sh",
        "-c",
        "cat /before; ls / | grep -c -e made -e never; echo $NAME; id -u; ls -d /cache"
      ]
      const { container, failure: why } = yield* Build.shell(app, { start: { command } })
      assert.equal(why?._tag, "BuildFailed")
      const lines = yield* Stream.runCollect(Process.logs(container, { follow: true }))
      assert.deepEqual(
        [...lines].map(({ line }) => line),
        ["before", "0", "value", "1", "/cache"]
      )
      const whole = yield* Build.shell(Build.from(yield* busybox).pipe(Build.run("echo whole > /whole")), {
        start: { command: ["cat", "/whole"] }
      })
      assert.equal(whole.failure, undefined)
      assert.equal((yield* whole.container.exit).exitCode, 0)
      yield* failure(
        "ImageError",
        Effect.scoped(Build.shell(Build.from("127.0.0.1:1/no:1"), { pull: "never" }))
      )
      assert.ok(Container.isContainer(container))
    },
    skip
  )

  effect(
    "an explanation names agents, rights and caches that have changed",
    function* () {
      const base = yield* busybox
      const step = (options: Build.RunOptions) => Build.from(base).pipe(Build.run("true", options))
      const { folder } = yield* Berth.Berth
      const { socket } = yield* sshAgent(`${folder}/agent`)
      const ssh = { "/agent": socket }
      yield* Build.image(step({ ssh }))
      const reasons = (options: Build.RunOptions) =>
        Effect.map(Build.explain(step(options)), ([explained]) => explained!.reasons)
      assert.deepEqual(yield* reasons({ ssh }), [])
      assert.deepEqual(yield* reasons({ ssh: { "/agent": folder } }), [], "another agent is no other step")
      assert.deepEqual(yield* reasons({ ssh: { "/agent": { socket, mode: 0o660 } } }), [
        "the list of SSH agents has changed"
      ])
      assert.deepEqual(yield* reasons({ ssh, security: "sandbox" }), [])
      assert.deepEqual(yield* reasons({ ssh, security: "insecure" }), ["the security has changed"])
      assert.deepEqual(yield* reasons({ ssh, cache: { "/c": "c" } }), ["the list of caches has changed"])
      yield* Build.image(step({ ssh, cache: { "/c": "c" } }))
      const readOnly = { name: "c", sharing: "locked", readOnly: true } as const
      assert.deepEqual(yield* reasons({ ssh, cache: { "/c": { ...readOnly, readOnly: false } } }), [])
      assert.deepEqual(yield* reasons({ ssh, cache: { "/c": readOnly } }), ["the list of caches has changed"])
      yield* Volume.remove("build-cache.c")
    },
    { skip: whyNoBusybox || whyNoAgent }
  )

  effect(
    "the manifest of a named image says what it was made of, if that is asked for",
    function* () {
      const { folder } = yield* Berth.Berth
      const context = yield* emptyFolder("facts")
      fs.writeFileSync(`${context}/file`, "one")
      const base = yield* busybox
      const app = Build.from(base).pipe(
        Build.copy({ from: Build.local(context), paths: ["file"], to: "/" }),
        Build.run("true", { env: { LEVEL: "1" }, secret: { token: "hidden" } }),
        Build.config({ labels: { team: "app" } })
      )
      const annotations = (options: Build.ImageOptions) =>
        Effect.map(Build.image(app, { ...options, tag: "team/facts:1" }), ({ digest }) => {
          const file = `${folder}/store/blobs/sha256/${digest!.slice("sha256:".length)}`
          return JSON.parse(fs.readFileSync(file, "utf8")).annotations
        })
      assert.equal(yield* annotations({}), undefined)
      const facts = yield* annotations({ provenance: true })
      assert.equal(facts["org.opencontainers.image.base.digest"], base.digest)
      assert.equal(facts["org.opencontainers.image.base.name"], base.reference)
      const steps = JSON.parse(facts["vnd.berth.build.steps"])
      assert.deepEqual(
        steps.map(({ step }: { step: string }) => step),
        ["COPY file /", "RUN true", "CONFIG labels"]
      )
      const [copy, run] = steps.map(({ inputs }: { inputs: Record<string, string> }) => inputs)
      assert.ok("the file file" in copy && "the variable LEVEL" in run && "the list of secrets" in run)
      assert.ok(!JSON.stringify(facts).includes("hidden"))
      // Only the file has changed.
      fs.writeFileSync(`${context}/file`, "two")
      const later = JSON.parse((yield* annotations({ provenance: true }))["vnd.berth.build.steps"])
      assert.notEqual(later[0].inputs["the file file"], copy["the file file"])
      assert.equal(later[1].inputs["the variable LEVEL"], run["the variable LEVEL"])
    },
    skip
  )
})
