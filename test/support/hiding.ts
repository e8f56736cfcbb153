/**
 * A program that is killed: `hiding.ts FOLDER KIND...`. Starts containers that a sweep of the Berth at FOLDER has to find,
 * prints a line of JSON with their processes, and waits.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container } from "../../lib/index.ts"
import { attackImage } from "./attack.ts"
import { berthIn } from "./effect.ts"

const [folder, ...wanted] = process.argv.slice(2) as [string, ...ReadonlyArray<Kind>]

/** How a container avoids the end of its supervisor and the sweep. */
const kinds = {
  // It clears its parent-death signal and hides in a mount namespace that names no Berth.
  hidden: { command: ["attack", "hide"], seccomp: "unconfined" },
  "hidden as another user": { command: ["attack", "hide"], seccomp: "unconfined", user: "app" },
  // It only clears its parent-death signal.
  "another user": { command: ["attack", "stay"], user: "app" },
  // A second process of another user, in the host's pid namespace.
  "a second process of another user": {
    command: ["sh", "-c", "setsid su app -c 'echo $$; exec sleep 1000' & exec sleep 1000"],
    namespaces: { pid: "host" }
  }
} satisfies Record<string, Container.StartOptions>

export type Kind = keyof typeof kinds

/** The printed line. */
export interface Hiding {
  readonly supervisor: number
  readonly started: ReadonlyArray<{ readonly kind: Kind; readonly said: string; readonly pid: number }>
}

const program = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const image = yield* attackImage
  const started = yield* Effect.forEach(wanted, (kind) =>
    Effect.gen(function* () {
      const box = yield* Container.start(image, kinds[kind])
      const [first] = yield* Stream.runCollect(Stream.take(Container.logs(box, { follow: true }), 1))
      return { kind, said: first?.line, pid: Number(first?.line) || box.pid }
    })
  )
  fs.writeSync(1, `${JSON.stringify({ supervisor: supervisor.pid, started })}\n`)
  return yield* Effect.never
})

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(berthIn(folder))))
