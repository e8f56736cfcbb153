import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image, Network, WaitFor } from "../../lib/index.ts"
import { rulesOf } from "../../lib/internal/network/outboundRules.ts"
import { echoImage } from "../support/attack.ts"
import { failure, suite, whyNotRoot } from "../support/effect.ts"
import { readInside } from "../support/networks.ts"
import { commandOf, ended } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["containers", {}],
  ...(whyNotRoot ? [] : [['containers with userns: "auto"', { userns: "auto" }] as const])
]

const skip = { skip: whyNoBusybox }

/** The addresses of this machine that other machines may know; none is in a machine without a network. */
const own = Object.values(os.networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .filter(({ address, internal }) => !internal && !address.startsWith("fe80:"))
  .map(({ address }) => address)

const whyDeno =
  "Deno" in globalThis ? "a server of Deno sends nothing to a client that has ended its half" : false

const idle = (network: Network.Network, options: Container.StartOptions = {}) =>
  Effect.flatMap(echoImage, (image) =>
    Container.start(image, { ...options, network, command: ["sleep", "1000"] })
  )

/** A server on all addresses of this machine. */
const serve = Effect.acquireRelease(
  Effect.promise(
    () =>
      new Promise<net.Server>((resolve, reject) => {
        const server = net.createServer({ allowHalfOpen: true }, (socket) =>
          socket.on("error", () => {}).end("served\n")
        )
        server.once("error", reject).listen(0, () => resolve(server))
      })
  ),
  (server) => Effect.promise(() => new Promise((resolve) => server.close(resolve)))
).pipe(Effect.map((server) => (server.address() as net.AddressInfo).port))

const ask = (box: Container.Container, host: string, port: number) =>
  Effect.map(
    Container.exec(box, ["sh", "-c", `timeout 15 nc -w 10 ${host} ${port} </dev/null`]),
    ({ stdout }) => stdout
  )

/** A port that no test but the end of `told` uses. */
const LAST_PORT = 9

/** The refused connections so far. */
const told = (network: Network.Network, box: Container.Container) =>
  Effect.gen(function* () {
    yield* ask(box, "169.254.169.254", LAST_PORT)
    const all = yield* Stream.runCollect(
      Stream.takeUntil(Network.refusals(network), ({ port }) => port === LAST_PORT)
    )
    return [...all].slice(0, -1)
  })

/** The ports on which the network itself listens. */
const listening = (network: Network.Network): ReadonlyArray<number> => {
  const lines = readInside(network, "tcp")?.split("\n") ?? []
  return lines
    .map((line) => / [0-9A-F]{8}:([0-9A-F]{4}) \S+ 0A /.exec(line)?.[1])
    .flatMap((port) => (port === undefined ? [] : [Number.parseInt(port, 16)]))
}

const whyNoOutside = whyNotRoot || whyNoBusybox || (fs.existsSync("/sbin/ip") ? false : "needs iproute2")

const whyNoAddress =
  whyNoBusybox || (own.some((one) => net.isIPv4(one)) ? false : "this machine has no address")

/** A server on all addresses of this machine whose connections stay open. */
const serveForever = Effect.acquireRelease(
  Effect.promise(
    () =>
      new Promise<{ server: net.Server; sockets: Set<net.Socket> }>((resolve, reject) => {
        const sockets = new Set<net.Socket>()
        const server = net.createServer((socket) => {
          sockets.add(socket.on("error", () => {}))
          socket.write("served\n")
        })
        server.once("error", reject).listen({ port: 0, backlog: 4096 }, () => resolve({ server, sockets }))
      })
  ),
  ({ server, sockets }) =>
    Effect.promise(() => {
      for (const socket of sockets) socket.destroy()
      return new Promise((resolve) => server.close(resolve))
    })
).pipe(Effect.map(({ server }) => (server.address() as net.AddressInfo).port))

/** A program that makes connections, and says how many of them have been answered and how many broken. */
const connecting = (address: string, port: number): string => `
  let connected = 0, reset = 0
  const say = () => connected + reset === 1034 && console.log(connected + " connected, " + reset + " reset")
  const next = (left) => {
    if (left === 0) return
    const socket = require("node:net").connect(${port}, "${address}")
    let settled = false
    const settle = (count) => { if (settled) return; settled = true; count(); say(); next(left - 1) }
    socket.once("data", () => settle(() => connected++))
    socket.once("error", () => settle(() => reset++))
  }
  next(1034)`

const none = "no such name"

suite("outbound", (effect, folder) => {
  for (const mode of ["host", "auto"])
    effect(
      `of containers with the ids of ${mode}: what the list allows is reached by address and by name, and all else is reset and told`,
      function* () {
        const place = fs.mkdtempSync(`${folder()}/outbound-`)
        const { args, command } = commandOf("outbound.ts", [place, mode])
        const child = spawn("unshare", ["--net", command, ...args], { stdio: ["ignore", "pipe", "inherit"] })
        const { code, stdout } = yield* Effect.promise(() => ended(child))
        assert.equal(code, 0, stdout)
        assert.deepEqual(JSON.parse(stdout), {
          everything: {
            reached: {
              "10.99.0.2 80": "10.99.0.2 80, hello",
              "fd99::2 81": "fd99::2 81, hello",
              "mirror.test 80": "fd99::2 80, hello",
              "alias.test 81": "10.99.0.4 81, hello",
              "no.test 80": none
            },
            refused: {
              "10.99.0.1 7777": "",
              "fd99::1 7777": "",
              "10.99.0.9 7777": "",
              "169.254.169.254 80": "",
              "meta.test 80": "",
              "self.test 7777": "",
              "loop.test 7777": "",
              "any.test 7777": "",
              "240.0.0.1 80": ""
            },
            told: [
              "10.99.0.1 7777",
              "fd99::1 7777",
              "10.99.0.9 7777",
              "169.254.169.254 80",
              "169.254.169.254 80",
              "10.99.0.1 7777",
              "240.0.0.1 80"
            ]
          },
          listed: {
            reached: {
              "10.99.0.3 80": "",
              "mirror.test 80": "fd99::2 80, hello",
              "mirror.test 81": "",
              "sub.pool.test 80": "10.99.0.3 80, hello",
              "10.99.0.3 81": "10.99.0.3 81, hello",
              "pool.test 80": none,
              "other.test 80": none,
              "10.99.0.4 81": "10.99.0.4 81, hello",
              "10.99.0.4 80": "",
              "alias.test 80": "10.99.0.4 80, hello",
              "meta.test 80": "",
              "self.test 7777": ""
            },
            told: ["10.99.0.3 80", "fd99::2 81", "10.99.0.4 80", "169.254.169.254 80", "10.99.0.1 7777"],
            asked: ["alias.test", "meta.test", "mirror.test", "self.test", "sub.pool.test"]
          },
          blocked: "fd99::2 80",
          none: { "mirror.test 80": none }
        })
      },
      { skip: whyNoOutside }
    )

  for (const [name, options] of modes)
    effect(
      `${name} reach nothing of this machine, by none of its addresses`,
      function* () {
        const port = yield* serve
        const network = yield* Network.make({ outbound: "proxy" })
        const box = yield* idle(network, options)
        const gateway = `${network.range.slice(0, -7)}.0.1`
        for (const host of [...own, "169.254.169.254", "169.254.1.1", gateway, "0.0.0.0", "127.0.0.1"])
          assert.equal(yield* ask(box, host, port), "", host)
        for (const direct of listening(network)) assert.equal(yield* ask(box, gateway, direct), "")
        const refused = yield* told(network, box)
        assert.deepEqual(
          refused.map(({ address }) => address),
          [...own, "169.254.169.254", "169.254.1.1", ...listening(network).map(() => gateway)]
        )
        for (const { container } of refused) assert.equal(container, box.id)
      },
      skip
    )

  effect(
    "a container that routes loopback's addresses out of itself is refused",
    function* () {
      const port = yield* serve
      const network = yield* Network.make({ outbound: "proxy" })
      const routed = ["all", "default"].map((name) => [`net.ipv4.conf.${name}.route_localnet`, "1"] as const)
      const box = yield* idle(network, {
        capabilities: { add: ["NET_ADMIN"] },
        sysctls: Object.fromEntries(routed)
      })
      const script =
        "ip address del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0 onlink"
      yield* Container.exec(box, ["sh", "-c", script])
      assert.equal(yield* ask(box, "127.0.0.1", port), "")
      assert.equal(yield* ask(box, "127.1.2.3", port), "")
      const addresses = (yield* told(network, box)).map(({ address }) => address)
      assert.deepEqual(addresses, ["127.0.0.1", "127.1.2.3"])
    },
    skip
  )

  effect(
    "an entry that names the very address of this machine, and its port, leads there",
    function* () {
      const [port, other] = [yield* serve, yield* serve]
      const address = own.find((one) => net.isIPv4(one))!
      const network = yield* Network.make({
        outbound: { allow: [`${address}:${port}`, "0.0.0.0/0", "::/0"] }
      })
      const box = yield* idle(network)
      assert.equal(yield* ask(box, address, port), "served\n")
      assert.equal(yield* ask(box, address, other), "")
      assert.deepEqual(yield* told(network, box), [
        { reason: "NotAllowed", container: box.id, address, port: other }
      ])
    },
    { skip: whyNoAddress || whyDeno }
  )

  effect(
    "a container has at most 1024 connections at a time, and another one is not held up by them",
    function* () {
      const port = yield* serveForever
      const address = own.find((one) => net.isIPv4(one))!
      const network = yield* Network.make({ outbound: { allow: [`${address}:${port}`] } })
      const many = yield* Container.start(yield* Image.host, {
        network,
        command: ["node", "--eval", connecting(address, port)]
      })
      yield* WaitFor.log(many, "1024 connected, 10 reset")
      const [first] = yield* told(network, yield* idle(network))
      assert.deepEqual(first, { reason: "TooMany", container: many.id, address, port })
      const other = yield* idle(network)
      const asked = yield* Container.exec(other, ["sh", "-c", `timeout 15 nc ${address} ${port} | head -c 6`])
      assert.equal(asked.stdout, "served")
    },
    { skip: whyNoAddress || whyDeno }
  )

  effect(
    "a wrong entry is refused by its place and its text, and nothing is told without outbound",
    function* () {
      const wrong: ReadonlyArray<readonly [entry: string, message: RegExp]> = [
        ["", /allow\[0\]: ""/],
        ["a b", /"a b"/],
        ["10.0.0.1/8", /zero after its 8 bits/],
        ["10.0.0.0/33", /10\.0\.0\.0\/33/],
        ["10.0.0", /"10\.0\.0"/],
        ["example.com:0", /a port, from 1 to 65535/],
        ["example.com:70000", /a port/],
        ["*", /"\*"/],
        ["a.*.org", /a\.\*\.org/],
        ["https://example.com", /https/],
        ["127.0.0.1:80", /Network\.expose/],
        ["[::1]:80", /Network\.expose/],
        ["::ffff:127.0.0.1", /Network\.expose/],
        ["fe80::1%eth0", /fe80/]
      ]
      for (const [entry, message] of wrong) {
        const made = Effect.scoped(Network.make({ outbound: { allow: ["x.org", entry].reverse() } }))
        assert.match((yield* failure("InvalidOption", made)).message, message, entry)
      }
      const make = (options: object) =>
        failure("InvalidOption", Effect.scoped(Network.make(options as Network.NetworkOptions)))
      assert.match((yield* make({ outbound: "vpn" })).message, /outbound: "vpn"/)
      assert.match((yield* make({ outbound: { allow: "x" } })).message, /outbound\.allow: x/)
      assert.match((yield* make({ dns: ["x"], outbound: "proxy" })).message, /dns\[0\]: "x"/)
      assert.match((yield* make({ dns: ["192.0.2.1"] })).message, /dns: .*without outbound/)
      const network = yield* Network.make({ name: "lab" })
      const error = yield* failure("InvalidOption", Stream.runDrain(Network.refusals(network)))
      assert.match(error.message, /network: lab/)
    }
  )

  effect("the rules are in an order in which nothing special is allowed but by its own entry", function* () {
    const { names, rules } = rulesOf(
      {
        allow: [
          "10.0.0.0/8",
          "169.254.169.254:80",
          "Registry.EXAMPLE.com:443",
          "[2001:db8::]/32:1",
          "*.example.org."
        ]
      },
      ["10.128.0.0/16"]
    )
    assert.deepEqual(names, ["registry.example.com 443", "*.example.org 0"])
    const at = (rule: string) => {
      assert.ok(rules.includes(rule), `${rule} in ${rules.join(", ")}`)
      return rules.indexOf(rule)
    }
    const order = [
      "refuse 10.128.0.0/16 0",
      "refuse 127.0.0.0/8 0",
      "allow 169.254.169.254/32 80",
      "refuse 169.254.0.0/16 0",
      "refuse 64:ff9b::a9fe:0/112 0",
      "refuse-own",
      "allow 10.0.0.0/8 0",
      "allow 2001:db8::/32 1",
      "allow-learned"
    ].map(at)
    assert.deepEqual(
      order,
      [...order].sort((a, b) => a - b)
    )
    yield* Effect.void
  })
})
