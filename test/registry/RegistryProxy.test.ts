import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as http from "node:http"
import * as https from "node:https"
import * as net from "node:net"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { makeAuthority } from "../support/certificates.ts"
import { allowTime, failure, suite } from "../support/effect.ts"
import { makeImage, makeTemporaryFolder, remove, sh } from "../support/images.ts"
import { ended, program } from "../support/program.ts"
import { htpasswd, type RunningRegistry, startRegistry, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"
import { environment, nobody, runningRegistry, temporaryFolder } from "../support/scoped.ts"

allowTime()

/** A proxy that connects every request to the one registry, and records the hosts of the requests. */
const startProxy = async (
  host: string,
  { refusal, tls }: { readonly refusal?: string; readonly tls?: https.ServerOptions } = {}
) => {
  const [name, port] = host.split(":") as [string, string]
  const asked: Array<string> = []
  const authorizations: Array<string> = []
  const onRequest = (incoming: http.IncomingMessage, outgoing: http.ServerResponse) => {
    const url = new URL(incoming.url!)
    asked.push(url.host)
    const { headers, method } = incoming
    const request = http.request({ host: name, port, method, headers, path: url.pathname + url.search })
    request.on("response", (response) => {
      outgoing.writeHead(response.statusCode!, response.headers)
      response.pipe(outgoing)
    })
    request.on("error", () => outgoing.destroy())
    incoming.pipe(request)
  }
  const server = tls === undefined ? http.createServer(onRequest) : https.createServer(tls, onRequest)
  const sockets = new Set<{ destroy: () => void }>()
  server.on("connect", (incoming, socket) => {
    asked.push(incoming.url!)
    authorizations.push(incoming.headers["proxy-authorization"] ?? "")
    sockets.add(socket)
    if (refusal !== undefined) {
      socket.end(refusal)
      return
    }
    const onward = net.connect(Number(port), name, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n")
      onward.pipe(socket)
      socket.pipe(onward)
    })
    sockets.add(onward)
    for (const event of ["error", "close"]) {
      onward.on(event, () => socket.destroy())
      socket.on(event, () => onward.destroy())
    }
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port: own } = server.address() as net.AddressInfo
  const stop = async (): Promise<void> => {
    server.closeAllConnections()
    for (const socket of sockets) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  }
  const address = `127.0.0.1:${own}`
  return { address, url: `http${tls === undefined ? "" : "s"}://${address}`, asked, authorizations, stop }
}

describe("Registry proxies", { skip: whyNoRegistry }, () => {
  let folder = ""
  let registry: RunningRegistry
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/image`)
    push(`oci:${folder}/image:latest`, `${registry.host}/proxied:1`)
  })
  after(async () => {
    await registry?.stop()
    remove(folder)
  })

  const pull = (reference: string, env: Readonly<Record<string, string>>) => {
    const { HTTP_PROXY: _1, NO_PROXY: _2, http_proxy: _3, no_proxy: _4, ...others } = process.env
    const args = [`${folder}/berth-${randomBytes(4).toString("hex")}`, reference, '{"plainHttp":true}']
    return ended(
      program("puller.ts", args, { stdio: ["ignore", "pipe", "pipe"], env: { ...others, ...env } })
    )
  }

  test("the environment's proxy is used for every host except those of NO_PROXY and this machine", async () => {
    const proxy = await startProxy(registry.host)
    try {
      const through = await pull("registry.invalid:5000/proxied:1", { HTTP_PROXY: proxy.url })
      assert.deepEqual({ ...through }, { code: 0, signal: null, stdout: "pulled\n", stderr: "" })
      assert.ok(proxy.asked.length > 0)
      assert.ok(proxy.asked.every((host) => host === "registry.invalid:5000"))
      const before = proxy.asked.length
      const out = await pull("registry.invalid:5000/proxied:1", {
        HTTP_PROXY: proxy.url,
        NO_PROXY: "registry.invalid"
      })
      assert.match(out.stderr, /registry\.invalid:5000 cannot be reached/)
      if (!("Deno" in globalThis || "Bun" in globalThis)) {
        const here = await pull(`${registry.host}/proxied:1`, { HTTP_PROXY: proxy.url })
        assert.equal(here.stdout, "pulled\n", here.stderr)
      }
      assert.equal(proxy.asked.length, before)
    } finally {
      await proxy.stop()
    }
  })
})

suite("Registry proxies and certificates", (effect) => {
  const skip = { skip: whyNoRegistry }
  const authority = whyNoRegistry === false ? makeAuthority() : undefined!
  const server = whyNoRegistry === false ? authority.issue("registry.invalid") : undefined!
  const client = whyNoRegistry === false ? authority.issue("client") : undefined!
  const credentials = { username: "jane", password: "secret" }

  const proxy = (...options: Parameters<typeof startProxy>) =>
    Effect.acquireRelease(
      Effect.promise(() => startProxy(...options)),
      (started) => Effect.promise(started.stop)
    )

  const behind = (HTTPS_PROXY: string, NO_PROXY?: string) =>
    environment({ HTTPS_PROXY, NO_PROXY, https_proxy: undefined, no_proxy: undefined, ALL_PROXY: undefined })

  const resolve = (options: Registry.ConnectOptions) =>
    Effect.flatMap(Registry.connect("registry.invalid:5000", options), (registry) =>
      Registry.resolve(registry, "team/app", "1")
    )

  effect(
    "a pull by TLS through a proxy works with a private authority, a client certificate and a user",
    function* () {
      yield* nobody
      const folder = yield* temporaryFolder
      const registry = yield* runningRegistry({
        htpasswd,
        tls: { ...server, clientCa: authority.certificate }
      })
      makeImage(`${folder}/layout`, "one")
      fs.mkdirSync(`${folder}/certificates`)
      fs.writeFileSync(`${folder}/certificates/ca.crt`, authority.certificate)
      fs.writeFileSync(`${folder}/certificates/me.cert`, client.certificate)
      fs.writeFileSync(`${folder}/certificates/me.key`, client.key)
      const creds = ["--dest-creds", "jane:secret", "--dest-cert-dir", `${folder}/certificates`]
      sh("skopeo", "copy", ...creds, `oci:${folder}/layout:one`, `docker://${registry.host}/team/app:1`)
      const tunnel = yield* proxy(registry.host)
      yield* behind(tunnel.url.replace("//", "//ann:p%40ss@"))
      const options = { ca: authority.certificate, clientCertificate: client, credentials }
      const image = yield* Image.pull("registry.invalid:5000/team/app:1", options)
      assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
      assert.ok(tunnel.asked.length > 0)
      assert.ok(tunnel.asked.every((host) => host === "registry.invalid:5000"))
      const basic = `Basic ${Buffer.from("ann:p@ss").toString("base64")}`
      assert.ok(tunnel.authorizations.every((value) => value === basic))
      // The proxy does not help a user whom the registry refuses.
      const nameless = yield* failure("RegistryError", resolve({ ca: authority.certificate, credentials }))
      assert.equal(nameless.reason, "Unreachable", nameless.message)
      const asked = tunnel.asked.length
      yield* behind(tunnel.url, "registry.invalid")
      const direct = yield* failure("RegistryError", resolve(options))
      assert.equal(direct.reason, "Unreachable", direct.message)
      assert.equal(tunnel.asked.length, asked)
    },
    skip
  )

  effect(
    "a proxy with TLS is used if its authority is trusted, and refused otherwise",
    function* () {
      yield* nobody
      const registry = yield* runningRegistry({ tls: server })
      const proxyTls = { cert: server.certificate, key: server.key }
      const tunnel = yield* proxy(registry.host, { tls: proxyTls })
      yield* behind(tunnel.url)
      const known = yield* failure("RegistryError", resolve({ ca: authority.certificate }))
      assert.equal(known.reason, "NotFound", known.message)
      assert.deepEqual([...new Set(tunnel.asked)], ["registry.invalid:5000"])
      const asked = tunnel.asked.length
      const unknown = yield* failure("RegistryError", resolve({ tlsVerify: false }))
      assert.equal(unknown.reason, "Unreachable", unknown.message)
      assert.equal(tunnel.asked.length, asked)
    },
    skip
  )

  effect(
    "an answer of a proxy in place of a tunnel fails as the proxy's refusal, never as the registry's answer",
    function* () {
      yield* nobody
      const thief = yield* proxy("127.0.0.1:1")
      for (const [status, hint] of [
        [407, "its URL"],
        [401, "status 401"],
        [302, "status 302"]
      ] as const) {
        const lines = [
          `HTTP/1.1 ${status} No`,
          `WWW-Authenticate: Bearer realm="${thief.url}/token"`,
          `Location: ${thief.url}`,
          "Content-Length: 0"
        ]
        const refusing = yield* proxy("127.0.0.1:1", { refusal: `${lines.join("\r\n")}\r\n\r\n` })
        yield* behind(refusing.url.replace("//", "//ann:hidden@"))
        const refused = yield* failure("RegistryError", resolve({ ca: authority.certificate, credentials }))
        assert.equal(refused.reason, "Unreachable", refused.message)
        assert.ok(refused.message.includes(`the proxy ${refusing.address} `), refused.message)
        assert.ok(refused.message.includes(hint) && !refused.message.includes("hidden"), refused.message)
        assert.equal(refusing.asked.length, 1)
      }
      assert.deepEqual(thief.asked, [])
    },
    skip
  )

  const isNode = !("Deno" in globalThis || "Bun" in globalThis)
  effect(
    "an answer of a proxy without certificate options fails as the proxy's refusal",
    function* () {
      const folder = yield* temporaryFolder
      const registry = yield* runningRegistry({ tls: server })
      makeImage(`${folder}/layout`, "one")
      push(`oci:${folder}/layout:one`, `${registry.host}/team/app:1`)
      fs.writeFileSync(`${folder}/ca.crt`, authority.certificate)
      const tunnel = yield* proxy(registry.host)
      const refusing = yield* proxy("127.0.0.1:1", {
        refusal: "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"
      })
      const pull = (url: string) => {
        const { NO_PROXY: _1, no_proxy: _2, https_proxy: _3, ...others } = process.env
        const trusted = { NODE_EXTRA_CA_CERTS: `${folder}/ca.crt`, DENO_CERT: `${folder}/ca.crt` }
        const env = { ...others, ...trusted, HTTPS_PROXY: url, DENO_NO_UPDATE_CHECK: "1" }
        const args = [`${folder}/berth`, "registry.invalid:5000/team/app:1", "{}"]
        return Effect.promise(() =>
          ended(program("puller.ts", args, { stdio: ["ignore", "pipe", "pipe"], env }))
        )
      }
      const refused = yield* pull(refusing.url)
      assert.match(refused.stderr, /registry\.invalid:5000 cannot be reached/)
      if (isNode) assert.match(refused.stderr, new RegExp(`the proxy ${refusing.address} refuses a tunnel`))
      const pulled = yield* pull(tunnel.url)
      assert.deepEqual({ ...pulled }, { code: 0, signal: null, stdout: "pulled\n", stderr: "" })
      assert.deepEqual([...new Set(tunnel.asked)], ["registry.invalid:5000"])
    },
    skip
  )
})
