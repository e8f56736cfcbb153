import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { makeAuthority } from "../support/certificates.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, sh, types, writeBlob } from "../support/images.ts"
import { htpasswd, whyNoRegistry } from "../support/registry.ts"
import { front, nobody, runningRegistry, temporaryFolder } from "../support/scoped.ts"
import { waitUntil } from "../support/until.ts"

const credentials = { username: "jane", password: "secret" }

const resolve = (host: string, options: Registry.ConnectOptions) =>
  Effect.flatMap(Registry.connect(host, options), (registry) => Registry.resolve(registry, "team/app", "1"))

suite("registry TLS", (effect) => {
  const skip = { skip: whyNoRegistry }
  const authority = whyNoRegistry === false ? makeAuthority() : undefined!
  const server = whyNoRegistry === false ? authority.issue("localhost") : undefined!

  effect(
    "a pull from a registry with TLS and users works with its authority",
    function* () {
      yield* nobody
      const folder = yield* temporaryFolder
      const registry = yield* runningRegistry({ htpasswd, tls: server })
      fs.mkdirSync(`${folder}/certificates`)
      fs.writeFileSync(`${folder}/certificates/ca.crt`, authority.certificate)
      makeImage(`${folder}/layout`, "one")
      const creds = ["--dest-creds", "jane:secret", "--dest-cert-dir", `${folder}/certificates`]
      sh("skopeo", "copy", ...creds, `oci:${folder}/layout:one`, `docker://${registry.host}/team/app:1`)
      const image = yield* Image.pull(`${registry.host}/team/app:1`, {
        ca: authority.certificate,
        credentials
      })
      assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
      const path = { ca: [`${folder}/certificates/ca.crt`], credentials }
      assert.equal((yield* resolve(registry.host, path)).mediaType, types.manifest)
      const wrong = { ca: authority.certificate, credentials: { username: "jane", password: "wrong" } }
      const refused = yield* failure("RegistryError", resolve(registry.host, wrong))
      assert.equal(refused.reason, "Unauthorized", refused.message)
    },
    skip
  )

  effect(
    "a certificate of an unknown authority is refused, unless verification is off",
    function* () {
      yield* nobody
      const registry = yield* runningRegistry({ tls: server })
      const other = makeAuthority().certificate
      for (const options of [{ plainHttp: false }, { ca: other }]) {
        const error = yield* failure("RegistryError", resolve(registry.host, options))
        assert.equal(error.reason, "Unreachable", error.message)
        assert.ok(error.message.includes(registry.host), error.message)
        assert.match(error.message, /as ca$/)
      }
      const error = yield* failure("RegistryError", resolve(registry.host, { tlsVerify: false }))
      assert.equal(error.reason, "NotFound", error.message)
    },
    skip
  )

  effect(
    "a certificate for another host is refused",
    function* () {
      yield* nobody
      const elsewhere = yield* front(undefined, (_request, response) => response.end(), "127.0.0.2", {
        cert: server.certificate,
        key: server.key
      })
      const error = yield* failure("RegistryError", resolve(elsewhere.host, { ca: authority.certificate }))
      assert.equal(error.reason, "Unreachable", error.message)
      assert.deepEqual(elsewhere.requests, [])
    },
    skip
  )

  effect(
    "certificates are read from the folders of docker and podman",
    function* () {
      const home = yield* nobody
      const client = authority.issue("client")
      const registry = yield* runningRegistry({ tls: { ...server, clientCa: authority.certificate } })
      const folder = `${home}/config/containers/certs.d/${registry.host}`
      fs.mkdirSync(folder, { recursive: true })
      fs.writeFileSync(`${folder}/ca.crt`, authority.certificate)
      const unknown = yield* failure("RegistryError", resolve(registry.host, {}))
      assert.equal(unknown.reason, "Unreachable", unknown.message)
      fs.writeFileSync(`${folder}/me.cert`, client.certificate)
      fs.writeFileSync(`${folder}/me.key`, client.key)
      const known = yield* failure("RegistryError", resolve(registry.host, {}))
      assert.equal(known.reason, "NotFound", known.message)
      fs.writeFileSync(`${folder}/me.key`, "no key")
      const broken = yield* failure("InvalidOption", resolve(registry.host, {}))
      assert.ok(broken.message.includes(`${folder}/me.key`), broken.message)
    },
    skip
  )

  const mayWrite = process.getuid?.() === 0
  effect(
    "certificates are read from /etc/docker/certs.d",
    function* () {
      yield* nobody
      const registry = yield* runningRegistry({ tls: server })
      const parents = ["/etc/docker", "/etc/docker/certs.d", `/etc/docker/certs.d/${registry.host}`]
      const made = parents.filter((folder) => !fs.existsSync(folder))
      yield* Effect.acquireRelease(
        Effect.sync(() => made.forEach((folder) => fs.mkdirSync(folder))),
        () =>
          Effect.sync(() => {
            fs.rmSync(`${parents[2]}/ca.crt`)
            made.reverse().forEach((folder) => fs.rmdirSync(folder))
          })
      )
      fs.writeFileSync(`${parents[2]}/ca.crt`, authority.certificate)
      const error = yield* failure("RegistryError", resolve(registry.host, {}))
      assert.equal(error.reason, "NotFound", error.message)
    },
    { skip: whyNoRegistry || (mayWrite ? false : "needs root: it is the system's folder") }
  )

  effect(
    "a client certificate is shown to the registry, and not to a host that it redirects to",
    function* () {
      yield* nobody
      const folder = yield* temporaryFolder
      const client = authority.issue("client")
      const seen: Array<string> = []
      const settings = { cert: server.certificate, key: server.key }
      const asks = {
        ...settings,
        ca: authority.certificate,
        requestCert: true,
        rejectUnauthorized: false
      }
      const note = (name: string, request: { readonly socket: unknown }) => {
        const { authorized } = request.socket as { readonly authorized: boolean }
        seen.push(`${name} ${authorized}`)
      }
      const other = yield* front(
        undefined,
        (request, response) => {
          note("other", request)
          response.end("hello")
        },
        "127.0.0.1",
        asks
      )
      const registry = yield* front(
        undefined,
        (request, response) => {
          note("registry", request)
          response.writeHead(307, { location: `https://${other.host}/elsewhere` }).end()
        },
        "127.0.0.1",
        asks
      )
      const blob = writeBlob(`${folder}/hello`, types.gzip, "hello")
      const connected = yield* Registry.connect(registry.host, {
        ca: authority.certificate,
        clientCertificate: { certificate: client.certificate, key: Redacted.make(client.key) }
      })
      const chunks = yield* Stream.runCollect(Registry.blob(connected, "team/app", blob))
      assert.equal(Buffer.concat(Chunk.toReadonlyArray(chunks)).toString(), "hello")
      assert.deepEqual(seen, ["registry true", "other false"])
    },
    skip
  )

  effect(
    "a blob is resumed over TLS, and a reader that stops closes the connection",
    function* () {
      yield* nobody
      const folder = yield* temporaryFolder
      const content = Buffer.alloc(4_000_000, "abcdefghij\n")
      const blob = writeBlob(`${folder}/big`, types.tar, content)
      let closed = 0
      const registry = yield* front(
        undefined,
        (request, response) => {
          const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0)
          response.writeHead(start === 0 ? 200 : 206, {
            "content-length": String(content.length - start),
            "content-range": `bytes ${start}-${content.length - 1}/${content.length}`
          })
          const end = start + 1_500_000
          response.on("close", () => closed++)
          response.write(content.subarray(start, end))
          if (end >= content.length) response.end()
          // Deno's server does not tell when the bytes have left.
          else setTimeout(() => response.socket?.destroy(), 100)
        },
        "127.0.0.1",
        { cert: server.certificate, key: server.key }
      )
      const connected = yield* Registry.connect(registry.host, { ca: authority.certificate })
      const chunks = yield* Stream.runCollect(Registry.blob(connected, "team/app", blob))
      assert.ok(content.equals(Buffer.concat(Chunk.toReadonlyArray(chunks))))
      assert.equal(registry.requests.length, 3)
      const before = closed
      const first = yield* Stream.runHead(Registry.blob(connected, "team/app", blob))
      assert.equal(first._tag, "Some")
      yield* waitUntil("the end of the connection", () => closed > before)
      assert.equal(closed, before + 1)
    },
    skip
  )

  effect(
    "a blob is uploaded over TLS",
    function* () {
      yield* nobody
      const folder = yield* temporaryFolder
      const registry = yield* runningRegistry({ htpasswd, tls: server })
      const content = Buffer.alloc(3_000_000, "abcdefghij\n")
      const blob = writeBlob(`${folder}/big`, types.tar, content)
      const connected = yield* Registry.connect(registry.host, { ca: authority.certificate, credentials })
      const pieces = Stream.fromIterable([content.subarray(0, 1_000_000), content.subarray(1_000_000)])
      yield* Registry.putBlob(connected, "team/app", blob, pieces)
      const chunks = yield* Stream.runCollect(Registry.blob(connected, "team/app", blob))
      assert.ok(content.equals(Buffer.concat(Chunk.toReadonlyArray(chunks))))
    },
    skip
  )

  effect(
    "unreadable certificates fail with InvalidOption, and no key is shown",
    function* () {
      const home = yield* nobody
      const { certificate, key } = server
      const garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"
      const cases: ReadonlyArray<readonly [Registry.ConnectOptions, RegExp]> = [
        [{ ca: `${home}/absent.pem` }, /^ca: ".*absent\.pem" \(there is no such file\)/],
        [{ ca: home }, /^ca: .*not a regular file/],
        [{ ca: garbage }, /^ca: the given text/],
        [{ ca: [certificate, key] }, /^ca: the given text/],
        [{ clientCertificate: { certificate: key, key } }, /^clientCertificate\.certificate: /],
        [{ clientCertificate: { certificate, key: certificate } }, /^clientCertificate\.key: /],
        [{ clientCertificate: { certificate, key: `${home}/absent.key` } }, /absent\.key/]
      ]
      for (const [options, why] of cases) {
        const error = yield* failure("InvalidOption", Registry.connect("localhost:1", options))
        assert.match(error.message, why)
        assert.ok(!error.message.includes("MIG"), error.message)
      }
    },
    skip
  )
})
