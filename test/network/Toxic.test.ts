import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { type Connection, Container, Network } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { waitUntil } from "../support/until.ts"

/** A client on the host: what it has received so far, and how its connection came to an end. */
interface Client {
  readonly socket: net.Socket
  text: string
  end: string | undefined
}

const clientOf = (socket: net.Socket): Client => {
  const client: Client = { socket, text: "", end: undefined }
  socket.setEncoding("latin1").on("data", (data) => {
    client.text += data
  })
  socket.on("error", (error: NodeJS.ErrnoException) => {
    client.end ??= error.code ?? error.message
  })
  socket.on("end", () => {
    client.end ??= "end"
  })
  return client
}

/** Connects once the port accepts. */
const connect = (to: net.NetConnectOpts): Effect.Effect<Client, unknown, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.retry(
      Effect.tryPromise(
        () =>
          new Promise<Client>((resolve, reject) => {
            const socket = net.connect({ ...to, allowHalfOpen: true })
            socket.once("error", reject)
            socket.once("connect", () => {
              socket.off("error", reject)
              resolve(clientOf(socket))
            })
          })
      ),
      { times: 2000 }
    ),
    ({ socket }) => Effect.sync(() => socket.destroy())
  )

/** Has a client connected, its bytes and the server's taken through once. */
const connected = (port: Connection.PublishedPort) =>
  Effect.gen(function* () {
    const client = yield* connect({ host: port.hostname, port: port.port })
    client.socket.write("first ")
    yield* waitUntil("the first bytes", () => client.text === "first ")
    return client
  })

const published = Effect.gen(function* () {
  const box = yield* Container.start(yield* echoImage, { command: ["/bin/echo", "v4:7"] })
  const port = yield* Container.publish(box, 7)
  return { box, port }
})

/** A scope that the test closes by itself. */
const making = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>) =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    yield* Scope.extend(effect, scope)
    return Scope.close(scope, Exit.void)
  })

const millisOf = (effect: Effect.Effect<unknown, unknown, Scope.Scope>) =>
  Effect.suspend(() => {
    const begun = performance.now()
    return Effect.map(effect, () => performance.now() - begun)
  })

/** Numbers that look random, the same for the same seed. */
const randoms = (seed: number): ((below: number) => number) => {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff
    return Math.floor((state / 0x80000000) * below)
  }
}

suite("faults of a published port", (effect) => {
  effect(
    "latency holds bytes and ends back, and lets them go in their order when its scope closes",
    function* () {
      const { port } = yield* published
      const client = yield* connected(port)
      const undo = yield* making(Network.toxic(port, { latency: "1 hour" }))
      for (const text of ["a", "b", "c"]) client.socket.write(text)
      client.socket.end("d")
      const late = yield* connect({ host: port.hostname, port: port.port })
      late.socket.end("late")
      const other = yield* making(Network.toxic(port, { latency: "50 millis" }))
      yield* other
      assert.equal(client.text, "first ")
      assert.equal(late.text, "")
      yield* undo
      yield* waitUntil("both ends", () => client.end !== undefined && late.end !== undefined)
      assert.deepEqual([client.text, client.end], ["first abcdbye", "end"])
      assert.deepEqual([late.text, late.end], ["latebye", "end"])
    },
    { skip: whyNoBusybox }
  )

  effect(
    "latency takes its time in each direction; those of several scopes add up",
    function* () {
      const { port } = yield* published
      const client = yield* connected(port)
      const roundTrip = Effect.suspend(() => {
        const before = client.text.length
        client.socket.write("x")
        return waitUntil("an answer", () => client.text.length > before)
      })
      const ways = [
        [{ latency: "100 millis" }, 200],
        [{ latency: "100 millis", direction: "up" }, 100],
        [{ latency: "100 millis", jitter: "20 millis", direction: "down" }, 80]
      ] as const
      for (const [options, least] of ways) {
        const took = yield* Effect.scoped(Effect.zipRight(Network.toxic(port, options), millisOf(roundTrip)))
        assert.ok(took >= least - 1, `${took} ms for ${JSON.stringify(options)}`)
      }
      const all = Effect.forEach(ways, ([options]) => Network.toxic(port, options))
      const took = yield* Effect.scoped(Effect.zipRight(all, millisOf(roundTrip)))
      assert.ok(took >= 379, `${took} ms`)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a rate limits each connection",
    function* () {
      const { port } = yield* published
      const client = yield* connected(port)
      yield* Network.toxic(port, { rate: "128KiB", direction: "down" })
      client.socket.end("x".repeat(64 * 1024))
      const took = yield* millisOf(waitUntil("the end", () => client.end === "end"))
      assert.equal(client.text.length, 6 + 64 * 1024 + 3)
      assert.ok(took > 400, `${took} ms`)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "bytes arrive whole and in order whatever changes while they run",
    function* () {
      for (const seed of [1, 2, 3]) {
        const { port } = yield* published
        const random = randoms(seed)
        const bytes = Buffer.from(Array.from({ length: 300_000 }, () => 97 + random(26))).toString("latin1")
        const clients = yield* Effect.all(Array.from({ length: 4 }, () => connected(port)))
        const change = Effect.suspend(() =>
          Effect.scoped(
            Effect.zipRight(
              Network.toxic(port, {
                direction: (["both", "up", "down"] as const)[random(3)]!,
                latency: random(4),
                jitter: random(4),
                ...(random(2) === 0 ? {} : { rate: 100_000 + random(4_000_000) }),
                halfOpen: random(4) === 0
              }),
              Effect.sleep(random(10))
            )
          )
        )
        for (const { socket } of clients) {
          for (let at = 0; at < bytes.length; ) {
            const size = 1 + random(random(2) === 0 ? 100 : 60_000)
            socket.write(bytes.slice(at, at + size))
            at += size
          }
          socket.end()
        }
        const isOver = (): boolean => clients.every(({ end }) => end !== undefined)
        for (let k = 0; k < 60 && !isOver(); k++) yield* change
        yield* waitUntil("the ends", isOver)
        for (const { end, text } of clients) {
          assert.equal(end, "end")
          assert.ok(text === `first ${bytes}bye`, `seed ${seed}: ${text.length} bytes, or others`)
        }
      }
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a reset comes after some bytes, after some time, or at once, to both ends",
    function* () {
      const { port } = yield* published
      const client = yield* connected(port)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Network.toxic(port, { reset: { bytes: 1000 }, direction: "down" })
          client.socket.write("x".repeat(5000))
          yield* waitUntil("the reset", () => client.end !== undefined)
          // A runtime that finds bytes and a reset at once may call it an end; the server has no end to say "bye" after.
          assert.match(client.end ?? "", /^(ECONNRESET|end)$/)
          assert.doesNotMatch(client.text, /bye/)
          assert.ok(client.text.length <= 1006, `${client.text.length} bytes`)
        })
      )
      const idle = yield* connected(port)
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Network.toxic(port, { reset: { after: "50 millis" } })
          yield* waitUntil("the reset", () => idle.end !== undefined)
          assert.equal(idle.end, "ECONNRESET")
        })
      )
      yield* Network.toxic(port, { reset: { after: 0 } })
      const next = yield* connect({ host: port.hostname, port: port.port })
      yield* waitUntil("the reset", () => next.end !== undefined)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a half-open connection tells nothing of its other end, not even its death, until the scope closes",
    function* () {
      const { box, port } = yield* published
      const client = yield* connected(port)
      const alive = yield* connected(port)
      const undo = yield* making(Network.toxic(port, { halfOpen: true }))
      alive.socket.end("hello")
      yield* Container.exec(box, ["sh", "-c", "kill -9 $(pidof echo | tr ' ' '\\n' | grep -vx 1 | tail -1)"])
      // What the kernel has told the proxy by now it would have passed on before it answers this.
      yield* Effect.scoped(Network.toxic(port, { rate: 1_000_000 }))
      assert.deepEqual([client.end, alive.end, alive.text], [undefined, undefined, "first "])
      yield* undo
      yield* waitUntil("both ends", () => client.end !== undefined && alive.end !== undefined)
      assert.deepEqual([alive.text, alive.end], ["first hellobye", "end"])
    },
    { skip: whyNoBusybox }
  )

  effect(
    "a thousand connections with faults are each their own, and a flood is held back",
    function* () {
      const { box, port } = yield* published
      const flooded = yield* connected(port)
      yield* Network.toxic(port, { latency: "20 millis", jitter: "20 millis" })
      const undo = yield* making(Network.toxic(port, { latency: "1 hour", direction: "down" }))
      flooded.socket.pause().write("flood")
      const clients = yield* Effect.all(
        Array.from({ length: 1000 }, () => connect({ host: port.hostname, port: port.port })),
        { concurrency: 50 }
      )
      clients.forEach(({ socket }, k) => socket.end(`number ${k} `))
      yield* undo
      yield* waitUntil("all ends", () => clients.every(({ end }) => end !== undefined))
      assert.deepEqual(
        clients.map(({ text }) => text),
        clients.map((_, k) => `number ${k} bye`)
      )
      const { folder } = box.state.berth.supervisor
      const memory = fs.readdirSync("/proc").flatMap((pid) => {
        try {
          const [program, its] = fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0")
          if (program !== "berth-proxy" || its !== folder) return []
          return [Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))?.[1])]
        } catch {
          return [] // gone, or no process
        }
      })
      // The sanitizers take more.
      if (process.env.BERTH_NATIVE === undefined)
        assert.ok(memory.length > 0 && Math.max(...memory) < 16 * 1024, `${memory} KiB`)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "apply to a published path, and end with what is published",
    function* () {
      const folder = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (made) =>
        Effect.sync(() => remove(made))
      )
      const { box } = yield* published
      const to = yield* Container.publish(box, { container: 7, path: `${folder}/sock` })
      const undo = yield* making(Network.toxic(to, { halfOpen: true }))
      const client = yield* connect({ path: to.path })
      client.socket.end("hello")
      yield* undo
      yield* waitUntil("the end", () => client.end === "end")
      assert.equal(client.text, "hellobye")

      const inner = yield* making(Container.publish(box, 7))
      const scope = yield* Scope.make()
      const port = yield* Scope.extend(Container.publish(box, 7), scope)
      const late = yield* making(Network.toxic(port, { latency: 1 }))
      yield* Scope.close(scope, Exit.void)
      yield* late
      yield* inner
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that cannot be are refused by name",
    function* () {
      const { box, port } = yield* published
      const udp = yield* Container.publish(box, "7/udp")
      const wrong: ReadonlyArray<readonly [Connection.PublishedPort, object, RegExp]> = [
        [udp, { latency: 1 }, /target: .*what `Container.publish`, .* has given, for TCP/],
        [{ ...port }, { latency: 1 }, /target: /],
        [port, { latency: "soon" }, /latency: "soon".*a duration/],
        [port, { latency: "2 hours" }, /latency: "2 hours".*at most an hour/],
        [port, { jitter: "2 hours" }, /jitter: /],
        [port, { rate: 0 }, /rate: 0.*at least one byte a second/],
        [port, { rate: "fast" }, /rate: "fast"/],
        [port, { reset: {} }, /reset: {}.*bytes, after, or both/],
        [port, { reset: { bytes: -1 } }, /reset\.bytes: -1/],
        [port, { direction: "left" }, /direction: "left"/]
      ]
      for (const [to, options, message] of wrong)
        assert.match(
          (yield* failure("InvalidOption", Effect.scoped(Network.toxic(to, options)))).message,
          message
        )
    },
    { skip: whyNoBusybox }
  )
})
