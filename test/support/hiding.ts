/**
 * A program that is going to die: `hiding.ts FOLDER KIND...`. Starts containers that a sweep of the Berth at FOLDER has to
 * find, prints a line of JSON with their processes, and waits.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container } from "../../lib/index.ts"
import { attackImage } from "./attack.ts"
import { berthIn } from "./effect.ts"

const [folder, ...wanted] = process.argv.slice(2) as [string, ...ReadonlyArray<Kind>]

/** What the container does not to end with its supervisor, nor to be found. */
const kinds = {
  // Without its parent-death signal, where no mount says whose it is.
  hidden: { command: ["attack", "hide"], seccomp: "unconfined" },
  "hidden as another user": { command: ["attack", "hide"], seccomp: "unconfined", user: "app" },
  // Without its parent-death signal alone.
  "another user": { command: ["attack", "stay"], user: "app" },
  // A second process, in nobody's pid namespace, of another user than the first.
  "a second process of another user": {
    command: ["sh", "-c", "setsid su app -c 'echo $$; exec sleep 1000' & exec sleep 1000"],
    namespaces: { pid: "host" }
  }
} satisfies Record<string, Container.StartOptions>

export type Kind = keyof typeof kinds

/** What is printed. */
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
