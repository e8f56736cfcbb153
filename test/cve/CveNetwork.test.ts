/** Vulnerabilities of the networks of containers. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { Container, Image, Network, WaitFor } from "../../lib/index.ts"
import { spoofImage } from "../support/attack.ts"
import { suite, whyNotRoot } from "../support/effect.ts"
import { readInside } from "../support/networks.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

/** The abstract sockets of a network namespace, by the /proc/PID/net/unix of a process in it. */
const abstractSockets = (): ReadonlyArray<string> =>
  fs
    .readFileSync("/proc/self/net/unix", "utf8")
    .split("\n")
    .flatMap((line) => /\s(@\S+)$/.exec(line)?.[1] ?? [])
    .sort()

const ROUTES = "ipv6_route"

const routesOf = (pid: number | string): string => fs.readFileSync(`/proc/${pid}/net/${ROUTES}`, "utf8")

/** Routes of IPv6 without counters. */
const uncounted = (routes: string | undefined): string | undefined =>
  routes?.replaceAll(/( [0-9a-f]{8}){4}(?= +\S+$)/gm, "")

suite("vulnerabilities of networks", (effect, folder) => {
  effect(
    "CVE-2020-15257: nothing of Berth listens on an abstract socket, which containers on the host's network reach",
    function* () {
      const before = abstractSockets()
      const network = yield* Network.make({ outbound: "proxy" })
      const box = yield* Container.start(yield* Image.host, { network, command: ["sleep", "100"] })
      yield* Network.expose(network, { host: 3000, name: "mock" })
      yield* Container.publish(box, 80)
      yield* Container.exec(box, ["true"])
      assert.deepEqual(
        abstractSockets().filter((name) => !before.includes(name)),
        []
      )
    }
  )

  for (const [name, options] of modes)
    effect(
      `CVE-2021-20199: a server of ${name} does not see a published connection as one of its own loopback`,
      function* () {
        const root = `${folder()}/cgi`
        if (!fs.existsSync(root)) {
          fs.mkdirSync(`${makeRoot(root)}/www/cgi-bin`, { recursive: true })
          fs.writeFileSync(`${root}/www/cgi-bin/peer`, "#!/bin/sh\necho\necho $REMOTE_ADDR\n", {
            mode: 0o755
          })
        }
        const network = yield* Network.make()
        const command = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
        const box = yield* Container.start(yield* Image.fromRootfs(root), { ...options, network, command })
        yield* WaitFor.port(box, 80)
        const { hostname, port } = yield* Container.publish(box, 80)
        const peer = yield* Effect.promise(() => request(hostname, port, "/cgi-bin/peer"))
        assert.match(peer, new RegExp(`\\b${box.state.addresses[0]!.replaceAll(".", "\\.")}\\]?\\s*$`))
      },
      skip
    )

  effect(
    "CVE-2020-13401: a router advertisement of a container changes no route and no address but its own",
    function* () {
      const network = yield* Network.make({ outbound: "proxy" })
      const image = yield* spoofImage
      const start = (command: ReadonlyArray<string>) =>
        Container.start(image, { network, capabilities: { add: ["NET_RAW"] }, command })
      const attacker = yield* start(["sleep", "1000"])
      const victim = yield* start(["/bin/spoof", "receive", "9"])
      yield* WaitFor.log(victim, "ready")
      const routes = () =>
        [routesOf("self"), routesOf(victim.pid), readInside(network, ROUTES)].map(uncounted)
      const before = routes()
      assert.equal(before[2] === undefined, whyNotRoot !== false)
      assert.equal((yield* Container.exec(attacker, ["/bin/spoof", "advertise"])).stdout, "sent\n")
      // What was sent before this datagram has arrived as well, if it arrives at all.
      const [sender, target] = [attacker.state.addresses[1]!, victim.state.addresses[1]!]
      yield* Container.exec(attacker, ["/bin/spoof", "6", sender, target, "9"])
      yield* WaitFor.log(victim, sender)
      assert.deepEqual(routes(), before)
    },
    { skip: whyNoBusybox || (fs.existsSync("/proc/sys/net/ipv6") ? false : "no IPv6") }
  )
})

const request = (host: string, port: number, path: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = net.connect({ host, port })
    let text = ""
    socket.on("data", (data) => {
      text += data
    })
    socket.once("error", reject).once("end", () => resolve(text))
    socket.write(`GET ${path} HTTP/1.0\r\n\r\n`)
  })
