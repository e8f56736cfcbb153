import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as dns from "node:dns"
import * as fs from "node:fs"
import * as net from "node:net"
import * as os from "node:os"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import fc from "fast-check"
import { Container, Image, Mount } from "../../lib/index.ts"
import { native } from "../../lib/internal/system/addon.ts"
import { compile } from "../support/attack.ts"
import {
  ask,
  askByTcp,
  bound,
  brief,
  connect,
  decode,
  exchange,
  makeResponder,
  prefixed,
  question,
  SOCK_DGRAM,
  SOCK_STREAM,
  shortest,
  type Type
} from "../support/dns.ts"
import { suite } from "../support/effect.ts"
import { sleep } from "../support/leftovers.ts"
import { ended, firstLine } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const promise = <A>(body: () => Promise<A>): Effect.Effect<A> => Effect.promise(body)

/** Questions without end from a program that reads no answer, which ends with the scope. */
const flood = (asker: string, port: number, name: string) =>
  Effect.acquireRelease(
    promise(async () => {
      const child = spawn(asker, ["flood", String(port), name])
      await firstLine(child)
      return child
    }),
    (child) =>
      promise(async () => {
        const end = ended(child)
        child.kill("SIGKILL")
        await end
      })
  )

const labels = fc.string({
  unit: fc.constantFrom(..."abcdefghijklmnopqrstuvwxyz0123456789-_"),
  minLength: 1,
  maxLength: 63
})
const names = fc
  .array(labels, { minLength: 1, maxLength: 6 })
  .map((parts) => parts.join("."))
  .filter((name) => name.length <= 253 && !/(^|\.)localhost$/.test(name))

suite("the responder for names", (effect, folder) => {
  const asker = (): string => {
    const path = `${folder()}/asker`
    if (!fs.existsSync(path)) compile(path, "asker.c")
    return path
  }

  effect(
    "answers A, AAAA and PTR; a known name without that type is NODATA, an unknown one NXDOMAIN",
    function* () {
      const { serve, tell } = yield* makeResponder
      const port = serve(1)
      tell("name 1 1 db 10.89.0.2 fd00::2")
      tell("name 1 2 mock.test 10.89.0.3")
      const expected: ReadonlyArray<readonly [string, Type, string]> = [
        ["db", "A", "NOERROR 10.89.0.2"],
        ["db", "AAAA", "NOERROR fd00::2"],
        ["dB", "A", "NOERROR 10.89.0.2"],
        ["mock.test", "A", "NOERROR 10.89.0.3"],
        ["mock.test", "AAAA", "NOERROR -"],
        ["db", "MX", "NOERROR -"],
        ["test", "A", "NXDOMAIN -"],
        ["d", "A", "NXDOMAIN -"],
        ["", "NS", "NXDOMAIN -"],
        ["2.0.89.10.in-addr.arpa", "PTR", "NOERROR db"],
        ["2.0.89.10.IN-addr.ARPA", "PTR", "NOERROR db"],
        ["2.0.89.10.in-addr.arpa", "A", "NOERROR -"],
        ["02.0.89.10.in-addr.arpa", "PTR", "NXDOMAIN -"],
        ["258.0.89.10.in-addr.arpa", "PTR", "NXDOMAIN -"],
        ["0.89.10.in-addr.arpa", "PTR", "NXDOMAIN -"],
        ["9.2.0.89.10.in-addr.arpa", "PTR", "NXDOMAIN -"],
        [`2.${"0.".repeat(29)}d.f.ip6.arpa`, "PTR", "NOERROR db"],
        [`3.${"0.".repeat(29)}d.f.ip6.arpa`, "PTR", "NXDOMAIN -"],
        [`${"0.".repeat(29)}d.f.ip6.arpa`, "PTR", "NXDOMAIN -"],
        ["localhost", "A", "NOERROR 127.0.0.1"],
        ["any.LOCALHOST", "AAAA", "NOERROR ::1"],
        ["1.0.0.127.in-addr.arpa", "PTR", "NOERROR localhost"]
      ]
      yield* promise(async () => {
        for (const [name, type, answer] of expected) {
          const udp = await ask(port, name, type)
          assert.equal(brief(udp), answer, `${type} ${name}`)
          assert.equal(udp.name, name, "the answer has the spelling of the question")
          assert.equal(udp.flags & 0x8580, 0x8580)
          assert.deepEqual([...new Set(udp.ttls)], [0])
          assert.equal(udp.opt, undefined)
          const [tcp] = await askByTcp(port, question(name, type, { size: 512 }))
          assert.equal(brief(tcp!), answer, `${type} ${name} by TCP`)
          assert.equal(tcp!.opt, 4096)
        }
      })
    }
  )

  effect(
    "a name is known from the message on, and until it is removed or its container leaves",
    function* () {
      const { serve, tell } = yield* makeResponder
      const port = serve(1)
      const other = serve(2)
      yield* promise(async () => {
        for (let k = 0; k < 100; k++) {
          tell(`name 1 2 box${k} 10.89.0.${k}`)
          assert.equal(brief(await ask(port, `box${k}`)), `NOERROR 10.89.0.${k}`)
        }
        tell("name 1 2 box1 10.89.1.1")
        tell("name 1 2 box2")
        assert.equal(brief(await ask(port, "box1")), "NOERROR 10.89.1.1")
        assert.equal(brief(await ask(port, "box2")), "NXDOMAIN -")
        tell("forget 1 2")
        tell("leave 2")
        for (const name of ["box0", "box1", "box99"]) assert.equal(brief(await ask(port, name)), "NXDOMAIN -")
        assert.equal(brief(await ask(port, "1.1.89.10.in-addr.arpa", "PTR")), "NXDOMAIN -")
        assert.equal(await exchange(other, question("box0"), 200).catch(() => undefined), undefined)
      })
    }
  )

  effect("a container's sockets are closed although somebody else has them as well", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    const [listener, own] = bound(-1, SOCK_STREAM, "127.0.0.1", 0)
    const [udp] = bound(-1, SOCK_DGRAM, "127.0.0.1", own)
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        native().close(listener)
        native().close(udp)
      })
    )
    tell("name 1 1 db 10.89.0.2")
    yield* promise(async () => {
      for (const end of ["leave 2", "serve 2"]) {
        tell("serve 2 1", [udp, listener])
        assert.equal(brief(await ask(own, "db")), "NOERROR 10.89.0.2")
        if (end === "leave 2") tell(end)
        else serve(2)
        assert.equal(await exchange(own, question("db"), 100), undefined)
        await connect(own).then(({ socket }) => socket.destroy())
        assert.equal(brief(await ask(port, "db")), "NOERROR 10.89.0.2")
        const stale = new Uint8Array(64)
        while (native().read(udp, stale) > 0);
      }
    })
  })

  effect("all containers of a name are answered, each of them first in turn", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    for (const id of [1, 2, 3]) tell(`name 1 ${id} web 10.89.0.${id}`)
    yield* promise(async () => {
      const answers = [await ask(port, "web"), await ask(port, "web"), await ask(port, "web")]
      for (const answer of answers) assert.equal(brief(answer), "NOERROR 10.89.0.1 10.89.0.2 10.89.0.3")
      assert.equal(new Set(answers.map(({ answers }) => answers[0])).size, 3)
      tell("forget 1 2")
      assert.equal(brief(await ask(port, "web")), "NOERROR 10.89.0.1 10.89.0.3")
    })
  })

  effect(
    "a container sees the names of its networks and no others, whatever it asks, and however often they change",
    function* () {
      const { serve, tell } = yield* makeResponder
      const [one, two, both, none] = [
        serve(1, { networks: [1] }),
        serve(2, { networks: [2] }),
        serve(3, { networks: [2, 1] }),
        serve(4, { networks: [] })
      ] as const
      const reverse = (last: number): string => `${last}.0.89.10.in-addr.arpa`
      tell("name 1 1 db,first 10.89.0.1 fd00::1")
      tell("name 2 1 db,second 10.89.0.2")
      // The same address on two networks: each has the name of its own.
      tell("name 1 7 here 10.89.0.7")
      tell("name 2 8 there 10.89.0.7")
      const expect = async (port: number, answers: Readonly<Record<string, string>>): Promise<void> => {
        for (const [name, answer] of Object.entries(answers)) {
          const type: Type = name.endsWith(".arpa") ? "PTR" : "A"
          assert.equal(brief(await ask(port, name, type)), answer, name)
          const [tcp] = await askByTcp(port, question(name, type))
          assert.equal(brief(tcp!), answer, `${name} by TCP`)
        }
      }
      yield* promise(async () => {
        await expect(one, {
          db: "NOERROR 10.89.0.1",
          first: "NOERROR 10.89.0.1",
          second: "NXDOMAIN -",
          there: "NXDOMAIN -",
          [reverse(1)]: "NOERROR db first",
          [reverse(2)]: "NXDOMAIN -",
          [reverse(7)]: "NOERROR here"
        })
        // Another type of a name that is not seen does not tell that it exists.
        for (const type of ["AAAA", "TXT", "PTR"] as const)
          assert.equal(brief(await ask(two, "first", type)), "NXDOMAIN -", type)
        await expect(two, { db: "NOERROR 10.89.0.2", first: "NXDOMAIN -", [reverse(7)]: "NOERROR there" })
        await expect(both, {
          db: "NOERROR 10.89.0.1 10.89.0.2",
          first: "NOERROR 10.89.0.1",
          second: "NOERROR 10.89.0.2",
          [reverse(7)]: "NOERROR here there"
        })
        await expect(none, { db: "NXDOMAIN -", localhost: "NOERROR 127.0.0.1", [reverse(1)]: "NXDOMAIN -" })
        tell("see 1 2")
        tell("see 3 1")
        tell("see 4 1 2")
        await expect(one, { db: "NOERROR 10.89.0.2", first: "NXDOMAIN -" })
        await expect(both, { db: "NOERROR 10.89.0.1", second: "NXDOMAIN -" })
        await expect(none, { db: "NOERROR 10.89.0.1 10.89.0.2" })
        tell("forget 2 1")
        await expect(none, { db: "NOERROR 10.89.0.1", there: "NOERROR 10.89.0.7" })
        tell("forget 2")
        await expect(none, { db: "NOERROR 10.89.0.1", there: "NXDOMAIN -", [reverse(7)]: "NOERROR here" })
        // What is no list of networks changes nothing.
        for (const list of ["x", "0", "4294967296", Array.from({ length: 65 }, (_, k) => k + 1).join(" ")])
          tell(`see 4 ${list}`)
        await expect(none, { db: "NOERROR 10.89.0.1" })
        tell("see 4")
        await expect(none, { db: "NXDOMAIN -" })
      })
    }
  )

  effect(
    "an answer that is larger than the asker takes is cut and says so; by TCP it is whole",
    function* () {
      const { serve, tell } = yield* makeResponder
      const port = serve(1)
      for (let id = 1; id <= 200; id++) tell(`name 1 ${id} web 10.89.0.${id}`)
      yield* promise(async () => {
        const sizes = [undefined, 0, 512, 1232, 4096, 65535]
        for (const size of sizes) {
          const answer = await ask(port, "web", "A", size === undefined ? {} : { size })
          const limit = Math.min(4096, Math.max(512, size ?? 0))
          const room = Math.floor((limit - 12 - 9 - (size === undefined ? 0 : 11)) / 16)
          assert.equal(answer.answers.length, Math.min(200, room), `size ${size}`)
          assert.equal(answer.truncated, room < 200)
          assert.ok(answer.bytes.length <= limit)
        }
        const [whole] = await askByTcp(port, question("web"))
        assert.equal(new Set(whole!.answers).size, 200)
        assert.equal(whole!.truncated, false)
        for (let id = 1; id <= 80; id++)
          tell(`name 1 ${id} huge ${Array.from({ length: 64 }, (_, k) => `10.90.${id}.${k}`).join(" ")}`)
        const [huge] = await askByTcp(port, question("huge"))
        assert.equal(new Set(huge!.answers).size, Math.floor((65535 - 12 - 10) / 16))
        assert.equal(huge!.truncated, true)
      })
    }
  )

  effect("refuses what is no plain question, and does not answer answers", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    tell("name 1 1 db 10.89.0.2")
    const good = question("db")
    const changed = (at: number, value: number): Buffer => {
      const bytes = Buffer.from(good)
      bytes.writeUInt16BE(value, at)
      return bytes
    }
    const named = (...name: ReadonlyArray<number>): Buffer =>
      Buffer.from([...good.subarray(0, 12), ...name, 0, 1, 0, 1])
    const long = Array.from({ length: 4 }, () => "x".repeat(63)).join(".")
    const cases: ReadonlyArray<readonly [string, Buffer, string | undefined]> = [
      ["an answer", changed(2, 0x8100), undefined],
      ["an empty message", Buffer.alloc(0), undefined],
      ["half a header", good.subarray(0, 11), undefined],
      ["more than any question has", Buffer.concat([good, Buffer.alloc(1024)]), undefined],
      ["a header alone", changed(4, 0).subarray(0, 12), "FORMERR"],
      ["two questions", changed(4, 2), "FORMERR"],
      ["an answer section", changed(6, 1), "FORMERR"],
      ["an authority section", changed(8, 1), "FORMERR"],
      ["two additional records", changed(10, 2), "FORMERR"],
      ["an additional record that is not there", changed(10, 1), "FORMERR"],
      ["a byte too many", Buffer.concat([good, Buffer.alloc(1)]), "FORMERR"],
      ["a byte too few", good.subarray(0, -1), "FORMERR"],
      ["a pointer to itself", named(0xc0, 12), "FORMERR"],
      ["a pointer behind a label", named(1, 97, 0xc0, 12), "FORMERR"],
      ["a reserved kind of label", named(0x41, 97, 0), "FORMERR"],
      ["a name without an end", named(60, 97, 0), "FORMERR"],
      ["a name of 257 bytes", question(long), "FORMERR"],
      [
        "an OPT record of another length",
        Buffer.concat([question("db", "A", { size: 512 }), Buffer.alloc(1)]),
        "FORMERR"
      ],
      ["a version of EDNS that does not exist", question("db", "A", { size: 512, version: 1 }), "BADVERS"],
      ["an update", changed(2, 0x2800), "NOTIMP"],
      ["ANY", question("db", "ANY"), "NOTIMP"],
      ["a transfer", question("db", "AXFR"), "NOTIMP"],
      ["another class", question("db", "A", { class: 3 }), "REFUSED"],
      ["a NUL in a name", named(3, 100, 0, 98, 0), "NXDOMAIN"],
      ["a dot in a label", named(4, 109, 46, 116, 116, 0), "NXDOMAIN"]
    ]
    yield* promise(async () => {
      for (const [what, bytes, code] of cases) {
        const answer = await exchange(port, bytes, code === undefined ? 100 : 5000)
        assert.equal(answer === undefined ? undefined : decode(answer).code, code, what)
        if (answer !== undefined) assert.equal(decode(answer).id, 0x1234)
        assert.ok(
          (answer?.length ?? 0) <= Math.max(bytes.length + 33, 12),
          `${what}: the answer is no larger`
        )
      }
      assert.equal(brief(await ask(port, "db")), "NOERROR 10.89.0.2")
    })
  })

  effect("any names and addresses are found as they were told", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    const v6 = fc
      .array(fc.nat(0xffff), { minLength: 8, maxLength: 8 })
      .map((groups) => shortest(groups.map((group) => group.toString(16)).join(":")))
    const address = fc.oneof(fc.ipV4(), v6)
    const records = fc.uniqueArray(
      fc.record({ name: names, addresses: fc.uniqueArray(address, { minLength: 1, maxLength: 5 }) }),
      { selector: ({ name }) => name, maxLength: 5 }
    )
    yield* promise(() =>
      fc.assert(
        fc.asyncProperty(records, names, async (known, other) => {
          for (const { addresses, name } of known) tell(`name 1 2 ${name} ${addresses.join(" ")}`)
          for (const { addresses, name } of known) {
            const of = (isRight: (address: string) => boolean) => addresses.filter(isRight).sort()
            assert.deepEqual([...(await ask(port, name, "A")).answers].sort(), of(net.isIPv4))
            assert.deepEqual(
              [...(await ask(port, name.toUpperCase(), "AAAA")).answers].sort(),
              of(net.isIPv6)
            )
          }
          const expected = known.some(({ name }) => name === other) ? "NOERROR" : "NXDOMAIN"
          assert.equal((await ask(port, other, "TXT")).code, expected)
          tell("forget 1 2")
          for (const { name } of known) assert.equal((await ask(port, name)).code, "NXDOMAIN")
        }),
        { numRuns: 60 }
      )
    )
  })

  effect(
    "whatever bytes come, by UDP or TCP or as a control message, the next question is answered",
    function* () {
      const { serve, tell } = yield* makeResponder
      const port = serve(1)
      tell("name 1 1 db 10.89.0.2")
      const bytes = fc.oneof(
        fc.uint8Array({ maxLength: 300 }),
        fc
          .tuple(fc.constant(question("db", "A", { size: 1232 })), fc.nat(45), fc.nat(255))
          .map(([good, at, value]) => {
            const changed = Uint8Array.from(good)
            changed[at % changed.length] = value
            return changed
          })
      )
      const word = fc.oneof(
        fc.constantFrom(
          "serve",
          "name",
          "leave",
          "see",
          "forget",
          "forward",
          "2",
          "0",
          "4294967296",
          "db",
          "",
          "::1",
          "53"
        ),
        fc.string({ maxLength: 300 })
      )
      yield* promise(() =>
        fc.assert(
          fc.asyncProperty(bytes, fc.array(word, { maxLength: 6 }), async (message, words) => {
            const answer = await exchange(port, message, 2)
            if (answer !== undefined) decode(answer)
            const { socket } = await connect(port)
            socket.end(message)
            if (words.length > 0) tell(` ${words.join(" ")}`)
            tell("see 1 1")
            tell("name 1 1 db 10.89.0.2")
            tell("forward 1")
            assert.match(brief(await ask(port, "db")), /^NOERROR .*10\.89\.0\.2/)
            socket.destroy()
          }),
          { numRuns: 100 }
        )
      )
      tell(new Uint8Array(9000).fill(97))
      tell(new TextEncoder().encode("leave 1\0"))
      tell("leave 1 1")
      tell("serve 1")
      yield* promise(async () => assert.match(brief(await ask(port, "db")), /10\.89\.0\.2/))
    }
  )

  effect("by TCP: questions one after the other, in parts, and after the other half has ended", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    tell("name 1 1 db 10.89.0.2")
    yield* promise(async () => {
      const many = Array.from({ length: 50 }, (_, id) => question(id % 2 ? "db" : "no", "A", { id }))
      assert.deepEqual(
        (await askByTcp(port, ...many)).map(({ code, id }) => `${id} ${code}`),
        many.map((_, id) => `${id} ${id % 2 ? "NOERROR" : "NXDOMAIN"}`)
      )
      const { next, socket } = await connect(port)
      socket.setNoDelay()
      for (const byte of prefixed(question("db"))) {
        socket.write(Buffer.from([byte]))
        await sleep(1)
      }
      assert.equal(brief(decode((await next())!)), "NOERROR 10.89.0.2")
      socket.end(prefixed(question("db")))
      assert.equal(brief(decode((await next())!)), "NOERROR 10.89.0.2")
      assert.equal(await next(), undefined)
      for (const bad of [Buffer.from([255, 255]), prefixed(Buffer.alloc(1025))]) {
        const { next, socket } = await connect(port)
        socket.write(bad)
        assert.equal(await next(), undefined, "a message that is too long ends the connection")
        socket.destroy()
      }
      socket.destroy()
    })
  })

  effect("a container has 16 connections, of which the idle ones make room, and each for 10 s", function* () {
    const { serve, tell, unit } = yield* makeResponder
    const port = serve(1)
    tell("name 1 1 db 10.89.0.2")
    yield* promise(async () => {
      const descriptors = (): number => fs.readdirSync(`/proc/${unit.pid}/fd`).length
      await ask(port, "db")
      const before = descriptors()
      const idle = []
      for (let k = 0; k < 40; k++) idle.push(await connect(port))
      const begun = Date.now()
      assert.equal(brief((await askByTcp(port, question("db")))[0]!), "NOERROR 10.89.0.2")
      assert.ok(descriptors() <= before + 16, `${descriptors()} descriptors`)
      // One that sends a byte now and then is idle as well.
      const slow = await connect(port)
      slow.socket.on("error", () => {})
      const timer = setInterval(() => slow.socket.write(Buffer.from([0])), 4000)
      slow.socket.write(Buffer.from([4]))
      assert.equal(await slow.next(), undefined)
      clearInterval(timer)
      const millis = Date.now() - begun
      assert.ok(millis > 9000 && millis < 15_000, `after ${millis} ms`)
      await sleep(200)
      assert.equal(descriptors(), before)
      for (const { socket } of [...idle, slow]) socket.destroy()
    })
  })

  effect("a client that reads no answers harms itself alone", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    for (let id = 1; id <= 64; id++)
      tell(`name 1 ${id} web ${Array.from({ length: 50 }, (_, k) => `10.90.${id}.${k}`).join(" ")}`)
    yield* promise(async () => {
      const { socket } = await connect(port)
      socket.on("error", () => {})
      socket.pause()
      for (let k = 0; k < 2000; k++) socket.write(prefixed(question("web")))
      for (let k = 0; k < 20; k++)
        assert.equal((await askByTcp(port, question("web")))[0]!.answers.length, 3200)
      socket.destroy()
    })
  })

  effect("a flood of one container's delays no other's lookups, and memory does not grow", function* () {
    const { serve, tell, unit } = yield* makeResponder
    const [port, flooded, passing] = [serve(1), serve(2), serve(3)]
    tell("name 1 1 db 10.89.0.2")
    const resident = (): number =>
      Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${unit.pid}/status`, "utf8"))![1])
    const lookups = promise(async () => {
      const { code, stdout } = await ended(spawn(asker(), ["time", String(port), "5000"]))
      assert.equal(code, 0)
      return stdout.trim().split(" ").map(Number)
    })
    yield* promise(() => ask(flooded, "db"))
    const before = resident()
    const quiet = yield* lookups
    yield* flood(asker(), flooded, "db")
    yield* flood(asker(), passing, "unknown")
    yield* Effect.sleep(300)
    const beside = yield* lookups
    console.log(`# lookups in µs, p50, p99, most: ${quiet.join(" ")}; beside a flood: ${beside.join(" ")}`)
    assert.ok(beside[0]! < 5000, `${beside[0]} µs at p50`)
    assert.ok(resident() < before + 1024, `${resident() - before} KiB more`)
  })

  effect("ends with its control socket", function* () {
    const { hangUp, serve, unit } = yield* makeResponder
    yield* promise(() => ask(serve(1), "db"))
    hangUp()
    yield* Effect.timeout(Deferred.await(unit.ended), "5 seconds")
  })

  effect("node:dns asks it", function* () {
    const { serve, tell } = yield* makeResponder
    const port = serve(1)
    tell("name 1 1 db 10.89.0.2 10.89.0.3 fd00::2")
    const resolver = new dns.promises.Resolver({ timeout: 2000, tries: 1 })
    resolver.setServers([`127.0.0.1:${port}`])
    yield* promise(async () => {
      assert.deepEqual((await resolver.resolve4("db")).sort(), ["10.89.0.2", "10.89.0.3"])
      assert.deepEqual(await resolver.resolve6("db"), ["fd00::2"])
      assert.deepEqual(await resolver.resolvePtr("2.0.89.10.in-addr.arpa"), ["db"])
      await assert.rejects(resolver.resolve4("unknown"), { code: "ENOTFOUND" })
      await assert.rejects(resolver.resolveMx("db"), { code: /^ENODATA$|^ENOTFOUND$/ }) // the latter from Deno
    })
  })

  effect.asRoot(
    "glibc and busybox ask it in a container, at 127.0.0.11",
    function* () {
      const resolvConf = `${folder()}/resolv.conf`
      fs.writeFileSync(resolvConf, "nameserver 127.0.0.11\n")
      const { serve, tell } = yield* makeResponder
      const box = yield* Container.start(yield* Image.host, {
        command: ["sleep", "100"],
        mounts: [Mount.bind(resolvConf, "/etc/resolv.conf")]
      })
      serve(1, { pidfd: box.state.pidfd, host: "127.0.0.11", port: 53 })
      tell("name 1 1 db 10.89.0.2")
      tell("name 1 1 six fd00::2")
      for (let id = 1; id <= 60; id++) tell(`name 1 ${id} web 10.89.1.${id}`)
      const output = (...command: ReadonlyArray<string>) =>
        Effect.map(Container.exec(box, command), ({ exitCode, stdout }) => `${exitCode} ${stdout}`)
      assert.match(yield* output("getent", "ahosts", "db"), /^0 10\.89\.0\.2 +STREAM db/)
      assert.match(yield* output("getent", "ahosts", "six"), /^0 fd00::2 +STREAM six/)
      assert.match(yield* output("getent", "hosts", "10.89.0.2"), /^0 10\.89\.0\.2 +db/)
      assert.equal((yield* output("getent", "ahosts", "web")).match(/STREAM/g)?.length, 60, "by TCP")
      const begun = Date.now()
      assert.match(yield* output("getent", "ahosts", "unknown"), /^2 $/)
      assert.ok(Date.now() - begun < 1000)
      assert.match(yield* output("busybox", "nslookup", "db"), /^0 .*Address(?: 1)?: 10\.89\.0\.2/s)
      assert.match(yield* output("busybox", "nslookup", "unknown"), /^1 .*NXDOMAIN/s)
    },
    { skip: whyNoBusybox }
  )

  effect.asRoot(
    "does not answer an asker that is not of the container's loopback",
    function* () {
      const { serve, tell } = yield* makeResponder
      const port = serve(1, { host: "0.0.0.0" })
      tell("name 1 1 db 10.89.0.2")
      const own = Object.values(os.networkInterfaces())
        .flat()
        .find((at) => at?.family === "IPv4" && !at.internal)
      yield* promise(async () => {
        assert.equal(brief(await ask(port, "db")), "NOERROR 10.89.0.2")
        assert.equal(await exchange(port, question("db"), 200, own?.address ?? "127.0.0.1"), undefined)
      })
    },
    {
      skip: Object.values(os.networkInterfaces())
        .flat()
        .some((at) => at?.family === "IPv4" && !at.internal)
        ? false
        : "no other address"
    }
  )
})
