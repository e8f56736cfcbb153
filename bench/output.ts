/** How fast a container's output comes: a gigabyte of zeros to a consumer that counts them, against `child_process`. */
import { spawn } from "node:child_process"
import { parseArgs } from "node:util"
import { Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import {
  interleave,
  machine,
  onBerth,
  onThisBerth,
  ratio,
  table,
  timed,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const BYTES = 1024 ** 3
const command = ["head", "-c", String(BYTES), "/dev/zero"]

const counted = (bytes: number): Effect.Effect<void, Unmeasured> =>
  bytes === BYTES ? Effect.void : Effect.fail(unmeasured(`${bytes} bytes came`))

const container = Effect.flatMap(Image.host, (image) =>
  Effect.scoped(
    Effect.flatMap(Container.start(image, { command }), (box) =>
      Stream.runFold(box.stdout, 0, (sum, bytes) => sum + bytes.length)
    )
  )
).pipe(Effect.mapError(unmeasured), Effect.flatMap(counted))

const child = Effect.flatMap(
  Effect.async<number, Unmeasured>((resume) => {
    const [program = "", ...args] = command
    const started = spawn(program, args, { stdio: ["ignore", "pipe", "inherit"] })
    let sum = 0
    started.stdout.on("data", (bytes: Buffer) => {
      sum += bytes.length
    })
    started.on("error", (cause) => resume(Effect.fail(unmeasured(cause))))
    started.on("close", () => resume(Effect.succeed(sum)))
  }),
  counted
)

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const { summaries } = yield* interleave(
      [yield* onThisBerth("Berth", container), { name: "child_process", run: timed(child) }],
      { rounds, warmups: 4 }
    )
    yield* Console.log(
      table([
        ["megabytes a second", "median", "best"],
        ...Object.entries(summaries).map(([name, { median, min }]) => [
          name,
          ...[median, min].map((time) => (BYTES / 1e3 / time).toFixed(0))
        ])
      ])
    )
    const faster = ratio(summaries, "child_process", "Berth")
    yield* Console.log(
      `Berth / child_process: ${faster.toFixed(2)}, target >= 1: ${faster >= 1 ? "met" : "not met"}`
    )
    yield* Console.log(`written: ${writeResults("output", { machine: machine(), rounds, summaries })}`)
  })

export const output = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "7" } } })
  return onBerth(measure(Number(values.rounds)))
}
