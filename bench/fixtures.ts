/**
 * A database for a test: from nothing to the answer to its first query, and its end. Forks of a prepared server, and databases of one
 * server, beside a `postgres` of the host on a copy of a prepared folder.
 */
import { execFileSync, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { createServer } from "node:net"
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"
import { Berth, Container, type Fixture, WaitFor } from "berth"
import { type Postgres, postgres } from "berth/fixtures"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import pg from "pg"
import { diskUsage } from "../lib/internal/disk/usage.ts"
import { descendants } from "../test/support/leftovers.ts"
import { service } from "../test/support/services.ts"
import { podmanPostgres } from "./rivals.ts"
import {
  interleave,
  machine,
  milliseconds,
  onBerth,
  onThisBerth,
  ratio,
  temporaryFolder,
  timed,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const BARE = "postgres of the host"
const COPIED = "postgres of the host, on a copy"
const FORK = "Berth, fork"
const DATABASE = "Berth, fork: database"
const RUNNING = "Berth, fork of a running server"
const COLD = "Berth, prepared and forked"

/** So many forks at once have this much memory. */
const MANY = 50
const MANY_BYTES_MAX = 1.5e9

const PODMAN = "podman run -p"

const targets = [
  { name: FORK, base: PODMAN, most: 0.1 },
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
    const settings = ["fsync=off", "full_page_writes=off", "shared_buffers=16MB"]
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

/** The proportional set size of a process, proc_pid_smaps(5), in bytes. */
const pss = (pid: number): number => {
  try {
    return Number(/^Pss:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1]) * 1024
  } catch {
    return 0 // it has ended
  }
}

/** The time of many forks at once, and the memory of all processes and the disk that each takes. */
const measureMany = (source: Fixture.Source<Postgres>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { supervisor } = yield* Berth.Berth
      const before = yield* diskUsage(supervisor.folder)
      const millis = yield* timed(
        Effect.forEach(Array.from({ length: MANY }), () => source.fork(), {
          concurrency: availableParallelism()
        })
      )
      const bytes = [supervisor.pid, ...descendants(supervisor.pid)].reduce((sum, pid) => sum + pss(pid), 0)
      const disk = ((yield* diskUsage(supervisor.folder)) - before) / MANY
      const verdict = bytes <= MANY_BYTES_MAX ? "met" : "not met"
      yield* Console.log(
        `${MANY} forks at once: ${milliseconds(millis)} ms; ${(bytes / 1e6).toFixed(0)} MB of memory (PSS), target <= ${
          MANY_BYTES_MAX / 1e6
        }: ${verdict}; ${(disk / 1e6).toFixed(1)} MB of disk each, of what has blocks by then`
      )
      return { millis, bytes, disk }
    })
  )

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
    const running = yield* mapped(servers.fork())
    const recovered = Effect.scoped(
      Effect.gen(function* () {
        const [fork] = yield* Container.fork(running.container)
        yield* WaitFor.log(fork!, ready)
        const { hostname, port } = yield* Container.publish(fork!, 5432)
        yield* asking({ ...running.connection, host: hostname, port }, question)
      })
    )
    const contender = (name: string, effect: Effect.Effect<void, unknown, Berth.Berth>) =>
      onThisBerth(name, mapped(effect))
    const bare = host(yield* temporaryFolder)
    const prepared = yield* Effect.either(Effect.tryPromise({ try: bare.prepare, catch: unmeasured }))
    const contenders = [
      yield* contender(COLD, cold),
      yield* contender(FORK, forked(servers)),
      yield* contender(RUNNING, recovered),
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
    const { layout } = yield* mapped(image)
    if (layout !== undefined)
      contenders.push(...(yield* podmanPostgres(PODMAN, yield* temporaryFolder, layout)))
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
    const many = yield* mapped(measureMany(servers))
    yield* Console.log(
      `written: ${writeResults("fixtures", { machine: machine(), rounds, summaries, many })}`
    )
  }) as Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope>

export const fixtures = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "20" } } })
  return onBerth(measure(Number(values.rounds)))
}
