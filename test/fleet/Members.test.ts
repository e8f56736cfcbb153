import assert from "node:assert/strict"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import { postgres } from "../../lib/fixtures.ts"
import * as Fleet from "../../lib/fleet.ts"
import { Berth, Container, Fixture, Image } from "../../lib/index.ts"
import { allowTime, failure, suite } from "../support/effect.ts"
import { runner, token } from "../support/fleets.ts"
import { service } from "../support/services.ts"

const { image, missing } = await service("postgres")
const server = postgres({ image })

allowTime(120_000)

/** A database on whose connections nothing moves from `hold` until `release`, which breaks them. New ones are silent as well. */
const holdable = (database: string) =>
  Effect.gen(function* () {
    const url = new URL(database)
    const target = { host: url.hostname, port: Number(url.port) }
    const sockets = new Set<net.Socket>()
    let isHeld = false
    const proxy = net.createServer((near) => {
      sockets.add(near.on("error", () => {}))
      if (isHeld) return
      const far = net.connect(target).on("error", () => near.destroy())
      sockets.add(far)
      near.pipe(far).pipe(near)
      near.on("close", () => far.destroy())
      far.on("close", () => near.destroy())
    })
    const drop = (): void => sockets.forEach((socket) => socket.destroy())
    yield* Effect.acquireRelease(
      Effect.async<void>((resume) => {
        proxy.listen(0, "127.0.0.1", () => resume(Effect.void))
      }),
      () =>
        Effect.sync(() => {
          proxy.close()
          drop()
        })
    )
    url.host = `127.0.0.1:${(proxy.address() as net.AddressInfo).port}`
    return {
      url: url.href,
      hold: () => {
        isHeld = true
        for (const socket of sockets) socket.unpipe().pause()
      },
      release: () => {
        isHeld = false
        drop()
      }
    }
  })

/** Runs a container on the runner with this name. */
const runOn = (name: string) =>
  Effect.flatMap(Image.pull("host"), (host) => Container.run(host, { command: ["echo", name] })).pipe(
    Fleet.on({ runner: name }),
    Effect.map(({ stdout }) => assert.equal(stdout, `${name}\n`))
  )

/** The same, once the runner is found. */
const found = (name: string) =>
  Effect.retry(runOn(name), Schedule.spaced("100 millis")).pipe(Effect.timeout("15 seconds"))

const lost = (name: string) =>
  Effect.retry(Effect.flip(runOn(name)), Schedule.spaced("100 millis")).pipe(Effect.timeout("15 seconds"))

suite("the runners of a database", (effect) => {
  effect(
    "are found by clients, also those that start later, and while the database is away nobody is stopped",
    function* () {
      const { url, hold, release } = yield* holdable((yield* Fixture.fork(server)).url)
      const database = Redacted.make(url)
      const here = yield* Berth.Berth
      const start = (name: string) => Effect.provideService(runner({ name, database }), Berth.Berth, here)
      yield* start("one")
      yield* Effect.gen(function* () {
        yield* runOn("one")
        yield* Effect.scoped(Effect.zipRight(start("two"), found("two")))
        yield* lost("two")

        hold()
        yield* runOn("one")
        const client = yield* failure(
          "FleetError",
          Effect.provide(runOn("one"), Fleet.layer({ database, token }))
        )
        assert.equal(client.reason, "Database")
        const third = yield* failure("FleetError", start("three"))
        assert.equal(third.reason, "Database")
        assert.doesNotMatch(third.message, /postgres:postgres/)
        yield* runOn("one")
        release()

        yield* start("three")
        yield* found("three")
        // The first runner connects again by itself.
        yield* Effect.provide(found("one"), Fleet.layer({ database, token }))
      }).pipe(Effect.provide(Fleet.layer({ database, token })))
    },
    { skip: missing }
  )

  effect(
    "are none, or no database answers: an error says so",
    function* () {
      const { url } = yield* Fixture.fork(server)
      const layer = (text: string) =>
        Effect.provide(runOn("one"), Fleet.layer({ database: Redacted.make(text), token }))
      assert.equal((yield* failure("FleetError", layer(url))).reason, "NoRunner")
      const nobody = yield* failure("FleetError", layer("postgres://a:secret@127.0.0.1:1/b"))
      assert.deepEqual([nobody.reason, nobody.subject], ["Database", "127.0.0.1:1/b"])
      assert.doesNotMatch(nobody.message, /secret/)
      yield* failure("InvalidOption", layer("mysql://127.0.0.1/b"))
    },
    { skip: missing }
  )
})
