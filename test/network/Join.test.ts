import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Container, Image, Namespace, Network, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { echoing, idle } from "../support/boxes.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { ANSWER, ask, eventually, lookUp, modes } from "../support/networks.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const text = (box: Container.Container, ...command: ReadonlyArray<string>) =>
  Effect.map(Container.exec(box, command), ({ stdout }) => stdout)

/** The names of the interfaces of a container, without loopback. */
const interfaces = (box: Container.Container) =>
  Effect.map(text(box, "ls", "/sys/class/net"), (names) =>
    names.split(/\s+/).filter((name) => /^eth/.test(name))
  )

suite("a running container", (effect, folder) => {
  for (const [name, options] of modes) {
    effect(
      `${name}: one that was started without a network joins one, and leaves it with the scope`,
      function* () {
        const network = yield* Network.make()
        const member = yield* echoing({ ...options, network, name: "member" })
        const box = yield* echoing({ ...options, name: "late" })
        // Whatever has read its resolv.conf before goes on with the same server.
        const resolvConf = yield* text(box, "cat", "/etc/resolv.conf")
        assert.match(resolvConf, /^nameserver 127\.0\.0\.11$/m)
        assert.deepEqual(box.state.addresses, [])
        const scope = yield* Scope.make()
        yield* Network.join(network, box, { aliases: ["alias"] }).pipe(Scope.extend(scope))

        assert.equal(box.state.addresses.length, member.state.addresses.length)
        const [address] = box.state.addresses
        assert.deepEqual(yield* lookUp(box, "member"), [member.state.addresses[0]])
        for (const known of ["late", "alias", box.id])
          assert.deepEqual(yield* lookUp(member, known), [address])
        for (const target of box.state.addresses) assert.equal(yield* ask(member, target), ANSWER)
        for (const target of member.state.addresses) assert.equal(yield* ask(box, target), ANSWER)
        assert.equal(yield* text(box, "cat", "/etc/resolv.conf"), resolvConf)
        assert.deepEqual(yield* interfaces(box), ["eth0"])
        yield* Container.connect(box, { port: 7, host: address! }).pipe(Effect.scoped)

        yield* Scope.close(scope, Exit.void)
        assert.deepEqual(box.state.addresses, [])
        assert.deepEqual(yield* interfaces(box), [])
        assert.deepEqual(yield* lookUp(member, "late"), [])
        assert.deepEqual(yield* lookUp(box, "member"), [])
        assert.equal(yield* ask(member, address!), "")
        assert.equal(network.state.members.size, 1)

        // Once more: the sockets for names are there already.
        yield* Network.join(network, box)
        assert.deepEqual(yield* lookUp(box, "member"), [member.state.addresses[0]])
        assert.equal(yield* ask(box, member.state.addresses[0]!), ANSWER)
      },
      skip
    )

    effect(
      `${name}: one on a network joins another one and leaves the first, and then knows the second alone`,
      function* () {
        const [one, two] = [yield* Network.make(), yield* Network.make()]
        const first = yield* echoing({ ...options, network: one, name: "first" })
        const second = yield* echoing({ ...options, network: two, name: "second" })
        const box = yield* echoing({ ...options, network: one, name: "both" })
        const before = box.state.addresses
        yield* Network.join(two, box)
        assert.deepEqual(box.state.addresses.slice(0, before.length), before)
        assert.deepEqual(yield* interfaces(box), ["eth0", "eth1"])
        assert.equal(yield* ask(box, first.state.addresses[0]!), ANSWER)
        assert.equal(yield* ask(box, second.state.addresses[0]!), ANSWER)
        // It routes nothing from one to the other.
        assert.equal(yield* ask(first, second.state.addresses[0]!), "")
        assert.deepEqual(yield* lookUp(first, "second"), [])

        yield* Network.leave(one, box)
        assert.deepEqual(yield* interfaces(box), ["eth1"])
        assert.equal(box.state.addresses.length, before.length)
        assert.deepEqual(yield* lookUp(box, "first"), [])
        assert.deepEqual(yield* lookUp(first, "both"), [])
        assert.deepEqual(yield* lookUp(second, "both"), [box.state.addresses[0]])
        assert.equal(yield* ask(box, first.state.addresses[0]!), "")
        assert.equal(yield* ask(box, second.state.addresses[0]!), ANSWER)
        assert.match(yield* text(box, "ip", "route"), /^default via 169\.254\.1\.1 dev eth1/m)
        yield* Network.join(one, box)
        assert.deepEqual((yield* interfaces(box)).sort(), ["eth0", "eth1"])
        assert.equal(yield* ask(box, first.state.addresses[0]!), ANSWER)
      },
      skip
    )
  }

  effect(
    "a connection over a network that is left gets nothing any more, and a published port goes on",
    function* () {
      const network = yield* Network.make()
      const client = yield* idle({ network })
      const box = yield* echoing({ network })
      const published = yield* Container.publish(box, 7)
      const [address] = box.state.addresses
      yield* Container.exec(client, ["mkfifo", "/tmp/go"])
      const talk = `(echo one; cat /tmp/go) | nc ${address} 7`
      const talking = yield* Container.execStream(client, ["sh", "-c", talk])
      yield* WaitFor.log(talking, "one")
      yield* Network.leave(network, box)
      yield* Container.exec(client, ["sh", "-c", "echo two > /tmp/go"])
      assert.equal(yield* ask(client, address!), "")
      const answered = yield* Effect.promise(
        () =>
          new Promise<string>((resolve, reject) => {
            let came = ""
            const socket = net.connect(published.port, published.hostname, () => socket.end("hello"))
            socket.on("data", (bytes) => (came += bytes))
            socket.on("end", () => resolve(came))
            socket.on("error", reject)
          })
      )
      assert.equal(answered, "hellobye")
      const log = yield* Stream.runCollect(Container.logs(talking, { follow: false }))
      assert.deepEqual(
        [...log].map(({ line }) => line),
        ["one"]
      )
    },
    skip
  )

  effect(
    "has no name on the network when it has ended, and what cannot join leaves nothing there",
    function* () {
      const network = yield* Network.make()
      const other = yield* Network.make()
      const member = yield* idle({ network, name: "member" })
      const host = yield* Container.start(yield* Image.host, { network: "host", command: ["sleep", "1000"] })
      const sharing = yield* idle({ namespaces: { network: member } })
      const holder = yield* Namespace.make(["network"])
      const held = yield* idle({ namespaces: { network: holder } })
      const pod = yield* Network.pod({ name: "web" })
      const inPod = yield* idle({ network: pod })
      const taken = yield* idle({ name: "MEMBER" })
      const refused = (box: Container.Container | Network.Pod, on = network, options = {}) =>
        Effect.map(
          failure("InvalidOption", Effect.scoped(Network.join(on, box, options))),
          ({ message }) => message
        )
      assert.match(
        yield* refused(host),
        new RegExp(`container: container ${host.id} .*this one has the host's`)
      )
      for (const box of [sharing, held])
        assert.match(
          yield* refused(box),
          new RegExp(`container ${box.id} .*shares that of another container`)
        )
      assert.match(yield* refused(inPod), /this one is in pod web, which can join the network/)
      assert.match(yield* refused(member), /network: .*is on this one already/)
      assert.match(yield* refused(taken), new RegExp(`name: "member" .*container ${member.id} has it`))
      assert.match(yield* refused(member, other, { aliases: ["a b"] }), /aliases: "a b"/)
      assert.match(yield* refused(member, {} as never), /network: .*a network of Network\.make/)
      assert.match(
        (yield* failure("InvalidOption", Network.leave(other, member))).message,
        new RegExp(`a network that container ${member.id} is on`)
      )
      assert.equal(network.state.members.size, 1)
      assert.equal(other.state.members.size, 0)

      const closed = yield* Effect.scoped(Network.make())
      assert.match(yield* refused(member, closed), /network: .*a network whose scope is open/)
      const elsewhere = yield* Layer.build(berthIn(`${folder()}-other`))
      const foreign = yield* Effect.provide(Network.make(), elsewhere)
      assert.match(yield* refused(member, foreign), /network: .*a network of the same Berth/)

      const short = yield* Container.start(yield* echoImage, { command: ["true"] })
      yield* short.exit
      const ended = yield* failure("ContainerError", Effect.scoped(Network.join(network, short)))
      assert.equal(ended.reason, "NotRunning")
      const gone = yield* Effect.scoped(idle({}))
      assert.equal(
        (yield* failure("ContainerError", Effect.scoped(Network.join(network, gone)))).reason,
        "NotRunning"
      )
      assert.equal(network.state.members.size, 1)

      const scope = yield* Scope.make()
      const box = yield* idle({ name: "brief" }).pipe(Scope.extend(scope))
      yield* Network.join(network, box)
      assert.deepEqual(yield* lookUp(member, "brief"), [box.state.addresses[0]])
      yield* Scope.close(scope, Exit.void)
      assert.deepEqual(yield* lookUp(member, "brief"), [])
      assert.equal(network.state.members.size, 1)
    },
    skip
  )

  effect(
    "one in which a process has the port for names cannot join, and says why",
    function* () {
      const network = yield* Network.make()
      const box = yield* Container.start(yield* echoImage, { command: ["/bin/echo", "any4:53"] })
      yield* WaitFor.log(box, "listening")
      const error = yield* failure("NetworkError", Effect.scoped(Network.join(network, box)))
      assert.equal(error.reason, "AddressInUse")
      assert.match(
        error.message,
        new RegExp(`container ${box.id}.*127\\.0\\.0\\.11:53.*end it, or name a network`)
      )
      assert.equal(network.state.members.size, 0)
      assert.deepEqual(yield* interfaces(box), [])
    },
    skip
  )

  effect(
    "many join and leave at the same time, and each network has what joined last",
    function* () {
      const networks = yield* Effect.forEach(Array.from({ length: 4 }), () => Network.make())
      const boxes = yield* Effect.forEach(Array.from({ length: 3 }), () => idle({}))
      const scope = yield* Scope.make()
      yield* Effect.forEach(
        boxes.flatMap((box) => networks.map((network) => [box, network] as const)),
        ([box, network], k) => Scope.extend(Network.join(network, box, { aliases: [`alias${k}`] }), scope),
        { concurrency: "unbounded" }
      )
      for (const box of boxes) {
        assert.deepEqual((yield* interfaces(box)).sort(), ["eth0", "eth1", "eth2", "eth3"])
        for (const other of boxes)
          assert.deepEqual(
            (yield* lookUp(box, other.id)).toString(),
            other.state.addresses.filter(net.isIPv4).sort().toString()
          )
      }
      yield* Scope.close(scope, Exit.void)
      for (const network of networks) assert.equal(network.state.members.size, 0)
      for (const box of boxes) {
        assert.deepEqual(yield* interfaces(box), [])
        assert.deepEqual(yield* lookUp(box, boxes[0]!.id), [])
      }
    },
    skip
  )

  effect(
    "a network that is closed takes its interfaces and names with it",
    function* () {
      const scope = yield* Scope.make()
      const network = yield* Network.make().pipe(Scope.extend(scope))
      const kept = yield* Network.make()
      const member = yield* echoing({ network: kept, name: "member" })
      const box = yield* idle({ network: [network, kept] })
      const late = yield* idle({})
      yield* Network.join(network, late)
      yield* Scope.close(scope, Exit.void)
      assert.deepEqual(box.state.addresses.length, fs.existsSync("/proc/sys/net/ipv6") ? 2 : 1)
      assert.deepEqual(late.state.addresses, [])
      assert.deepEqual(yield* lookUp(box, "member"), [member.state.addresses[0]])
      assert.equal(yield* ask(box, member.state.addresses[0]!), ANSWER)
      yield* eventually(
        "the end of the interfaces",
        Effect.map(interfaces(box), (left) => left.toString() === "eth1")
      )
      // The others go on.
      yield* Network.join(kept, late)
      assert.equal(yield* ask(late, member.state.addresses[0]!), ANSWER)
    },
    skip
  )

  effect(
    "a container ends while it joins and leaves a network without a pause",
    function* () {
      const network = yield* Network.make()
      const scope = yield* Scope.make()
      const box = yield* idle({}).pipe(Scope.extend(scope))
      const joining = yield* Effect.fork(Effect.forever(Effect.scoped(Network.join(network, box))))
      yield* eventually(
        "joined",
        Effect.sync(() => box.state.addresses.length > 0)
      )
      yield* Effect.timeout(Scope.close(scope, Exit.void), "15 seconds")
      const error = yield* failure("ContainerError", Fiber.join(joining))
      assert.equal(error.reason, "NotRunning")
      assert.equal(network.state.members.size, 0)
    },
    skip
  )
})
