import assert from "node:assert/strict"
import { randomBytes } from "node:crypto"
import * as http from "node:http"
import * as net from "node:net"
import { after, before, describe, test } from "node:test"
import { allowTime } from "./support/effect.ts"
import { makeImage, makeTemporaryFolder, remove, sh } from "./support/images.ts"
import { ended, program } from "./support/program.ts"
import { type RunningRegistry, startRegistry, whyNoRegistry } from "./support/registry.ts"

allowTime()

/** A proxy that sends whoever asks for any host to the one registry, with what it was asked. */
const startProxy = async (host: string) => {
  const [name, port] = host.split(":") as [string, string]
  const asked: Array<string> = []
  const server = http.createServer((incoming, outgoing) => {
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
  })
  server.on("connect", (incoming, socket) => {
    asked.push(incoming.url!)
    const onward = net.connect(Number(port), name, () => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n")
      onward.pipe(socket)
      socket.pipe(onward)
    })
    onward.on("error", () => socket.destroy())
    socket.on("error", () => onward.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const { port: own } = server.address() as net.AddressInfo
  const stop = async (): Promise<void> => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  }
  return { url: `http://127.0.0.1:${own}`, asked, stop }
}

describe("Registry proxies", { skip: whyNoRegistry }, () => {
  let folder = ""
  let registry: RunningRegistry
  before(async () => {
    folder = makeTemporaryFolder()
    registry = await startRegistry()
    makeImage(`${folder}/image`)
    const to = `docker://${registry.host}/proxied:1`
    sh("skopeo", "copy", "--dest-tls-verify=false", `oci:${folder}/image:latest`, to)
  })
  after(async () => {
    await registry?.stop()
    remove(folder)
  })

  const pull = (reference: string, env: Readonly<Record<string, string>>) => {
    const { HTTP_PROXY: _1, NO_PROXY: _2, http_proxy: _3, no_proxy: _4, ...others } = process.env
    const args = [`${folder}/berth-${randomBytes(4).toString("hex")}`, reference, "plain"]
    return ended(
      program("puller.ts", args, { stdio: ["ignore", "pipe", "pipe"], env: { ...others, ...env } })
    )
  }

  test("the environment's proxy is asked, for any host but those that it leaves out and this machine", async () => {
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
