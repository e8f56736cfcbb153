/**
 * What may happen to the clients, the runners and the database of a fleet: they are closed, killed, stopped, and cut off from each other.
 * Runners and clients are processes in network namespaces of their own, on a network of Berth's, and find each other in the database.
 */
import assert from "node:assert/strict"
import { type ChildProcess, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { createInterface } from "node:readline"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { Container, Image, Network, WaitFor } from "../../lib/index.ts"
import { find } from "../../lib/internal/fixtures/postgresPrograms.ts"
import { commandOf, root } from "./program.ts"

/** In milliseconds. A busy machine may not run a process for a second. */
export const LEASE = 4000

/** How long anything is waited for. */
const PATIENCE = 30_000

export const faults = [
  "close the client",
  "kill the client",
  "stop the client",
  "kill a runner",
  "stop a runner",
  "cut a runner off",
  "kill the database and a runner",
  "stop the database"
] as const
export type Fault = (typeof faults)[number]

const token = randomBytes(16).toString("hex")
const PORT = 7411
/** The containers of a client. */
const COUNT = 3

interface Said {
  readonly address?: string
  readonly started?: number
  readonly runner?: string
  readonly lost?: number
  readonly failed?: string
}

/** A process in the network namespace of a container. */
interface Node {
  readonly child: ChildProcess
  readonly said: Array<Said>
}

const sleep = (millis: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, millis))

const until = async (what: string, isSo: () => boolean): Promise<void> => {
  for (const start = Date.now(); !isSo(); await sleep(20))
    if (Date.now() - start > PATIENCE) assert.fail(`not within ${PATIENCE / 1000} s: ${what}`)
}

const begin = (
  box: Container.Container,
  database: string,
  script: string,
  args: ReadonlyArray<string>
): Node => {
  const { args: all, command } = commandOf(script, args)
  const child = spawn("nsenter", [`--net=/proc/${box.pid}/ns/net`, "--", command, ...all], {
    cwd: root,
    env: { ...process.env, BERTH_TEST_TOKEN: token, BERTH_TEST_DATABASE: database },
    stdio: ["pipe", "pipe", "inherit"]
  })
  const said: Array<Said> = []
  createInterface({ input: child.stdout! }).on("line", (line) => said.push(JSON.parse(line)))
  return { child, said }
}

const ended = (node: Node): boolean => node.child.exitCode !== null || node.child.signalCode !== null

const end = async (node: Node, signal: NodeJS.Signals): Promise<void> => {
  // By its pid: Deno sends no second signal by `kill` of a child.
  if (!ended(node)) {
    process.kill(node.child.pid!, "SIGCONT")
    process.kill(node.child.pid!, signal)
  }
  await until("the end of a process", () => ended(node))
}

/** The processes that run `sleep MARK...`, by their argument: of all containers of a client, wherever they are. */
const sleepers = (mark: string): ReadonlyArray<string> =>
  fs.readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return []
    try {
      const [program, argument] = fs.readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0")
      return program?.endsWith("sleep") && argument?.startsWith(mark) ? [argument] : []
    } catch {
      return []
    }
  })

/** Looks all the time that no container runs twice. */
const watched = (mark: string) => {
  const twice: Array<string> = []
  const timer = setInterval(() => {
    const all = sleepers(mark)
    for (const [index, name] of all.entries()) if (all.indexOf(name) !== index) twice.push(name)
  }, 20)
  return { twice, stop: () => clearInterval(timer) }
}

const allRun = (mark: string): boolean => new Set(sleepers(mark)).size === COUNT
const noneRun = (mark: string): boolean => sleepers(mark).length === 0

/** Runs a Postgres as its child, which begins anew when it is killed. */
const server = `${find}
set -e
export PGDATA=/tmp/data LANG=C.UTF-8
initdb --username=postgres --auth=trust --no-sync
echo 'host all all all trust' >> "$PGDATA/pg_hba.conf"
while true; do
  postgres -c "listen_addresses=*" -c unix_socket_directories=/tmp -c lc_messages=C || sleep 1
done`

const startDatabase = (network: Network.Network, image: Image.Image) =>
  Effect.gen(function* () {
    const box = yield* Container.start(image, {
      entrypoint: [],
      command: ["sh", "-c", server],
      user: "postgres",
      network,
      name: "database"
    })
    yield* WaitFor.log(box, "database system is ready to accept connections")
    return box
  })

/** Ends the server of a database, whose processes are children of the container's first one. */
const killDatabase = ({ pid }: Container.Container): void => {
  const [postmaster] = fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").split(" ")
  process.kill(Number(postmaster), "SIGKILL")
}

/** A fleet of two runners, its database, and a place for clients. */
export const makeFleet = (folder: string, postgres: Image.Image) =>
  Effect.gen(function* () {
    const network = yield* Network.make({ name: "fleet" })
    const image = yield* Image.host
    const database = yield* startDatabase(network, postgres)
    const url = `postgres://postgres@${database.state.addresses[0]}:5432/postgres`
    const box = (name: string) => Container.start(image, { command: ["sleep", "infinity"], network, name })
    const client = yield* box("client")
    const boxes = [yield* box("one"), yield* box("two")] as const
    const address = (index: number) => `tcp://${boxes[index]!.state.addresses[0]}:${PORT}`
    const nodes: Array<Node> = []
    const start = async (index: number): Promise<void> => {
      const args = [`${folder}/${index}`, address(index), String(LEASE), `runner-${index}`]
      const node = begin(boxes[index]!, url, "fleetRunner.ts", args)
      nodes[index] = node
      await until("a runner", () => node.said.length > 0 || ended(node))
      assert.ok(!ended(node), "the runner has ended")
    }
    yield* Effect.acquireRelease(
      Effect.promise(async () => {
        await start(0)
        await start(1)
      }),
      () => Effect.promise(() => Promise.all(nodes.map((node) => end(node, "SIGTERM"))))
    )
    const cut = (index: number) => Network.partition(network, client, boxes[index]!)
    return { client, database, url, nodes, start, cut }
  })

type Fleet = Effect.Effect.Success<ReturnType<typeof makeFleet>>

const markOf = (): string => `${1_000_000 + Math.floor(Math.random() * 8_000_000)}.`

/** One fault of a fleet in use, after which the containers run that should, once each, and no other. */
export const round = (fleet: Fleet, fault: Fault, which: number) =>
  Effect.gen(function* () {
    const mark = markOf()
    const client = yield* Effect.acquireRelease(
      Effect.sync(() => begin(fleet.client, fleet.url, "fleetClient.ts", [mark, String(COUNT)])),
      (node) => Effect.promise(() => end(node, "SIGKILL"))
    )
    const watch = yield* Effect.acquireRelease(
      Effect.sync(() => watched(mark)),
      ({ stop }) => Effect.sync(stop)
    )
    const placed = () => client.said.filter(({ started }) => started !== undefined)
    yield* Effect.promise(() => until("containers of a client", () => placed().length === COUNT))
    assert.ok(allRun(mark))
    // The fault meets a runner that has a container of the client.
    const index = Number(placed()[which % COUNT]!.runner!.slice("runner-".length))
    const runner = fleet.nodes[index]!
    yield* Effect.addFinalizer((exit) =>
      Exit.isFailure(exit) ? Console.log(`${fault} of ${index}: ${JSON.stringify(client.said)}`) : Effect.void
    )
    switch (fault) {
      case "close the client":
        client.child.stdin!.write("close\n")
        yield* Effect.promise(() => until("the end of a client", () => ended(client)))
        assert.equal(client.child.exitCode, 0)
        break
      case "kill the client":
        yield* Effect.promise(() => end(client, "SIGKILL"))
        break
      case "stop the client":
        process.kill(client.child.pid!, "SIGSTOP")
        yield* Effect.promise(() => until("the end of what a stopped client had", () => noneRun(mark)))
        process.kill(client.child.pid!, "SIGCONT")
        yield* Effect.promise(() => until("the client's containers again", () => allRun(mark)))
        assert.ok(client.said.some(({ lost }) => lost !== undefined))
        break
      case "kill a runner":
        yield* Effect.promise(async () => {
          await end(runner, "SIGKILL")
          await until("the containers on the other runner", () => allRun(mark))
          await fleet.start(index)
        })
        break
      case "stop a runner":
        yield* Effect.promise(async () => {
          process.kill(runner.child.pid!, "SIGSTOP")
          await until("that the client gives the runner up", () =>
            client.said.some(({ lost }) => lost !== undefined)
          )
          await until("the containers on the other runner", () => allRun(mark))
          process.kill(runner.child.pid!, "SIGCONT")
          await until("the end of a runner that was stopped", () => ended(runner))
          await fleet.start(index)
        })
        break
      case "cut a runner off": {
        const scope = yield* Scope.make()
        yield* Scope.extend(fleet.cut(index), scope)
        yield* Effect.promise(() =>
          until("that the client gives the runner up", () =>
            client.said.some(({ lost }) => lost !== undefined)
          )
        )
        yield* Effect.promise(() => until("the containers on the other runner", () => allRun(mark)))
        yield* Scope.close(scope, Exit.void)
        break
      }
      case "kill the database and a runner":
        yield* Effect.promise(async () => {
          killDatabase(fleet.database)
          await end(runner, "SIGKILL")
          await until("the containers on the other runner", () => allRun(mark))
          await fleet.start(index)
        })
        break
      case "stop the database": {
        // For less, and for more than the time after which a runner that the database does not hear of is not looked for.
        const before = client.said.length
        yield* Container.pause(fleet.database)
        yield* Effect.sleep(which % 2 === 0 ? "2 seconds" : "11 seconds")
        yield* Container.resume(fleet.database)
        yield* Effect.sleep("1 second")
        assert.ok(allRun(mark))
        assert.deepEqual(
          client.said.slice(before).filter(({ lost }) => lost !== undefined),
          []
        )
        break
      }
    }
    if (!ended(client)) {
      client.child.stdin!.write("close\n")
      yield* Effect.promise(() => until("the end of a client", () => ended(client)))
    }
    yield* Effect.promise(() => until("the end of all containers", () => noneRun(mark)))
    assert.deepEqual(watch.twice, [], "a container ran twice at the same time")
    assert.deepEqual(
      client.said.filter(({ failed }) => failed !== undefined),
      []
    )
  }).pipe(Effect.scoped)
