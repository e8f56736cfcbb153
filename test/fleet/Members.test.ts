import assert from "node:assert/strict"
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

/** Where a container runs that only this runner may have. */
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
      const { container, url } = yield* Fixture.fork(server)
      const database = Redacted.make(url)
      const here = yield* Berth.Berth
      const start = (name: string) => Effect.provideService(runner({ name, database }), Berth.Berth, here)
      yield* start("one")
      yield* Effect.gen(function* () {
        yield* runOn("one")
        yield* Effect.scoped(Effect.zipRight(start("two"), found("two")))
        yield* lost("two")

        yield* Container.pause(container)
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
        yield* Container.resume(container)

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
