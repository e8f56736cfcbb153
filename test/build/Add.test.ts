/** ADD: what archives and servers of an attacker can do. */
import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as http from "node:http"
import * as https from "node:https"
import type { AddressInfo } from "node:net"
import * as Effect from "effect/Effect"
import { Berth, Build } from "../../lib/index.ts"
import { fetched, Unavailable } from "../../lib/internal/build/remote.ts"
import { importBusybox, output } from "../support/busybox.ts"
import { makeAuthority } from "../support/certificates.ts"
import { failure, suite } from "../support/effect.ts"
import { ended, program } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { waitUntil } from "../support/until.ts"

const skip = { skip: whyNoBusybox }

/** An empty context; the image `local/busybox` is in the store. */
const contextOf = (name: string) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    yield* importBusybox
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
    "a server that redirects for ever, breaks off, refuses or has too much is an error with the line",
    function* () {
      const context = yield* contextOf("server")
      const server = yield* serverOf(({ url = "" }, response) => {
        if (url === "/loop/x") response.writeHead(302, { location: "/loop/x" }).end()
        else if (url === "/terabyte/x")
          response.writeHead(200, { "content-length": String(2 ** 40) }).write("x")
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
        ["terabyte", "larger than 17179869184 bytes"],
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

  effect(
    "a redirect to an address without TLS is refused, and a server without a known certificate",
    function* () {
      const authority = makeAuthority()
      const { certificate, key } = authority.issue("server")
      const plain = yield* serverOf((_, response) => void response.end("without TLS"))
      const secure = yield* Effect.acquireRelease(
        Effect.promise(
          () =>
            new Promise<https.Server>((resolve) => {
              const made = https.createServer({ cert: certificate, key }, ({ url = "" }, response) => {
                response.setHeader("connection", "close")
                if (url === "/file") response.end("with TLS")
                else if (url === "/away/file")
                  response.writeHead(302, { location: `${plain.url}/file` }).end()
                else response.writeHead(302, { location: url.slice("/again".length) || "/file" }).end()
              })
              made.listen(0, "127.0.0.1", () => resolve(made))
            })
        ),
        (made) => Effect.promise(() => new Promise((resolve) => made.close(resolve)))
      )
      const tls = `https://127.0.0.1:${(secure.address() as AddressInfo).port}`
      const redirecting = yield* serverOf(
        (_, response) => void response.writeHead(301, { location: `${tls}/file` }).end()
      )
      fs.writeFileSync(`${folder()}/ca.crt`, authority.certificate)
      const add = (trusted: Readonly<Record<string, string>>, ...urls: ReadonlyArray<string>) =>
        Effect.promise(async () => {
          const env = { ...process.env, ...trusted, DENO_NO_UPDATE_CHECK: "1" }
          const args = [`${folder()}/adding`, ...urls]
          const { code, stderr, stdout } = await ended(
            program("adder.ts", args, { stdio: ["ignore", "pipe", "pipe"], env })
          )
          assert.equal(code, 0, stderr)
          return JSON.parse(stdout) as ReadonlyArray<string>
        })
      const known = { NODE_EXTRA_CA_CERTS: `${folder()}/ca.crt`, DENO_CERT: `${folder()}/ca.crt` }
      const urls = [
        `${tls}/again/file`,
        `${redirecting.url}/file`,
        `${tls}/away/file`,
        `${tls}/again/away/file`
      ]
      const [same, more, ...less] = yield* add(known, ...urls)
      assert.deepEqual([same, more], ["with TLS", "with TLS"])
      assert.equal(less.length, 2)
      for (const message of less) assert.match(message, /redirects from https to http$/)
      assert.equal(plain.count(), 0)
      const [unknown] = yield* add({}, `${tls}/file`)
      assert.match(unknown!, /^COPY https:.*certificate/i)
    },
    skip
  )

  effect(
    "a file beyond the limit is refused by what its server says, or when so much has come",
    function* () {
      const berth = yield* Berth.Berth
      let sent = 0
      const closed = new Set<string>()
      const server = yield* serverOf(({ url = "" }, response) => {
        response.on("close", () => closed.add(url))
        if (url === "/said") response.writeHead(200, { "content-length": String(2 ** 40) })
        const more = (): void => {
          while (!response.destroyed && response.write(Buffer.alloc(65_536))) sent += 65_536
          if (!response.destroyed) response.once("drain", more)
        }
        if (url === "/said") response.write("x")
        else if (url === "/exact") response.end(Buffer.alloc(1_000_000))
        else more()
      })
      const before = fs.readdirSync(berth.supervisor.folder)
      const get = (path: string) => {
        const remote = { _tag: "Remote", url: `${server.url}${path}`, checksum: undefined } as const
        return Effect.scoped(
          Effect.map(fetched(berth, remote, "file", 1_000_000), (at) => fs.statSync(`${at}/file`).size)
        )
      }
      assert.equal(yield* get("/exact"), 1_000_000)
      for (const path of ["/said", "/endless"]) {
        const error = yield* Effect.flip(get(path))
        assert.ok(error instanceof Unavailable)
        assert.equal(error.message, "it is larger than 1000000 bytes, the limit for one file")
      }
      assert.deepEqual(fs.readdirSync(berth.supervisor.folder), before)
      yield* waitUntil("the end of all connections", () => closed.size === 3)
      // What the kernel and the runtime hold back is more than what was read.
      assert.ok(sent < 100_000_000, `${sent} bytes`)
    },
    skip
  )
})
