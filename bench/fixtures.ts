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
import { mariadb, type Postgres, postgres, redis } from "berth/fixtures"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Scope from "effect/Scope"
import { Redis } from "ioredis"
import { createConnection } from "mysql2/promise"
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
  type Target,
  targetsTable,
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
const AHEAD = "Berth, database for a test that follows one of 300 ms"
const ON_DEMAND = "Berth, database that nothing has made ahead"
const RUNNING = "Berth, fork of a running server"
const COLD = "Berth, prepared and forked"

const MANY = 50

const REDIS = "Berth, fork of Redis"
const MARIADB = "Berth, fork of MariaDB"
const PODMAN = "podman run -p"

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
      yield* Console.log(
        `${MANY} forks at once: ${milliseconds(millis)} ms; ${(disk / 1e6).toFixed(1)} MB of disk each, of what has blocks by then\n`
      )
      return { millis, bytes, disk }
    })
  )

/** A fork of an empty server of another kind, to its first answer and its end; or why there is none. */
const otherServer = (name: "redis" | "mariadb") =>
  Effect.gen(function* () {
    const { image, missing } = yield* Effect.promise(() => service(name))
    if (missing !== false) return Either.left(missing)
    if (name === "redis") {
      const source = yield* redis({ image, migrate: () => Effect.void, key: "bench" }).open
      return Either.right(
        Effect.scoped(
          Effect.flatMap(source.fork(), ({ url }) =>
            Effect.tryPromise(async () => {
              const client = new Redis(url)
              await client.ping()
              client.disconnect()
            })
          )
        )
      )
    }
    const source = yield* mariadb({ image, migrate: () => Effect.void, key: "bench" }).open
    return Either.right(
      Effect.scoped(
        Effect.flatMap(source.fork(), ({ url }) =>
          Effect.tryPromise(async () => {
            const client = await createConnection(url)
            await client.query("select 1")
            await client.end()
          })
        )
      )
    )
  })

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
    const timedAfter = (
      name: string,
      before: Effect.Effect<unknown, Unmeasured, Berth.Berth | Scope.Scope>,
      effect: Effect.Effect<unknown, Unmeasured, Berth.Berth | Scope.Scope>
    ) =>
      Effect.map(Effect.context<Berth.Berth>(), (context) => ({
        name,
        run: Effect.provide(Effect.scoped(Effect.zipRight(before, timed(effect))), context)
      }))
    const bare = host(yield* temporaryFolder)
    const prepared = yield* Effect.either(Effect.tryPromise({ try: bare.prepare, catch: unmeasured }))
    const contenders = [
      yield* contender(COLD, cold),
      yield* contender(FORK, forked(servers)),
      yield* contender(RUNNING, recovered),
      yield* contender(DATABASE, forked(databases)),
      yield* timedAfter(AHEAD, mapped(Effect.sleep("300 millis")), mapped(databases.fork())),
      yield* timedAfter(ON_DEMAND, mapped(databases.fork()), mapped(databases.fork()))
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
    for (const [name, other] of [
      [REDIS, yield* mapped(otherServer("redis"))],
      [MARIADB, yield* mapped(otherServer("mariadb"))]
    ] as const)
      if (other._tag === "Left") yield* Console.log(`skipped ${name}: ${other.left}`)
      else contenders.push(yield* contender(name, other.right))
    const { layout } = yield* mapped(image)
    if (layout !== undefined)
      contenders.push(...(yield* podmanPostgres(PODMAN, yield* temporaryFolder, layout)))
    const { skipped, summaries } = yield* interleave(contenders, { rounds, warmups: 1 })
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    yield* Console.log(timesTable(summaries, BARE))
    const many = yield* mapped(measureMany(servers))
    const targets: ReadonlyArray<Target> = [
      { what: `${FORK} / ${BARE}`, value: ratio(summaries, FORK, BARE), atMost: 1.3 },
      { what: `${FORK} / ${PODMAN}`, value: ratio(summaries, FORK, PODMAN), atMost: 0.1 },
      { what: `${ON_DEMAND}, ms`, value: summaries[ON_DEMAND]!.median, atMost: 60 },
      { what: `${AHEAD}, ms`, value: summaries[AHEAD]!.median, atMost: 5 },
      { what: `memory of ${MANY} forks, MB (PSS)`, value: many.bytes / 1e6, atMost: 1500 }
    ]
    yield* Console.log(targetsTable(targets, "medians"))
    yield* Console.log(
      `written: ${writeResults("fixtures", { machine: machine(), rounds, summaries, many })}`
    )
  }) as Effect.Effect<void, Unmeasured, Berth.Berth | Scope.Scope>

export const fixtures = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "20" } } })
  return onBerth(measure(Number(values.rounds)))
}
