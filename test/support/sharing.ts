/**
 * A worker of a test runner, as a process or as a thread, that takes a lease of a shared server: `FOLDER ROOT [slow | unprepared]`. It tells the
 * server's id, its pid, and what the server answers; and ends when its input does, or when it gets a message. With `slow`, the server is
 * never ready; with `unprepared`, its preparation never ends. Instead of all this it tells the message of an error.
 */
import * as net from "node:net"
import * as process from "node:process"
import { parentPort, workerData } from "node:worker_threads"
import * as Effect from "effect/Effect"
import { Container, Fixture, Image } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

/** For each answer, the server first writes more to its log than a pipe has room for. */
const script = `
nc -ll -p 80 -e sh -c 'head -c 2000000 /dev/zero >&2; echo it serves' &
until grep -q ":0050 .* 0A " /proc/net/tcp*; do sleep 0.01; done
echo "$2"
wait
`

export interface Said {
  readonly id: string
  readonly pid: number
  readonly answer: string
  readonly inside: string
  readonly error?: string
}

/** What the server sends to a client. */
const answerOf = async (port: number, hostname: string): Promise<string> => {
  let text = ""
  for await (const part of net.connect(port, hostname).setEncoding("utf8")) text += part
  return text.trim()
}

const sharedServer = (root: string, folder: string, mode?: string) =>
  Fixture.make({
    name: "lines",
    image: Effect.suspend(() => Image.fromRootfs(root)),
    start: {
      entrypoint: [],
      // The folder shows in the list of processes whose server it is.
      command: ["/bin/sh", "-c", script, "sh", folder, mode === "slow" ? "not yet" : "now serving"]
    },
    ready: "now serving",
    port: 80,
    client: (address) => address,
    shared: "run",
    ...(mode === "unprepared" ? { prepare: () => Effect.never } : {})
  })

const work = (
  [folder = "", root = "", mode]: ReadonlyArray<string>,
  say: (said: Said) => void,
  over: Promise<void>
) =>
  Effect.gen(function* () {
    const fixture = sharedServer(root, folder, mode)
    const { container, hostname, port } = yield* Fixture.fork(fixture)
    const answer = yield* Effect.promise(() => answerOf(port, hostname))
    const { stdout } = yield* Container.exec(container, ["/bin/echo", "inside"])
    say({ id: container.id, pid: container.pid, answer, inside: stdout.trim() })
    yield* Effect.promise(() => over)
  }).pipe(
    Effect.scoped,
    Effect.provide(berthIn(folder)),
    Effect.catchAll(({ message }) =>
      Effect.sync(() => say({ id: "", pid: 0, answer: "", inside: "", error: message }))
    ),
    Effect.runPromise
  )

if (parentPort !== null) {
  const port = parentPort
  const over = new Promise<void>((resolve) => port.once("message", () => resolve()))
  await work(workerData as ReadonlyArray<string>, (said) => port.postMessage(said), over)
} else {
  const over = new Promise<void>((resolve) => process.stdin.on("end", resolve).resume())
  await work(process.argv.slice(2), (said) => console.log(JSON.stringify(said)), over)
}
