import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import { after, before, describe, test } from "node:test"
import { network, open, type Session } from "../../lib/promise.ts"
import { compile } from "../support/attack.ts"
import { allowTime, makeTemporaryFolder, remove, whyNoContainers } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

allowTime()

describe("networks of berth/promise", { skip: whyNoContainers || whyNoBusybox }, () => {
  let folder = ""
  let berth: Session
  before(async () => {
    if (whyNoContainers || whyNoBusybox) return
    folder = makeTemporaryFolder()
    compile(`${makeRoot(`${folder}/root`)}/bin/echo`, "echo.c")
    fs.mkdirSync(`${folder}/root/www`)
    fs.writeFileSync(`${folder}/root/www/file`, "text\n")
    berth = await open({ folder: `${folder}/berth` })
  })
  after(async () => {
    await berth?.close()
    if (folder !== "") remove(folder)
  })

  test("containers on a network reach each other by name, and the program reaches each of them", async () => {
    await using own = await berth.network({ name: "lab" })
    await using server = await berth.start(`${folder}/root`, {
      network: own,
      name: "server",
      command: ["sh", "-c", "/bin/echo any4:7 any6:7 & exec busybox httpd -f -p 80 -h /www"]
    })
    await server.waitFor.port(7)
    await server.waitFor.port(80)
    await using client = await berth.start(`${folder}/root`, { network: own, command: ["sleep", "100"] })
    assert.equal(await client.$`wget -q -O - http://server/file`.text(), "text\n")

    const response = await server.fetch("http://server/file")
    assert.equal(await response.text(), "text\n")
    await assert.rejects(server.fetch("http://server:81/"), { _tag: "NetworkError", reason: "Refused" })

    const socket = server.netSocket(7)
    socket.end("hello")
    let text = ""
    for await (const bytes of socket) text += bytes
    assert.equal(text, "hellobye")

    const { hostname, port } = await server.publish(80)
    const published = await fetch(`http://${hostname}:${port}/file`)
    assert.equal(await published.text(), "text\n")
    await server.close()
    await assert.rejects(fetch(`http://${hostname}:${port}/file`))
  })

  test("a container fetches from a server of this program by the name that exposes it", async () => {
    const mock = http.createServer((_, response) => response.end("mocked\n"))
    await new Promise<void>((resolve) => mock.listen(0, "127.0.0.1", resolve))
    try {
      await using own = await berth.network()
      await using client = await berth.start(`${folder}/root`, { network: own, command: ["sleep", "100"] })
      const { port } = mock.address() as AddressInfo
      const at = await own.expose({ host: port, name: "mock.test", port: 80 })
      assert.equal(at.port, 80)
      assert.equal(await client.$`wget -q -O - http://mock.test/`.text(), "mocked\n")
      await assert.rejects(own.expose({ host: port, name: "mock.test" }), { _tag: "InvalidOption" })
      const toxic = await at.toxic({ reset: { after: 0 } })
      await assert.rejects(client.$`wget -q -O - http://mock.test/`.text(), { _tag: "NonZeroExit" })
      await toxic.close()
      assert.equal(await client.$`wget -q -O - http://mock.test/`.text(), "mocked\n")
      await at.close()
      await assert.rejects(client.$`wget -q -O - http://mock.test/`.text(), { _tag: "NonZeroExit" })
      await own.expose({ host: port, name: "mock.test" })
    } finally {
      mock.closeAllConnections()
      mock.close()
    }
  })

  test("published ports are found, given faults and closed, and a pod's are found as well", async () => {
    const command = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
    await using server = await berth.start(`${folder}/root`, { command, ports: [80] })
    await server.waitFor.port(80)
    const found = await server.published(80)
    const made = await server.publish({ container: 80 })
    const path = await server.publish({ container: 80, path: `${folder}/published` })
    const get = async ({ hostname, port }: { hostname: string; port: number }) =>
      (await fetch(`http://${hostname}:${port}/file`)).text()
    // The proxy looks again and again whether the server listens.
    const getUntil = async (at: { hostname: string; port: number }): Promise<string> => {
      for (const end = Date.now() + 15_000; ; ) {
        try {
          return await get(at)
        } catch (error) {
          if (Date.now() > end) throw error
        }
      }
    }
    for (const port of [found, made]) {
      assert.equal(await getUntil(port), "text\n")
      const toxic = await port.toxic({ reset: { after: 0 } })
      await assert.rejects(get(port))
      await toxic.close()
      assert.equal(await getUntil(port), "text\n")
    }
    await made.close()
    await assert.rejects(get(made))
    assert.equal(await getUntil(found), "text\n")
    await path.close()
    assert.equal(fs.existsSync(path.path), false)
    await assert.rejects(server.published(81), { _tag: "InvalidOption" })
    await assert.rejects(found.toxic({ rate: 0 }), { _tag: "InvalidOption" })

    await using web = await berth.pod({ name: "web", ports: [80] })
    await using inPod = await berth.start(`${folder}/root`, { network: web, command })
    await inPod.waitFor.port(80)
    assert.equal(await getUntil(await web.published(80)), "text\n")
    await assert.rejects(web.published(81), /of pod web: 80\/tcp/)
  })

  test("the program connects to a server in a container, and is a server in one", async () => {
    await using box = await berth.start(`${folder}/root`, { command: ["/bin/echo", "v4:7"] })
    await box.waitFor.port(7)
    const textOf = async (parts: AsyncIterable<Uint8Array>): Promise<string> => {
      let text = ""
      for await (const part of parts) text += new TextDecoder().decode(part)
      return text
    }
    {
      await using connection = await box.connect(7)
      const received = textOf(connection.stream)
      await connection.send(["hel", "lo"])
      assert.equal(await received, "hellobye")
    }
    await assert.rejects(box.connect(8), { _tag: "NetworkError", reason: "Refused" })

    const listening = await box.listen(3000, async ({ send, stream }) => send(`got ${await textOf(stream)}`))
    assert.deepEqual([listening.address, listening.port], ["127.0.0.1:3000", 3000])
    const ask = () => box.$`sh -c ${"echo hello | timeout 15 nc 127.0.0.1 3000"}`.text()
    assert.equal(await ask(), "got hello\n")
    await assert.rejects(
      box.listen(3000, () => {}),
      { _tag: "NetworkError", reason: "AddressInUse" }
    )
    await listening.close()
    await assert.rejects(ask(), { _tag: "NonZeroExit" })
    // A connection that is there when the listening ends is over, for both.
    const late = await box.listen(3000, async ({ stream }) => textOf(stream))
    const socket = box.netSocket(3000)
    await new Promise((resolve) => socket.once("connect", resolve))
    socket.on("error", () => {}).resume()
    const closed = new Promise((resolve) => socket.once("close", resolve))
    await late.close()
    socket.end()
    await closed
  })

  test("a file of a container goes out and in as a tar archive", async () => {
    await using box = await berth.start(`${folder}/root`, { command: ["sleep", "100"] })
    await box.tarIn("/tmp", box.tarOut("/www"))
    assert.equal(await box.$`cat /tmp/www/file`.text(), "text\n")
    await assert.rejects(box.tarIn("/tmp", "no archive".repeat(100)), { _tag: "InvalidData" })
  })

  test("a connection that outbound refuses is reset and told", async () => {
    await using own = await berth.network({ outbound: { allow: ["10.0.0.0/8"] } })
    await using client = await berth.start(`${folder}/root`, { network: own, command: ["sleep", "100"] })
    await assert.rejects(async () => client.$`wget -q -O - http://169.254.169.254/latest/`, {
      _tag: "NonZeroExit"
    })
    for await (const refusal of own.refusals()) {
      assert.deepEqual(refusal, {
        reason: "NotAllowed",
        container: client.id,
        address: "169.254.169.254",
        port: 80
      })
      break
    }
    await (await own.toxic({ latency: "1 second" })).close()
    await assert.rejects(berth.network({ outbound: { allow: ["*"] } }), { _tag: "InvalidOption" })
    await using closed = await berth.network()
    await assert.rejects(closed.toxic({ latency: 1 }), { _tag: "InvalidOption" })
  })

  test("a running container joins a network and leaves it, and containers of a pod share localhost", async () => {
    await using own = await berth.network()
    await using web = await berth.pod({ network: own, name: "web" })
    await using server = await berth.start(`${folder}/root`, {
      network: web,
      command: ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
    })
    await server.waitFor.port(80)
    await using beside = await berth.start(`${folder}/root`, { network: web, command: ["sleep", "100"] })
    assert.equal(await beside.$`wget -q -O - http://localhost/file`.text(), "text\n")

    await using late = await berth.start(`${folder}/root`, { command: ["sleep", "100"] })
    const joined = await own.join(late, { aliases: ["late"] })
    assert.equal(await late.$`wget -q -O - http://web/file`.text(), "text\n")
    assert.match(await beside.$`nslookup late`.text(), /Address: /)
    await joined.close()
    await assert.rejects(late.$`wget -q -O - http://web/file`.text(), { _tag: "NonZeroExit" })
    await joined.close()
    await own.join(late)
    await own.leave(late)
    await assert.rejects(own.leave(late), { _tag: "InvalidOption" })
    await assert.rejects(own.join(beside), { _tag: "InvalidOption" })
    await assert.rejects(own.join({} as never), { _tag: "InvalidOption" })
  })

  test("a network of the default session holds no program open once it is closed", async () => {
    const own = await network()
    assert.match(String(own), /^Network\(net-/)
    await own.close()
    await own.close()
  })

  test("a partition, a rate and a capture last until they are closed", async () => {
    await using own = await berth.network()
    const options = { network: own, command: ["/bin/echo", "any4:7", "any6:7"] }
    await using server = await berth.start(`${folder}/root`, { ...options, name: "server" })
    await using client = await berth.start(`${folder}/root`, options)
    await server.waitFor.port(7)
    const ask = (seconds: number) =>
      client.$`sh -c ${`echo hello | timeout ${seconds} nc server 7 || true`}`.text()
    const partition = await own.partition(client, [server])
    assert.equal(await ask(1), "")
    await partition.close()
    await using _ = await own.rate(server, { up: "10mbit" })
    const file = await own.captureToFile(server, `${folder}/server.pcap`)
    const { close, statistics, stream } = await own.capture(client)
    assert.equal(await ask(15), "hello\nbye")
    await file.close()
    await close()
    const parts: Array<Uint8Array> = []
    for await (const bytes of stream) parts.push(bytes)
    for (const bytes of [Buffer.concat(parts), fs.readFileSync(`${folder}/server.pcap`)])
      assert.ok(bytes.includes("hello\n"))
    assert.ok((await statistics()).packets > 0)
    await assert.rejects(own.rate(client, {}), { _tag: "InvalidOption" })
    await assert.rejects(own.partition(client, {} as never), { _tag: "InvalidOption" })
  })
})
