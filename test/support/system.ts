/**
 * `system.ts run FOLDER` runs a container and ends. `system.ts error FOLDER [PLATFORM]` prints the error that the layer fails
 * with, as JSON; PLATFORM is another value for `process.platform`.
 */
import * as Effect from "effect/Effect"

const [mode, folder, platform] = process.argv.slice(2) as [string, string, string | undefined]
if (platform !== undefined) Object.defineProperty(process, "platform", { value: platform })

const { Berth, Container, Image } = await import("../../lib/index.ts")
const { berthIn } = await import("./effect.ts")

if (mode === "run") {
  const { stdout } = await Effect.runPromise(
    Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["echo", "hello"] })).pipe(
      Effect.provide(berthIn(folder))
    )
  )
  process.stdout.write(stdout)
} else {
  const error = await Effect.runPromise(Effect.flip(Effect.provide(Berth.Berth, berthIn(folder))))
  const { _tag, message } = error
  process.stdout.write(
    `${JSON.stringify({ _tag, message, feature: "feature" in error ? error.feature : "" })}\n`
  )
}
