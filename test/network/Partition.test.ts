import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, Container, Network, WaitFor } from "../../lib/index.ts"
import { echoImage, spoofImage } from "../support/attack.ts"
import { echoing, modes } from "../support/boxes.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** Whether a container gets an answer from port 7 of another, by each of its addresses; a partition gives none. */
const reaches = (from: Container.Container, to: Container.Container, seconds: number) =>
  Effect.map(
    Effect.forEach(
      to.state.addresses,
      (address) =>
        Container.exec(from, ["sh", "-c", `echo hello | timeout ${seconds} nc -w ${seconds} ${address} 7`]),
      { concurrency: "unbounded" }
    ),
    (results) => results.map(({ stdout }) => stdout)
  )

const assertApart = (from: Container.Container, to: Container.Container) =>
  Effect.map(reaches(from, to, 1), (answers) =>
    assert.deepEqual(
      answers,
      answers.map(() => "")
    )
  )

const assertReached = (from: Container.Container, to: Container.Container) =>
  Effect.map(reaches(from, to, 15), (answers) =>
    assert.deepEqual(
      answers,
      answers.map(() => "hello\nbye")
    )
  )

const output = (box: Container.Container) =>
  Effect.map(Stream.runCollect(Container.logs(box, { follow: false })), (lines) =>
    [...lines].map(({ line }) => line).join(" ")
  )

/** How often the kernel has sent the unanswered bytes of the container's connection again: proc_net_tcp. */
const retransmissions = (box: Container.Container) =>
  Effect.map(Container.exec(box, ["cat", "/proc/net/tcp"]), ({ stdout }) =>
    Math.max(
      0,
      ...stdout
        .split("\n")
        .slice(1, -1)
        .map((line) => Number.parseInt(line.trim().split(/\s+/)[6]!, 16))
    )
  )

suite("a partition", (effect) => {
  for (const [name, options] of modes)
    effect(
      `${name} does not reach one of the other side, and both reach a third, until the scope closes`,
      function* () {
        const network = yield* Network.make()
        const [a, b, other] = [
          yield* echoing({ ...options, network }),
          yield* echoing({ ...options, network }),
          yield* echoing({ ...options, network })
        ]
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* Network.partition(network, a, b)
            yield* assertApart(a, b)
            yield* assertApart(b, a)
            yield* assertReached(other, a)
            yield* assertReached(b, other)
            yield* Container.connect(b, 7)
          })
        )
        yield* assertReached(a, b)
        yield* assertReached(b, a)
      },
      skip
    )

  effect(
    "a connection stops, and goes on when the scope closes",
    function* () {
      const network = yield* Network.make()
      const server = yield* echoing({ network })
      const client = yield* Container.start(yield* echoImage, {
        network,
        command: ["nc", server.state.addresses[0]!, "7"],
        stdin: "pipe"
      })
      const typed = yield* Queue.unbounded<string>()
      yield* Effect.forkScoped(Stream.run(Stream.encodeText(Stream.fromQueue(typed)), client.stdin))
      yield* Queue.offer(typed, "one\n")
      yield* WaitFor.log(client, "one")
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Network.partition(network, server, client)
          yield* Queue.offer(typed, "two\n")
          yield* Effect.repeat(retransmissions(client), { until: (count) => count > 0 }).pipe(
            Effect.timeout("15 seconds")
          )
          assert.equal(yield* output(client), "one")
        })
      )
      yield* WaitFor.log(client, "two")
    },
    skip
  )

  effect(
    "of one way drops what the first sends and nothing else; of groups keeps each pair apart; and two may overlap",
    function* () {
      const network = yield* Network.make()
      const image = yield* spoofImage
      const receiving = Effect.gen(function* () {
        const box = yield* Container.start(image, {
          network,
          capabilities: { add: ["NET_RAW"] },
          command: ["/bin/spoof", "receive", "9"]
        })
        yield* WaitFor.log(box, "ready")
        return box
      })
      const [a, b, other] = [yield* receiving, yield* receiving, yield* receiving]
      const send = (from: Container.Container, to: Container.Container, as = from) => {
        const [sender, target] = [as.state.addresses[0]!, to.state.addresses[0]!]
        return Container.exec(from, ["/bin/spoof", "4", sender, target, "9"])
      }
      const came = (to: Container.Container, from: Container.Container) =>
        Effect.map(output(to), (text) => text.split(`${from.state.addresses[0]}`).length - 1)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Network.partition(network, a, [b, other], { oneWay: true })
          yield* send(a, b)
          yield* send(a, other)
          yield* send(b, a, other)
          yield* send(b, a)
          yield* WaitFor.log(a, b.state.addresses[0]!)
          // The sender is still checked.
          assert.equal(yield* came(a, other), 0)
          yield* Effect.scoped(Network.partition([b, other], a)(network))
          yield* send(other, a)
          yield* WaitFor.log(a, other.state.addresses[0]!)
          yield* send(a, b)
        })
      )
      // What comes now was sent after all that was dropped.
      for (const to of [b, other]) {
        yield* send(a, to)
        yield* WaitFor.log(to, a.state.addresses[0]!)
        assert.equal(yield* came(to, a), 1)
      }
    },
    skip
  )

  effect(
    "of what is no container of the network is refused by name, and may outlive the network",
    function* () {
      const [network, second] = [yield* Network.make({ name: "lab" }), yield* Network.make()]
      const box = yield* echoing({ network })
      const stranger = yield* echoing({ network: second })
      const wrong: ReadonlyArray<readonly [Effect.Effect<void, BerthError.BerthError, Scope.Scope>, RegExp]> =
        [
          [Network.partition(network, box, stranger), /^b: .*this network, lab/],
          [Network.partition(network, "box" as never, box), /^a: box /],
          [Network.partition(network, box, [box]), /^b: .*not in a as well/],
          [Network.partition(network, box, []), /^b: \[\] /]
        ]
      for (const [partition, message] of wrong)
        assert.match((yield* failure("InvalidOption", Effect.scoped(partition))).message, message)

      const scope = yield* Scope.make()
      const short = yield* Network.make().pipe(Scope.extend(scope))
      const boxes = yield* Effect.all([echoing({ network: short }), echoing({ network: short })]).pipe(
        Scope.extend(scope)
      )
      yield* Network.partition(short, ...boxes)
      yield* Scope.close(scope, Exit.void)
      const closed = Effect.scoped(Network.partition(short, ...boxes))
      assert.match((yield* failure("InvalidOption", closed)).message, /^network: .*scope is open/)
    },
    skip
  )
})
