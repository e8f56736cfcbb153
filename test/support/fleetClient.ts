/**
 * A program that keeps containers running on a fleet: `fleetClient.ts MARK COUNT`, with its token in BERTH_TEST_TOKEN and its database in
 * BERTH_TEST_DATABASE. Each of its containers sleeps for a time
 * that no other one has. It is started anew, wherever there is room, when its runner is lost. A line on its input closes all.
 */
import * as NodeContext from "@effect/platform-node/NodeContext"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Fleet from "../../lib/fleet.ts"
import { Container, Image } from "../../lib/index.ts"

const [mark, count] = process.argv.slice(2)

const say = (line: object): void => console.log(JSON.stringify(line))

/** Keeps one container running. */
const keep = (image: Image.Image, index: number) =>
  Effect.gen(function* () {
    const command = ["sleep", `${mark}${index}`]
    const box = yield* Container.start(image, { command })
    say({ started: index, runner: Fleet.runnerOf(box) })
    yield* box.exit
  }).pipe(
    Effect.scoped,
    Effect.catchTag("RunnerLost", ({ message, runner }) =>
      Effect.sync(() => say({ lost: index, runner, message }))
    ),
    Effect.forever
  )

const program = Effect.gen(function* () {
  const image = yield* Image.pull("host")
  const kept = yield* Effect.fork(
    Effect.forEach(
      Array.from({ length: Number(count) }, (_, index) => index),
      (index) => keep(image, index),
      {
        concurrency: "unbounded"
      }
    )
  )
  const closed = Effect.async<void>((resume) => {
    process.stdin.once("data", () => resume(Effect.void))
    process.stdin.once("end", () => resume(Effect.void))
  })
  yield* Effect.raceFirst(closed, Effect.asVoid(Fiber.join(kept)))
  yield* Fiber.interrupt(kept)
}).pipe(
  Effect.provide(
    Fleet.layer({
      database: Redacted.make(process.env.BERTH_TEST_DATABASE!),
      token: Redacted.make(process.env.BERTH_TEST_TOKEN!)
    })
  ),
  Effect.provide(NodeContext.layer)
)

Effect.runPromise(program).then(
  () => process.exit(0),
  (error) => {
    say({ failed: String(error) })
    process.exit(1)
  }
)
