/**
 * A database for a test: from nothing to the answer to its first query, and its end. Forks of a prepared server, and databases of one
 * server, beside a `postgres` of the host on a copy of a prepared folder.
 */
import { execFileSync, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { createServer } from "node:net"
import { parseArgs } from "node:util"
import type { Berth } from "berth"
import { postgres } from "berth/fixtures"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import pg from "pg"
import { service } from "../test/support/services.ts"
import {
  interleave,
  machine,
  onBerth,
  onThisBerth,
  ratio,
  temporaryFolder,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const BARE = "postgres of the host"
const COPIED = "postgres of the host, on a copy"
const FORK = "Berth, fork"
const DATABASE = "Berth, fork: database"
const COLD = "Berth, prepared and forked"

const targets = [
  { name: FORK, base: BARE, most: 1.3 },
  { name: FORK, base: COPIED, most: 1 },
  { name: DATABASE, base: BARE, most: 0.5 }
]

const ready = "database system is ready to accept connections"

type Connection = pg.ClientConfig

const query = async (connection: Connection, sql: string): Promise<void> => {
  const client = new pg.Client(connection)
  await client.connect()
  await client.query(sql)
  await client.end()
}

const asking = (connection: Connection, sql: string): Effect.Effect<void, Unmeasured> =>
  Effect.tryPromise({ try: () => query(connection, sql), catch: unmeasured })

const migration = "create table t as select n, md5(n::text) as text from generate_series(1, 10000) n"
const question = "insert into t select max(n) + 1, 'one more' from t"

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

/** The programs of Debian's package, as its user. */
const host = (folder: string) => {
  const [version = "15"] = fs.readdirSync("/usr/lib/postgresql")
  const bin = `/usr/lib/postgresql/${version}/bin`
  const [uid, gid] = ["-u", "-g"].map((flag) => Number(execFileSync("id", [flag, "postgres"])))
  const as = { uid: uid!, gid: gid!, cwd: "/" }
  const serve = async (
    data: string
  ): Promise<{ connection: Connection; stop: (signal: NodeJS.Signals) => Promise<void> }> => {
    const port = await freePort()
    const settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=16MB"]
    const options = [...settings, `port=${port}`, `unix_socket_directories=${folder}`]
    const child = spawn(`${bin}/postgres`, ["-D", data, ...options.flatMap((option) => ["-c", option])], {
      ...as,
      stdio: ["ignore", "ignore", "pipe"]
    })
    let log = ""
    await new Promise<void>((resolve, reject) => {
      child.stderr.on("data", (text) => {
        log += text
        if (log.includes(ready)) resolve()
      })
      child.on("error", reject)
      child.on("exit", () => reject(new Error(log)))
    })
    const ended = new Promise<void>((resolve) => child.on("close", () => resolve()))
    const stop = (signal: NodeJS.Signals): Promise<void> => {
      child.kill(signal)
      return ended
    }
    return { connection: { host: "127.0.0.1", port, user: "postgres", database: "postgres" }, stop }
  }
  return {
    prepare: async (): Promise<string> => {
      const data = `${folder}/prepared`
      fs.chownSync(folder, uid!, gid!)
      execFileSync(
        `${bin}/initdb`,
        ["-D", data, "--auth=trust", "--wal-segsize=1", "--no-sync", "-U", "postgres"],
        as
      )
      const { connection, stop } = await serve(data)
      await query(connection, migration)
      await stop("SIGINT")
      return data
    },
    once: async (data: string): Promise<void> => {
      const { connection, stop } = await serve(data)
      await query(connection, question)
      await stop("SIGINT")
    },
    copy: (prepared: string): Promise<string> =>
      new Promise((resolve, reject) => {
        const data = `${folder}/${randomBytes(4).toString("hex")}`
        spawn("cp", ["-a", prepared, data]).on("close", (code) =>
          code === 0 ? resolve(data) : reject(new Error(`cp ended with exit code ${code}`))
        )
      })
  }
}

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const { image, missing } = yield* Effect.promise(() => service("postgres"))
    if (missing !== false) return yield* Effect.fail(unmeasured(missing))
    const of = (options: { readonly fork?: "database"; readonly key?: string }) =>
      postgres({
        image,
        key: "bench",
        ...options,
        migrate: ({ connection }) => asking(connection, migration)
      })
    const mapped = <A, R>(effect: Effect.Effect<A, unknown, R>) => Effect.mapError(effect, unmeasured)
    const servers = yield* mapped(of({}).open)
    const databases = yield* mapped(of({ fork: "database" }).open)
    const forked = (source: Effect.Effect.Success<ReturnType<typeof of>["open"]>) =>
      Effect.scoped(Effect.flatMap(source.fork(), ({ connection }) => asking(connection, question)))
    const cold = Effect.suspend(() =>
      Effect.scoped(Effect.flatMap(of({ key: randomBytes(8).toString("hex") }).open, forked))
    )
    const contender = (name: string, effect: Effect.Effect<void, unknown, Berth.Berth>) =>
      onThisBerth(name, mapped(effect))
    const bare = host(yield* temporaryFolder)
    const prepared = yield* Effect.either(Effect.tryPromise({ try: bare.prepare, catch: unmeasured }))
    const contenders = [
      yield* contender(COLD, cold),
      yield* contender(FORK, forked(servers)),
      yield* contender(DATABASE, forked(databases))
    ]
    if (prepared._tag === "Left") yield* Console.log(`skipped ${BARE}: ${prepared.left.message}`)
    else {
      const folder = prepared.right
      const copied = async () => {
        const data = await bare.copy(folder)
        await bare.once(data)
        await fs.promises.rm(data, { recursive: true })
      }
      contenders.push(
        yield* contender(
          BARE,
          Effect.tryPromise(() => bare.once(folder))
        ),
        yield* contender(COPIED, Effect.tryPromise(copied))
      )
    }
    const { skipped, summaries } = yield* interleave(contenders, { rounds, warmups: 1 })
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    yield* Console.log(timesTable(summaries, BARE))
    for (const { base, most, name } of targets) {
      const value = ratio(summaries, name, base)
      if (Number.isNaN(value)) continue
      yield* Console.log(
        `${name} / ${base}: ${value.toFixed(2)}, target <= ${most}: ${value <= most ? "met" : "not met"}`
      )
    }
    yield* Console.log(`written: ${writeResults("fixtures", { machine: machine(), rounds, summaries })}`)
  }) as Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope>

export const fixtures = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "20" } } })
  return onBerth(measure(Number(values.rounds)))
}
