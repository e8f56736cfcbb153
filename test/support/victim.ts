/**
 * A program that ends without closing its scope: `victim.ts FOLDER MODE`. Starts containers of every kind in a Berth at
 * FOLDER, prints a line of JSON with their processes, and then waits, exits, throws or just returns.
 */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth, Container, Image, Namespace } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const [folder, mode] = process.argv.slice(2) as [string, string]

const script = (text: string): ReadonlyArray<string> => ["sh", "-c", text]

const program = Effect.gen(function* () {
  const { supervisor } = yield* Berth.Berth
  const host = yield* Image.host
  fs.mkdirSync(`${folder}/lower`, { recursive: true })
  const started = [
    yield* Container.start(host, { command: ["sleep", "1000"], limits: { memory: "64MiB", pids: 20 } }),
    yield* Container.start(host, { command: script("sleep 1000 & setsid sleep 1000 & echo up; wait") }),
    yield* Container.start(host, {
      command: script("setsid sleep 1000 & echo up; exec sleep 1000"),
      namespaces: { pid: "host" },
      limits: {}
    }),
    yield* Container.start(host, { command: ["sleep", "1000"], user: "1000", init: true })
  ]
  if (fs.existsSync(`${folder}/image`)) {
    const image = yield* Image.fromRootfs(`${folder}/image`)
    const fill = script("mkdir -p a/b/c; seq 500 | xargs touch; echo up; exec sleep 1000")
    started.push(yield* Container.start(image, { command: fill, upper: "disk", limits: { pids: 50 } }))
  }
  // With the sanitizers the holder is linked dynamically, and its empty root has no libraries.
  const sanitized = process.env.BERTH_NATIVE?.includes("sanitize") === true
  const holders = sanitized ? [] : [yield* Namespace.make(["pid", "network", "mount"])]
  const exec = yield* Container.execStream(started[0]!, ["sleep", "1000"])
  // The line of a script shows that its children are there.
  for (const { stdout } of [started[1]!, started[2]!, ...started.slice(4)]) yield* Stream.runHead(stdout)
  return { supervisor: supervisor.pid, pids: [...[...started, ...holders].map(({ pid }) => pid), exec.pid] }
})

const scope = Effect.runSync(Scope.make())
const said = await Effect.runPromise(
  Effect.flatMap(Layer.buildWithScope(berthIn(folder), scope), (context) =>
    program.pipe(Effect.provide(context), Scope.extend(scope))
  )
)
fs.writeSync(1, `${JSON.stringify(said)}\n`)
if (mode === "wait") setInterval(() => {}, 1000)
if (mode === "exit") process.exit(0)
if (mode === "throw") throw new Error("the program's own mistake")
