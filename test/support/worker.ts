/**
 * A worker thread with a Berth, whose data is `{ folder, work }`. It posts `ready` while its work is under way, and does not
 * close its scope. To any message it answers with the output of a command in its container.
 */
import * as process from "node:process"
import { parentPort, workerData } from "node:worker_threads"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const { folder, work } = workerData as { folder: string; work: string }

const start = (command: ReadonlyArray<string>) =>
  Effect.flatMap(Image.host, (image) =>
    Container.start(image, { command, ...(process.getuid?.() === 0 ? { limits: {} } : {}) })
  )

const works: Readonly<Record<string, (box: Container.Container) => Effect.Effect<unknown, unknown, never>>> =
  {
    nothing: () => Effect.void,
    exec: (box) => Container.exec(box, ["sleep", "1000"]),
    log: (box) =>
      Effect.scoped(
        Effect.flatMap(Container.execStream(box, ["yes", ""]), (flood) =>
          Stream.runDrain(Container.logs(flood, { follow: true }))
        )
      ),
    stream: (box) =>
      Effect.scoped(
        Effect.flatMap(Container.execStream(box, ["yes"]), (flood) => Stream.runDrain(flood.stdout))
      ),
    files: (box) => Effect.forever(Container.fileSystem(box).stat("/etc/passwd"))
  }

const program = Effect.gen(function* () {
  const box = yield* start(["sleep", "1000"])
  parentPort!.on("message", () => {
    Effect.runPromise(Container.exec(box, ["echo", "here"])).then(({ stdout }) =>
      parentPort!.postMessage(stdout.trim())
    )
  })
  yield* Effect.fork(works[work === "exit" ? "nothing" : work]!(box))
  // A moment in the middle of the work, whichever it is.
  yield* Effect.sleep("300 millis")
  parentPort!.postMessage("ready")
  if (work === "exit") process.exit()
  return yield* Effect.never
})

// Not awaited: where a worker is terminated while its module loads, Deno leaves an event loop.
if (work === "idle") parentPort!.postMessage("ready")
else void Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(berthIn(folder))))
