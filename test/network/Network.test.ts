import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Berth, BerthError, Container, Image, Namespace, Network, WaitFor } from "../../lib/index.ts"
import { echoImage, spoofImage } from "../support/attack.ts"
import { echoing, idle } from "../support/boxes.ts"
import { failure, makeTemporaryFolder, remove, suite, whyNotRoot } from "../support/effect.ts"
import { hostNetwork } from "../support/hostNetwork.ts"
import { ANSWER, ask, lookUp, modes } from "../support/networks.ts"
import { commandOf, ended } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

suite("a network", (effect) => {
  for (const [name, options] of modes) {
    effect(
      `${name} on it reach each other by IPv4 and IPv6, and those of another network do not`,
      function* () {
        const before = hostNetwork()
        const [one, other] = [yield* Network.make(), yield* Network.make()]
        const server = yield* echoing({ ...options, network: one })
        const client = yield* idle({ ...options, network: one })
        const stranger = yield* idle({ ...options, network: other })
        assert.equal(server.state.addresses.length, fs.existsSync("/proc/sys/net/ipv6") ? 2 : 1)
        for (const address of server.state.addresses) {
          assert.equal(yield* ask(client, address), ANSWER, address)
          assert.equal(yield* ask(stranger, address), "", address)
        }
        assert.deepEqual(hostNetwork(), before)
      },
      skip
    )

    effect(
      `${name} on it reach neither the host nor any other address`,
      function* () {
        const network = yield* Network.make()
        const box = yield* idle({ ...options, network })
        const gateways = [`${network.range.replace(/\.0\.0\/16$/, "")}.0.1`, "169.254.1.1"]
        for (const address of [...gateways, "192.0.2.1", "127.0.0.2"])
          assert.equal(yield* ask(box, address), "", address)
      },
      skip
    )

    effect(
      `${name} on two networks reach the others of both, and route nothing between them`,
      function* () {
        const [one, two] = [yield* Network.make(), yield* Network.make()]
        const both = yield* idle({ ...options, network: [one, two] })
        const first = yield* echoing({ ...options, network: one })
        const second = yield* echoing({ ...options, network: two })
        assert.equal(yield* ask(both, first.state.addresses[0]!), ANSWER)
        assert.equal(yield* ask(both, second.state.addresses[0]!), ANSWER)
        assert.equal(yield* ask(first, second.state.addresses[0]!), "")
      },
      skip
    )
  }

  effect(
    "a container knows the names of all its networks, and nothing of any other network",
    function* () {
      const [one, two] = [yield* Network.make(), yield* Network.make()]
      const first = yield* idle({ network: one, name: "db", aliases: ["one"] })
      const second = yield* idle({ network: two, name: "db", aliases: ["two"] })
      const both = yield* idle({ network: [one, two], name: "both" })
      const address = (box: Container.Container, place = 0): string => box.state.addresses[place]!
      const reverse = (of: string): string => `${of.split(".").reverse().join(".")}.in-addr.arpa`
      assert.deepEqual(yield* lookUp(both, "db"), [address(first), address(second)].sort())
      assert.deepEqual(yield* lookUp(both, "one"), [address(first)])
      assert.deepEqual(yield* lookUp(both, second.id), [address(second)])
      assert.deepEqual(yield* lookUp(first, "db"), [address(first)])
      assert.deepEqual(yield* lookUp(second, "db"), [address(second)])
      assert.deepEqual(yield* lookUp(second, "both"), [both.state.addresses.filter(net.isIPv4)[1]])
      for (const name of ["two", second.id, "DB.two", `${"x.".repeat(20)}two`])
        assert.deepEqual(yield* lookUp(first, name), [], name)
      const named = (box: Container.Container, of: Container.Container) =>
        Effect.map(
          Container.exec(box, ["busybox", "nslookup", "-type=ptr", reverse(address(of))]),
          ({ stdout }) => /name = (\S+)/.exec(stdout)?.[1]
        )
      assert.equal(yield* named(both, first), "db")
      assert.equal(yield* named(both, second), "db")
      assert.equal(yield* named(first, second), undefined)
      // One responder serves both networks, and forgets a container with its scope.
      assert.equal(one.state.names.responder, two.state.names.responder)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const other = yield* idle({ network: two, name: "other" })
          assert.deepEqual(yield* lookUp(both, "other"), [address(other)])
        })
      )
      assert.deepEqual(yield* lookUp(both, "other"), [])
    },
    skip
  )

  effect(
    "a connection by the program goes to the container's own address, and else to its loopback",
    function* () {
      const network = yield* Network.make()
      const box = yield* echoing({ network })
      yield* Container.exec(box, ["true"])
      yield* Container.connect(box, 7)
      const looping = yield* Container.start(yield* echoImage, { network, command: ["/bin/echo", "v4:7"] })
      yield* WaitFor.log(looping, "listening")
      yield* Container.connect(looping, 7)
    },
    skip
  )

  effect(
    "a container cannot send with the address of another",
    function* () {
      const network = yield* Network.make()
      const image = yield* spoofImage
      const raw = { network, capabilities: { add: ["NET_RAW"] } } as const
      const attacker = yield* Container.start(image, { ...raw, command: ["sleep", "1000"] })
      const other = yield* Container.start(image, { network, command: ["sleep", "1000"] })
      const victim = yield* Container.start(image, { network, command: ["/bin/spoof", "receive", "9"] })
      yield* WaitFor.log(victim, "ready")
      const send = (from: Container.Container, place: number) => {
        const [sender, target] = [from.state.addresses[place]!, victim.state.addresses[place]!]
        return Container.exec(attacker, ["/bin/spoof", place === 0 ? "4" : "6", sender, target, "9"])
      }
      for (const place of victim.state.addresses.keys()) {
        assert.equal((yield* send(other, place)).stdout, "sent\n")
        assert.equal((yield* send(attacker, place)).stdout, "sent\n")
        // The attacker's own address arrives: so would the other, which was sent before.
        yield* WaitFor.log(victim, attacker.state.addresses[place]!)
        const log = yield* Stream.runCollect(Container.logs(victim, { follow: false }))
        const text = [...log].map(({ line }) => line).join(" ")
        assert.ok(!text.includes(`${other.state.addresses[place]} `), text)
      }
    },
    skip
  )

  effect(
    "a container sees no packet of others, whatever it listens to",
    function* () {
      const network = yield* Network.make()
      const image = yield* spoofImage
      const raw = { network, capabilities: { add: ["NET_RAW"] } } as const
      const attacker = yield* Container.start(image, { ...raw, command: ["/bin/spoof", "sniff"] })
      const other = yield* Container.start(image, { ...raw, command: ["sleep", "1000"] })
      const victim = yield* Container.start(image, { network, command: ["/bin/spoof", "receive", "9"] })
      yield* WaitFor.log(attacker, "ready")
      yield* WaitFor.log(victim, "ready")
      for (const [place, target] of victim.state.addresses.entries()) {
        const sender = other.state.addresses[place]!
        const send = (to: string) =>
          Container.exec(other, ["/bin/spoof", place === 0 ? "4" : "6", sender, to, "9"])
        yield* send(target)
        yield* WaitFor.log(victim, sender)
        // What is for the attacker is seen, and comes after all else.
        yield* send(attacker.state.addresses[place]!)
        yield* WaitFor.log(attacker, `to ${attacker.state.addresses[place]}`)
        const log = yield* Stream.runCollect(Container.logs(attacker, { follow: false }))
        const text = [...log].map(({ line }) => line).join("\n")
        assert.ok(!text.includes(`to ${target}\n`), text)
      }
    },
    skip
  )

  effect(
    "ports of a start are published until the scope closes, and a port that is taken ends the container",
    function* () {
      const network = yield* Network.make()
      const box = yield* echoing({ network })
      const { port } = yield* Container.publish(box, 7)
      const error = yield* failure(
        "NetworkError",
        Effect.scoped(echoing({ network, ports: [{ container: 7, host: port }] }))
      )
      assert.equal(error.reason, "AddressInUse")
      assert.equal(network.state.members.size, 1)
      yield* echoing({ network, ports: [7, { container: 7 }] })
    },
    skip
  )

  effect(
    "an address is free again when its container's scope has closed",
    function* () {
      const network = yield* Network.make({ name: "lab" })
      yield* Effect.scoped(idle({ network }))
      assert.equal(inspect(network), `Network(lab, ${network.range}, 0 containers)`)
      assert.deepEqual(network.toJSON(), {
        _id: "berth/Network",
        name: "lab",
        range: network.range,
        containers: []
      })
      assert.ok(Network.isNetwork(network))
    },
    skip
  )

  effect("what cannot be a network, a name or an alias is refused by name", function* () {
    const network = yield* Network.make()
    const image = yield* Image.host
    const holder = yield* Namespace.make(["network"])
    const wrong: ReadonlyArray<readonly [Container.StartOptions, RegExp]> = [
      [{ network: "bridge" as never }, /network: "?bridge/],
      [{ network: [network, network] }, /network: .*without repetition/],
      [{ network: [{}] as never }, /network/],
      [{ network, namespaces: { network: holder } }, /namespaces\.network/],
      [{ network, name: "-x" }, /name: "-x"/],
      [{ network, aliases: ["a b"] }, /aliases: "a b"/]
    ]
    for (const [options, message] of wrong) {
      const start = Effect.scoped(Container.start(image, { ...options, command: ["true"] }))
      assert.match((yield* failure("InvalidOption", start)).message, message)
    }
    assert.equal(network.state.members.size, 0)
    const taken = yield* Container.start(image, { network, name: "db", command: ["sleep", "100"] })
    const twice = Effect.scoped(Container.start(image, { network, name: "DB", command: ["true"] }))
    assert.match(
      (yield* failure("InvalidOption", twice)).message,
      new RegExp(`name: "db" .*container ${taken.id} has it on network ${network.name}`)
    )
    const name = yield* Effect.flip(Effect.scoped(Network.make({ name: "a/b" })))
    assert.ok(name instanceof BerthError.InvalidOption)
  })

  effect(
    "a range is the network's own: the host and other networks may have the same",
    function* () {
      const own = Object.values(os.networkInterfaces())
        .flat()
        .find((at) => at?.family === "IPv4" && !at.internal)?.address
      const range = `${(own ?? "10.5.0.1").split(".").slice(0, 2).join(".")}.0.0/16`
      const before = hostNetwork()
      const [one, two] = [yield* Network.make({ range }), yield* Network.make({ range })]
      assert.equal(one.range, range)
      const first = yield* echoing({ network: one, name: "db" })
      const second = yield* idle({ network: two, name: "db" })
      assert.equal(first.state.addresses[0], second.state.addresses[0])
      const client = yield* idle({ network: one })
      const stranger = yield* idle({ network: two })
      assert.equal(yield* ask(client, first.state.addresses[0]!), ANSWER)
      assert.equal(yield* ask(stranger, first.state.addresses[0]!), "")
      if (own !== undefined) assert.equal(yield* ask(client, own), "")
      assert.deepEqual(hostNetwork(), before)
      for (const start of [idle({ network: [one, two] }), Network.join(two, client)])
        assert.match(
          (yield* failure(
            "InvalidOption",
            Effect.scoped(start as Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>)
          )).message,
          new RegExp(`network: .*a network of another range than that of ${one.name}`)
        )
      assert.deepEqual([one.state.members.size, two.state.members.size], [2, 2])
    },
    skip
  )

  effect(
    "without IPv6, containers have addresses of IPv4 alone",
    function* () {
      const network = yield* Network.make({ ipv6: false })
      const server = yield* echoing({ network, name: "server" })
      const client = yield* idle({ network })
      assert.equal(server.state.addresses.length, 1)
      assert.equal(yield* ask(client, server.state.addresses[0]!), ANSWER)
      const { stdout } = yield* Container.exec(client, ["cat", "/proc/net/if_inet6"])
      const global = stdout.split("\n").filter((line) => / eth0$/.test(line) && !line.startsWith("fe80"))
      assert.deepEqual(global, [])
    },
    skip
  )

  effect(
    "a container whose sysctl disables IPv6 is on a network by IPv4",
    function* () {
      const network = yield* Network.make()
      const command = ["/bin/echo", "any4:7"]
      yield* Effect.flatMap(echoImage, (image) =>
        Container.start(image, { network, name: "server", command })
      )
      const sysctls: Readonly<Record<string, string>> = fs.existsSync("/proc/sys/net/ipv6")
        ? { "net.ipv6.conf.all.disable_ipv6": "1" }
        : {}
      const box = yield* idle({ network, sysctls })
      const asked = yield* Container.exec(box, ["sh", "-c", "echo hello | timeout 15 nc server 7"])
      assert.equal(asked.stdout, "hello\nbye")
    },
    skip
  )

  effect("a range that is not one of 16 bits for containers is refused by name", function* () {
    const wrong = [
      "",
      "10.5.0.0",
      "10.5.0.0/24",
      "10.5.1.0/16",
      "10.05.0.0/16",
      "010.5.0.0/16",
      "300.5.0.0/16",
      "10.256.0.0/16",
      "127.0.0.0/16",
      "0.0.0.0/16",
      "169.254.0.0/16",
      "224.0.0.0/16",
      "255.255.0.0/16",
      "fd00::/64",
      " 10.5.0.0/16",
      "10.5.0.0/16\n"
    ]
    for (const range of wrong) {
      const { message } = yield* failure("InvalidOption", Effect.scoped(Network.make({ range })))
      assert.ok(message.includes(`range: ${JSON.stringify(range)}`), message)
    }
  })

  effect(
    "with outbound, a range that hides a network of the machine, or what outbound allows, is refused, and none such is chosen",
    function* () {
      const folder = makeTemporaryFolder()
      yield* Effect.addFinalizer(() => Effect.sync(() => remove(folder)))
      const { args, command } = commandOf("ranges.ts", [`${folder}/berth`])
      const child = spawn("unshare", ["--net", "--mount", command, ...args], {
        stdio: ["ignore", "pipe", "inherit"]
      })
      const { code, stdout } = yield* Effect.promise(() => ended(child))
      assert.equal(code, 0, stdout)
      const refused =
        'range: "10.5.0.0/16" is not acceptable: expected another range, because the containers could not reach'
      assert.deepEqual(JSON.parse(stdout), [
        `${refused} 10.5.3.0/24, to which this machine has a route by lead`,
        "10.5.0.0/16",
        "172.17.0.0/16",
        "10.200.0.0/16",
        `${refused.replace("10.5", "10.6")} 10.6.1.0/24, which outbound allows`
      ])
    },
    { skip: whyNotRoot || (fs.existsSync("/sbin/ip") ? false : "needs iproute2") }
  )

  effect('network: "host" is the host\'s own network', function* () {
    const box = yield* Container.start(yield* Image.host, { network: "host", command: ["sleep", "100"] })
    assert.equal(fs.readlinkSync(`/proc/${box.pid}/ns/net`), fs.readlinkSync("/proc/self/ns/net"))
  })
})
