import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Container, Network } from "../../lib/index.ts"
import { echoing, idle, modes } from "../support/boxes.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const ask = (box: Container.Container, address: string, text: string) =>
  Container.exec(box, ["sh", "-c", `echo ${text} | timeout 15 nc -w 15 ${address} 7`])

interface Packet {
  /** In seconds since 1970. */
  readonly time: number
  readonly length: number
  readonly bytes: Uint8Array
}

/** The packets of a pcap file, whose header has to be right. */
const parse = (file: Uint8Array): ReadonlyArray<Packet> => {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const little = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1
  const u32 = (at: number): number => view.getUint32(at, little)
  assert.deepEqual([u32(0), view.getUint16(4, little), view.getUint16(6, little)], [0xa1b23c4d, 2, 4])
  assert.deepEqual([u32(8), u32(12), u32(16), u32(20)], [0, 0, 256 * 1024, 1])
  const packets: Array<Packet> = []
  let at = 24
  while (at < file.length) {
    const [seconds, nanoseconds, captured, length] = [u32(at), u32(at + 4), u32(at + 8), u32(at + 12)]
    assert.ok(nanoseconds < 1e9 && captured === length, `${nanoseconds} ns, ${captured} of ${length} bytes`)
    packets.push({
      time: seconds + nanoseconds / 1e9,
      length,
      bytes: file.slice(at + 16, at + 16 + captured)
    })
    at += 16 + captured
  }
  assert.equal(at, file.length)
  return packets
}

const bytesOf = (parts: Iterable<Uint8Array>): Uint8Array => Buffer.concat([...parts])

/** Where a text is in the packets of IPv4: the sender of each such packet, and the receiver. */
const carriers = (packets: ReadonlyArray<Packet>, text: string): ReadonlyArray<string> =>
  packets
    .map(({ bytes }) => Buffer.from(bytes))
    .filter((bytes) => bytes.readUInt16BE(12) === 0x0800 && bytes.includes(text))
    .map((bytes) => `${[...bytes.subarray(26, 30)].join(".")} > ${[...bytes.subarray(30, 34)].join(".")}`)

suite("a capture", (effect, folder) => {
  for (const [name, options] of modes)
    effect(
      `${name}: has what it sends and receives, with times, and nothing of others`,
      function* () {
        const network = yield* Network.make()
        const server = yield* echoing({ ...options, network })
        const [client, other] = [yield* idle({ ...options, network }), yield* idle({ ...options, network })]
        const [from, to] = [client.state.addresses[0]!, server.state.addresses[0]!]
        yield* ask(client, to, "before")
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const begun = Date.now() / 1000
        const { statistics, stream } = yield* Network.capture(network, client).pipe(Scope.extend(scope))
        yield* ask(client, to, "during")
        yield* ask(other, to, "beside")
        // Nothing in the container says that there is a reader.
        const seen = yield* Container.exec(client, ["cat", "/proc/net/packet"])
        assert.equal(seen.stdout.trim().split("\n").length, 1, seen.stdout)
        yield* Scope.close(scope, Exit.void)
        yield* ask(client, to, "after")
        const packets = parse(bytesOf(yield* Stream.runCollect(stream)))
        assert.deepEqual(carriers(packets, "during"), [`${from} > ${to}`, `${to} > ${from}`])
        for (const text of ["before", "beside", "after"]) assert.deepEqual(carriers(packets, text), [])
        for (const { time } of packets)
          assert.ok(time >= begun - 1 && time <= Date.now() / 1000 + 1, `${time} is not now, ${begun}`)
        assert.deepEqual(yield* statistics, { packets: packets.length, dropped: 0 })
        const twice = yield* failure("ContainerError", Stream.runDrain(stream))
        assert.equal(twice.reason, "AlreadyRead")
      },
      skip
    )

  effect(
    "is read while packets come, and ends when the container is gone",
    function* () {
      const network = yield* Network.make()
      const server = yield* echoing({ network })
      const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
      const client = yield* idle({ network }).pipe(Scope.extend(scope))
      const { stream } = yield* Network.capture(network, client)
      const came = yield* Deferred.make<void>()
      const parts: Array<Uint8Array> = []
      const reader = yield* Effect.fork(
        Stream.runForEach(stream, (bytes) => {
          parts.push(bytes)
          return carriers(parse(bytesOf(parts)), "hello").length === 2
            ? Deferred.succeed(came, undefined)
            : Effect.void
        })
      )
      yield* ask(client, server.state.addresses[0]!, "hello")
      yield* Effect.timeout(Deferred.await(came), "15 seconds")
      yield* Scope.close(scope, Exit.void)
      yield* Effect.timeout(Fiber.join(reader), "15 seconds")
    },
    skip
  )

  effect(
    "that nobody reads is bounded: packets are dropped and counted, and the container is not slowed down",
    function* () {
      const network = yield* Network.make()
      const server = yield* echoing({ network })
      const client = yield* idle({ network })
      const { statistics, stream } = yield* Effect.scoped(
        Effect.gen(function* () {
          const capture = yield* Network.capture(network, client)
          const flood = `echo flood | timeout 60 nc ${server.state.addresses[0]} 7 | head -c 200000000 | wc -c`
          const { stdout } = yield* Container.exec(client, ["sh", "-c", flood])
          assert.equal(stdout, "200000000\n")
          return capture
        })
      )
      const { dropped, packets } = yield* statistics
      assert.ok(dropped > 0)
      const file = bytesOf(yield* Stream.runCollect(stream))
      assert.ok(file.length < 32 * 1024 ** 2, `${file.length} bytes`)
      assert.equal(parse(file).length, packets)
    },
    skip
  )

  effect(
    "to a file is complete once the scope has closed, and tcpdump reads it",
    function* () {
      const network = yield* Network.make()
      const server = yield* echoing({ network })
      const client = yield* idle({ network })
      const to = server.state.addresses[0]!
      const path = `${folder()}/client.pcap`
      const { statistics } = yield* Effect.scoped(
        Effect.gen(function* () {
          const capture = yield* Network.captureToFile(network, client, path)
          for (const text of ["first", "second"]) yield* ask(client, to, text)
          return capture
        })
      )
      const packets = parse(fs.readFileSync(path))
      assert.deepEqual(yield* statistics, { packets: packets.length, dropped: 0 })
      for (const text of ["first", "second"]) assert.equal(carriers(packets, text).length, 2)
      if (!fs.existsSync("/usr/bin/tcpdump") && !fs.existsSync("/usr/sbin/tcpdump")) return
      const options = { encoding: "utf8", env: { PATH: "/usr/sbin:/usr/bin" }, stdio: "pipe" } as const
      const text = execFileSync("tcpdump", ["-n", "-e", "--nano", "-r", path], options)
      assert.equal(text.trim().split("\n").length, packets.length)
      assert.match(
        text,
        new RegExp(`ethertype IPv4 .* ${client.state.addresses[0]}\\.\\d+ > ${to}\\.7: Flags \\[S\\]`)
      )
    },
    skip
  )

  effect(
    "of what is no container of the network, or to what is no file, is refused by name",
    function* () {
      const network = yield* Network.make({ name: "lab" })
      const stranger = yield* idle({})
      const member = yield* idle({ network })
      const error = yield* failure("InvalidOption", Effect.scoped(Network.capture(network, stranger)))
      assert.match(error.message, /^container: .*this network, lab/)
      const file = Effect.scoped(Network.captureToFile(network, member, "/missing/x.pcap"))
      assert.match((yield* failure("OperationFailed", file)).message, /x\.pcap: open: ENOENT/)
    },
    skip
  )
})
