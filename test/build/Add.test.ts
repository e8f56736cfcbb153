/** ADD: what archives and servers of an attacker can do. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import * as Effect from "effect/Effect"
import { Berth, Build, Container, Image } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** An empty context; the image `local/busybox` is in the store. */
const contextOf = (name: string) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    if (!fs.existsSync(`${folder}/busybox`)) makeRoot(`${folder}/busybox`)
    yield* Image.import(`${folder}/busybox`, { tag: "local/busybox" })
    fs.mkdirSync(`${folder}/context-${name}`)
    return `${folder}/context-${name}`
  })

/** A server of these answers, which counts the requests. */
const serverOf = (answer: http.RequestListener) =>
  Effect.acquireRelease(
    Effect.promise(
      () =>
        new Promise<{ readonly url: string; readonly count: () => number; readonly server: http.Server }>(
          (resolve) => {
            let count = 0
            const server = http.createServer((request, response) => {
              count++
              response.setHeader("connection", "close")
              answer(request, response)
            })
            server.listen(0, "127.0.0.1", () =>
              resolve({
                url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
                count: () => count,
                server
              })
            )
          }
        )
    ),
    ({ server }) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
  )

const output = (image: Image.Image, command: string) =>
  Effect.map(Container.run(image, { command: ["sh", "-c", command] }), ({ exitCode, stderr, stdout }) => {
    assert.equal(exitCode, 0, stderr)
    return stdout
  })

suite("ADD", (effect, folder) => {
  effect(
    "an archive writes nothing outside of its target",
    function* () {
      const context = yield* contextOf("hostile")
      const outside = `${folder()}/outside`
      fs.mkdirSync(outside)
      const make = (name: string, script: string) =>
        execFileSync("sh", ["-ec", `rm -rf t && mkdir t && cd t && ${script}`], {
          cwd: context,
          env: { ...process.env, ARCHIVE: `${context}/${name}`, OUTSIDE: outside }
        })
      // A link that leads out, and then a file through it.
      make(
        "link.tar",
        `ln -s "$OUTSIDE" l && tar -cf "$ARCHIVE" l && rm l && mkdir l && echo x > l/file && tar -rf "$ARCHIVE" l/file`
      )
      make("up.tar", `echo x > file && tar -cPf "$ARCHIVE" --transform 's,^,../../,' file`)
      make("whiteout.tar", `echo x > .wh.etc && tar -cf "$ARCHIVE" .wh.etc`)
      make("hard.tar", `echo x > f && ln f g && tar -cf "$ARCHIVE" f g && tar --delete -f "$ARCHIVE" f`)
      const build = (name: string) =>
        Build.dockerfile({ context, text: `FROM local/busybox\nADD ${name} /to/\n` })
      for (const [name, reason] of [
        ["up.tar", "Escape"],
        ["whiteout.tar", "Unsupported"],
        ["hard.tar", "Corrupt"]
      ] as const) {
        const error = yield* failure("ImageError", build(name))
        assert.equal(error.reason, reason, error.message)
        assert.match(error.message, new RegExp(`:2: ${name}`))
      }
      yield* Effect.either(build("link.tar"))
      assert.deepEqual(fs.readdirSync(outside), [])
      fs.writeFileSync(`${context}/broken.tar.gz`, fs.readFileSync(`${context}/up.tar`).subarray(0, 700))
      const image = yield* build("broken.tar.gz").pipe(Effect.either)
      assert.ok(image._tag === "Left" || (yield* output(image.right, "ls /to")) !== "")
    },
    skip
  )

  effect(
    "contents of an address are copied again only if they have changed, and those of a checksum are fetched once",
    function* () {
      const context = yield* contextOf("address")
      let text = "one"
      const server = yield* serverOf((_, response) => void response.end(text))
      const events: Array<string> = []
      const build = (checksum: string) =>
        Build.dockerfile({
          context,
          text: `FROM local/busybox\nADD ${checksum} ${server.url}/file /\n`,
          onEvent: ({ _tag }) => events.push(_tag)
        })
      const plain = yield* build("")
      assert.equal(yield* output(plain, "cat /file; stat -c %a /file"), "one600\n")
      yield* build("")
      assert.deepEqual(events, ["Started", "Done", "Cached"])
      text = "two"
      assert.equal(yield* output(yield* build(""), "cat /file"), "two")
      const digest = createHash("sha256").update("two").digest("hex")
      events.length = 0
      const before = server.count()
      yield* build(`--checksum=sha256:${digest}`)
      yield* build(`--checksum=sha256:${digest}`)
      assert.deepEqual(events, ["Started", "Done", "Cached"])
      assert.equal(server.count(), before + 1)
      const error = yield* failure("BuildFailed", build(`--checksum=sha256:${"0".repeat(64)}`))
      assert.equal(error.reason, "Unavailable")
      assert.match(error.message, new RegExp(`:2: .*checksum is sha256:${digest}`))
      const typed = Build.from("local/busybox").pipe(
        Build.copy({ from: Build.remote(`${server.url}/file`), to: "/typed", mode: "a=r" }),
        Build.image()
      )
      assert.equal(yield* output(yield* typed, "cat /typed; stat -c %a /typed"), "two444\n")
    },
    skip
  )

  effect(
    "a server that redirects for ever, breaks off or refuses is an error with the line",
    function* () {
      const context = yield* contextOf("server")
      const server = yield* serverOf(({ url = "" }, response) => {
        if (url === "/loop/x") response.writeHead(302, { location: "/loop/x" }).end()
        else if (url === "/file/x") response.writeHead(302, { location: "file:///etc/passwd" }).end()
        else if (url === "/short/x") {
          response.writeHead(200, { "content-length": "100" })
          response.write("part", () => response.destroy())
        } else response.writeHead(404).end()
      })
      for (const [path, mention] of [
        ["loop", "redirects more than 5 times"],
        ["file", "no HTTP address"],
        ["absent", "status 404"],
        ["short", ""]
      ] as const) {
        const text = `FROM local/busybox\nADD ${server.url}/${path}/x /\n`
        const error = yield* failure("BuildFailed", Build.dockerfile({ context, text }))
        assert.equal(error.reason, "Unavailable", error.message)
        assert.match(error.message, new RegExp(`:2: ADD .*${mention}`))
      }
    },
    skip
  )
})
