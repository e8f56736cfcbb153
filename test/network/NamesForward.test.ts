import assert from "node:assert/strict"
import * as dgram from "node:dgram"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import {
  ask,
  askByTcp,
  brief,
  decode,
  exchange,
  makeResponder,
  prefixed,
  question,
  type Type
} from "../support/dns.ts"
import { suite } from "../support/effect.ts"
import { sleep } from "../support/leftovers.ts"

const promise = <A>(body: () => Promise<A>): Effect.Effect<A> => Effect.promise(body)

/** Another server, to which questions are passed on: each message goes to `take` with a function that answers it. */
const upstream = (
  take: (asked: Buffer, answer: (message: Buffer) => void, by: "udp" | "tcp", port: number) => void
) =>
  Effect.acquireRelease(
    promise(async () => {
      const udp = dgram.createSocket("udp4")
      udp.on("message", (asked, from) =>
        take(Buffer.from(asked), (message) => udp.send(message, from.port, "127.0.0.1"), "udp", from.port)
      )
      await new Promise<void>((resolve) => udp.bind(0, "127.0.0.1", resolve))
      const { port } = udp.address()
      const sockets = new Set<net.Socket>()
      const tcp = net.createServer((socket) => {
        sockets.add(socket)
        socket.on("error", () => {})
        let came: Buffer = Buffer.alloc(0)
        socket.on("data", (data) => {
          came = Buffer.concat([came, data])
          if (came.length >= 2 && came.length >= 2 + came.readUInt16BE(0))
            take(came.subarray(2), (message) => socket.write(prefixed(message)), "tcp", 0)
        })
      })
      await new Promise<void>((resolve) => tcp.listen(port, "127.0.0.1", resolve))
      return { port, udp, tcp, sockets }
    }),
    ({ sockets, tcp, udp }) =>
      promise(async () => {
        udp.close()
        for (const socket of sockets) socket.destroy()
        await new Promise((resolve) => tcp.close(resolve))
      })
  )

/** The answer 192.0.2.1 to a question that has no OPT record. */
const answerTo = (asked: Buffer, address = [192, 0, 2, 1]): Buffer => {
  const answer = Buffer.concat([asked, Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address])])
  answer.writeUInt16BE(0x8180, 2)
  answer.writeUInt16BE(1, 6)
  return answer
}

const CLOSED_PORT = 1 // no program listens on it

suite("questions that the responder for names passes on", (effect) => {
  effect("passes on what it does not know, under another id and from another port each time", function* () {
    const { serve, tell } = yield* makeResponder
    const seen: Array<{ id: number; port: number; by: string; name: string | undefined }> = []
    const other = yield* upstream((asked, answer, by, port) => {
      seen.push({ id: asked.readUInt16BE(0), port, by, name: decode(asked).name })
      answer(answerTo(asked))
    })
    const port = serve(1)
    tell("name 1 1 db 10.89.0.2")
    tell(`forward 1 127.0.0.1 ${other.port}`)
    yield* promise(async () => {
      for (let k = 0; k < 20; k++) {
        const answer = await ask(port, "Example.COM", "A", { id: k })
        assert.deepEqual([answer.id, answer.name, brief(answer)], [k, "Example.COM", "NOERROR 192.0.2.1"])
      }
      assert.ok(new Set(seen.map(({ id }) => id)).size > 15)
      assert.ok(new Set(seen.map(({ port }) => port)).size > 15)
      seen.length = 0
      const [tcp] = await askByTcp(port, question("example.com", "A", { id: 7 }))
      assert.deepEqual([tcp!.id, brief(tcp!)], [7, "NOERROR 192.0.2.1"])
      assert.deepEqual(
        seen.map(({ by }) => by),
        ["tcp"]
      )
      seen.length = 0
      const own: ReadonlyArray<readonly [string, Type, string]> = [
        ["db", "A", "NOERROR 10.89.0.2"],
        ["db", "TXT", "NOERROR -"],
        ["localhost", "TXT", "NOERROR -"],
        ["any.localhost", "A", "NOERROR 127.0.0.1"],
        ["9.0.0.127.in-addr.arpa", "PTR", "NXDOMAIN -"],
        ["example.com", "ANY", "NOTIMP "]
      ]
      for (const [name, type, answer] of own) assert.equal(brief(await ask(port, name, type)), answer, name)
      assert.deepEqual(seen, [], "what the network answers itself is not passed on")
      const [closed, both] = [serve(2, { networks: [2] }), serve(3, { networks: [2, 1] })]
      assert.equal(brief(await ask(closed, "example.com")), "NXDOMAIN -")
      assert.deepEqual(seen, [], "nothing of a network that has no servers is passed on")
      assert.equal(brief(await ask(both, "example.com")), "NOERROR 192.0.2.1")
      for (const end of ["forward 1", "forget 1"]) {
        tell(`forward 1 127.0.0.1 ${other.port}`)
        assert.equal(brief(await ask(port, "example.com")), "NOERROR 192.0.2.1")
        tell(end)
        assert.equal(brief(await ask(port, "example.com")), "NXDOMAIN -")
      }
    })
  })

  effect("passes back only the answer to the question, and SERVFAIL after 3 s", function* () {
    const { serve, tell } = yield* makeResponder
    const elsewhere = dgram.createSocket("udp4")
    yield* Effect.addFinalizer(() => Effect.sync(() => elsewhere.close()))
    const other = yield* upstream((asked, answer, by, port) => {
      if (decode(asked).name === "silent.test") return
      if (by === "udp") elsewhere.send(answerTo(asked, [192, 0, 2, 65]), port, "127.0.0.1")
      const wrongId = answerTo(asked, [192, 0, 2, 66])
      wrongId.writeUInt16BE(asked.readUInt16BE(0) ^ 1, 0)
      answer(wrongId)
      const wrongName = answerTo(asked, [192, 0, 2, 67])
      wrongName[13]! ^= 1
      answer(wrongName)
      answer(Buffer.concat([asked]))
      answer(Buffer.alloc(3))
      setTimeout(() => answer(answerTo(asked)), 20)
    })
    const port = serve(1)
    tell(`forward 1 127.0.0.1 ${other.port}`)
    yield* promise(async () => {
      assert.equal(brief(await ask(port, "example.com")), "NOERROR 192.0.2.1")
      for (const by of ["udp", "tcp"]) {
        const begun = Date.now()
        const asked = question("silent.test", "A", { size: 1232 })
        const answer =
          by === "udp" ? decode((await exchange(port, asked))!) : (await askByTcp(port, asked))[0]!
        assert.equal(brief(answer), "SERVFAIL ")
        assert.ok(Date.now() - begun > 2800, `${by}: after ${Date.now() - begun} ms`)
      }
    })
  })

  effect("asks the next server where one does not answer, and cuts what is too long", function* () {
    const { serve, tell } = yield* makeResponder
    const silent = yield* upstream(() => {})
    const other = yield* upstream((asked, answer, by) =>
      answer(by === "udp" ? Buffer.concat([answerTo(asked), Buffer.alloc(1000)]) : answerTo(asked))
    )
    const port = serve(1)
    yield* promise(async () => {
      tell(`forward 1 127.0.0.1 ${CLOSED_PORT} 127.0.0.1 ${other.port}`)
      const begun = Date.now()
      const cut = await ask(port, "example.com")
      assert.deepEqual([brief(cut), cut.truncated], ["NOERROR ", true])
      assert.equal(brief((await askByTcp(port, question("example.com")))[0]!), "NOERROR 192.0.2.1")
      assert.ok(Date.now() - begun < 1000, "a refusal is noticed at once")
      tell(`forward 1 127.0.0.1 ${silent.port} 127.0.0.1 ${other.port}`)
      assert.equal((await ask(port, "example.com")).truncated, true)
      assert.equal(brief((await askByTcp(port, question("example.com")))[0]!), "NOERROR 192.0.2.1")
      tell(`forward 1 127.0.0.1 ${CLOSED_PORT}`)
      assert.equal(brief(await ask(port, "example.com")), "SERVFAIL ")
    })
  })

  effect("a container has 64 questions on their way, and cannot keep others from theirs", function* () {
    const { serve, tell } = yield* makeResponder
    const waiting: Array<() => void> = []
    let released = false
    const other = yield* upstream((asked, answer) => {
      if (released || decode(asked).name === "quick.test") answer(answerTo(asked))
      else waiting.push(() => answer(answerTo(asked)))
    })
    tell(`forward 1 127.0.0.1 ${other.port}`)
    const ports = Array.from({ length: 10 }, (_, k) => serve(k + 1))
    yield* promise(async () => {
      let ended = 0
      const greedy = ports.slice(0, 9).map((port) =>
        Promise.all(
          Array.from({ length: 80 }, (_, id) =>
            ask(port, "slow.test", "A", { id }).finally(() => {
              ended++
            })
          )
        )
      )
      while (ended < 9 * 80 - 512) await sleep(1)
      assert.equal(brief(await ask(ports[9]!, "quick.test")), "NOERROR 192.0.2.1")
      released = true
      for (const answer of waiting) answer()
      for (const answers of await Promise.all(greedy)) {
        const good = answers.filter(({ code }) => code === "NOERROR").length
        assert.ok(good >= 40 && good <= 64, `${good} were passed on`)
        assert.equal(answers.filter(({ code }) => code === "SERVFAIL").length, 80 - good)
      }
      tell("leave 1")
      assert.equal(brief(await ask(ports[1]!, "quick.test")), "NOERROR 192.0.2.1")
    })
  })
})
