/**
 * A database for a test: from nothing, or from something prepared, to the answer to its first query. Beside forks of a prepared server and
 * databases of one server, a `postgres` of the host on a prepared folder, podman and Docker. What happens after the answer is not measured.
 */
import { execFileSync, spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import { createServer } from "node:net"
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"
import { Berth, Container, type Fixture, WaitFor } from "berth"
import {
  type MariaDb,
  mariadb,
  type Postgres,
  type PostgresOptions,
  postgres,
  type Redis,
  redis
} from "berth/fixtures"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Redis as RedisClient } from "ioredis"
import { createConnection } from "mysql2/promise"
import pg from "pg"
import { diskUsage } from "../lib/internal/disk/usage.ts"
import { descendants } from "../test/support/leftovers.ts"
import { type ServerName, type Service, service } from "../test/support/services.ts"
import { enginePostgres } from "./rivals.ts"
import {
  berthOfItsOwn,
  type Contender,
  interleave,
  machine,
  milliseconds,
  onBerth,
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

const BARE = "postgres of the host, on a prepared folder"
const COPIED = "postgres of the host, on a copy of the folder"
const forkOf = (name: ServerName): string => `${name}, fork`
const DATABASE = "postgres, fork: database"
const AHEAD = "postgres, database alone, for a test that follows one of 300 ms"
const ON_DEMAND = "postgres, database alone, that nothing has made ahead"
const RUNNING = "postgres, fork of a running server"
const PODMAN = "podman run -p"
const PODMAN_VOLUME = `${PODMAN}, with a prepared volume`
const DOCKER = "docker run -p"
const DOCKER_VOLUME = `${DOCKER}, with a prepared volume`

const MANY = 50

/** Of what is prepared once for all rounds. */
const KEY = "bench"

const ready = "database system is ready to accept connections"

type Connection = pg.ClientConfig

const promised = <A>(run: () => Promise<A>): Effect.Effect<A, Unmeasured> =>
  Effect.tryPromise({ try: run, catch: unmeasured })

/** What a client of a server gives, until the scope closes. */
const client = <C>(open: () => Promise<C>, close: (client: C) => unknown) =>
  Effect.acquireRelease(promised(open), (opened) => Effect.promise(async () => close(opened)))

const connected = (connection: Connection) =>
  client(
    async () => {
      const made = new pg.Client(connection)
      await made.connect()
      return made
    },
    (made) => made.end()
  )

const asking = (connection: Connection, sql: string): Effect.Effect<void, Unmeasured, Scope.Scope> =>
  Effect.flatMap(connected(connection), (opened) => promised(() => opened.query(sql)))

/** What a test does: statements on a database, one each 10 milliseconds, until 300 are over. */
const testing = (connection: Connection): Effect.Effect<void, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    const opened = yield* connected(connection)
    const statement = promised(() => opened.query(question))
    yield* Effect.repeat(statement, Schedule.upTo(Schedule.spaced("10 millis"), "300 millis"))
  })

const migration = "create table t as select n, md5(n::text) as text from generate_series(1, 10000) n"
const question = "insert into t select max(n) + 1, 'one more' from t"

const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

const PASSWORD = "postgres"

/** The programs of Debian's package, as its user. Clients log in as those of a fork do. */
const host = (folder: string) => {
  const [version = "15"] = fs.readdirSync("/usr/lib/postgresql")
  const bin = `/usr/lib/postgresql/${version}/bin`
  const [uid, gid] = ["-u", "-g"].map((flag) => Number(execFileSync("id", [flag, "postgres"])))
  const as = { uid: uid!, gid: gid!, cwd: "/" }
  const serve = async (data: string) => {
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
    const stop = (): Promise<void> => {
      child.kill("SIGINT")
      return ended
    }
    const login = { host: "127.0.0.1", port, user: "postgres", password: PASSWORD, database: "postgres" }
    return { connection: login as Connection, stop }
  }
  /** The answer to a statement of a server on this folder. */
  const ask = (data: string, sql: string): Effect.Effect<void, Unmeasured, Scope.Scope> =>
    Effect.flatMap(
      client(
        () => serve(data),
        ({ stop }) => stop()
      ),
      ({ connection }) => asking(connection, sql)
    )
  return {
    ask,
    prepare: Effect.gen(function* () {
      const data = `${folder}/prepared`
      yield* promised(async () => {
        fs.chownSync(folder, uid!, gid!)
        fs.writeFileSync(`${folder}/password`, PASSWORD)
        const login = ["--auth-local=trust", "--auth-host=scram-sha-256", `--pwfile=${folder}/password`]
        execFileSync(
          `${bin}/initdb`,
          ["-D", data, ...login, "--wal-segsize=1", "--no-sync", "-U", "postgres"],
          as
        )
      })
      yield* Effect.scoped(ask(data, migration))
      return data
    }),
    /** A copy of a folder, until the scope closes. */
    copy: (prepared: string): Effect.Effect<string, Unmeasured, Scope.Scope> =>
      client(
        () =>
          new Promise((resolve, reject) => {
            const data = `${folder}/${randomBytes(4).toString("hex")}`
            spawn("cp", ["-a", prepared, data]).on("close", (code) =>
              code === 0 ? resolve(data) : reject(new Error(`cp ended with exit code ${code}`))
            )
          }),
        (data) => fs.promises.rm(data, { recursive: true })
      )
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

/** The blocks of a file system that are in use, once all of it is written. */
const usedBytes = (folder: string): number => {
  execFileSync("sync", ["--file-system", folder])
  const { bfree, blocks, bsize } = fs.statfsSync(folder)
  return (blocks - bfree) * bsize
}

type Scoped<A> = Effect.Effect<A, unknown, Berth.Berth | Scope.Scope>

/** An effect after another one, in a scope of its own: only the effect is measured, and neither what comes before nor the scope's end. */
const contender = (name: string, effect: Scoped<unknown>, before: Scoped<unknown> = Effect.void) =>
  Effect.map(
    Effect.context<Berth.Berth>(),
    (context): Contender => ({
      name,
      run: Effect.mapError(
        Effect.provide(Effect.scoped(Effect.zipRight(before, timed(effect))), context),
        unmeasured
      )
    })
  )

/** A kind of server. */
interface Kind<A> {
  readonly name: ServerName
  readonly of: (image: Service["image"], key: string) => Fixture.Fixture<A>
  /** Its answer to a first query. */
  readonly ask: (server: A) => Scoped<unknown>
}

const optionsOf = (image: Service["image"], key: string): PostgresOptions => ({
  image,
  key,
  migrate: ({ connection }) => Effect.scoped(asking(connection, migration))
})

const postgresServer: Kind<Postgres> = {
  name: "postgres",
  of: (image, key) => postgres(optionsOf(image, key)),
  ask: ({ connection }) => asking(connection, question)
}

const mariadbServer: Kind<MariaDb> = {
  name: "mariadb",
  of: (image, key) => mariadb({ image, key, migrate: () => Effect.void }),
  ask: ({ url }) =>
    Effect.flatMap(
      client(
        () => createConnection(url),
        (opened) => opened.end()
      ),
      (opened) => promised(() => opened.query("select 1"))
    )
}

const redisServer: Kind<Redis> = {
  name: "redis",
  of: (image, key) => redis({ image, key, migrate: () => Effect.void }),
  ask: ({ url }) =>
    Effect.flatMap(
      client(
        async () => new RedisClient(url),
        (opened) => opened.disconnect()
      ),
      (opened) => promised(() => opened.ping())
    )
}

/**
 * The time of many forks at once, to the answers to their first queries, and the memory of all processes and the disk that each fork
 * takes: the blocks of its files, and for comparison what the whole file system has less, which other programs use as well.
 */
const measureMany = <A>({ ask, name, of }: Kind<A>, count: number) =>
  Effect.scoped(
    Effect.gen(function* () {
      const { image, missing } = yield* Effect.promise(() => service(name))
      if (missing !== false) return undefined
      const source = yield* of(image, KEY).open
      const { supervisor } = yield* Berth.Berth
      const used = usedBytes(supervisor.folder)
      const before = yield* diskUsage(supervisor.folder)
      const millis = yield* timed(
        Effect.forEach(Array.from({ length: count }), () => Effect.flatMap(source.fork(), ask), {
          concurrency: availableParallelism()
        })
      )
      const bytes = [supervisor.pid, ...descendants(supervisor.pid)].reduce((sum, pid) => sum + pss(pid), 0)
      const fileSystem = (usedBytes(supervisor.folder) - used) / count
      const disk = ((yield* diskUsage(supervisor.folder)) - before) / count
      const [own, all, memory] = [disk, fileSystem, bytes].map((value) => (value / 1e6).toFixed(1))
      yield* Console.log(
        `${count} forks of ${name} at once, to the last answer: ${milliseconds(millis)} ms; memory: ${memory} MB; disk of each: ${own} MB, by the file system's free blocks ${all}\n`
      )
      return { name, count, millis, bytes, disk, fileSystem }
    })
  )

/** The ways to a first answer of a server of this kind; none where there is no image. */
const waysTo = <A>({ ask, name, of }: Kind<A>) =>
  Effect.gen(function* () {
    const { image, missing } = yield* Effect.promise(() => service(name))
    if (missing !== false) {
      yield* Console.log(`skipped ${name}: ${missing}`)
      return []
    }
    const forked = (source: Fixture.Source<A>) => Effect.flatMap(source.fork(), ask)
    const opened = (key: string) => Effect.flatMap(of(image, key).open, forked)
    const source = yield* of(image, KEY).open
    return yield* Effect.all([
      contender(
        `${name}, from nothing: image, preparation, fork`,
        Effect.flatMap(berthOfItsOwn, (own) => Effect.provide(opened(KEY), own))
      ),
      contender(
        `${name}, from its image: preparation, fork`,
        Effect.suspend(() => opened(randomBytes(8).toString("hex")))
      ),
      contender(`${name}, from its template: open, fork`, opened(KEY)),
      contender(forkOf(name), forked(source))
    ])
  })

/** The ways to a database that only PostgreSQL has. */
const waysToDatabases = (servers: Fixture.Source<Postgres>, databases: Fixture.Source<Postgres>) =>
  Effect.gen(function* () {
    const running = yield* servers.fork()
    const recovered = Effect.gen(function* () {
      const [fork] = yield* Container.fork(running.container)
      yield* WaitFor.log(fork!, ready)
      const { hostname, port } = yield* Container.publish(fork!, 5432)
      yield* asking({ ...running.connection, host: hostname, port }, question)
    })
    return yield* Effect.all([
      contender(RUNNING, recovered),
      contender(DATABASE, Effect.flatMap(databases.fork(), postgresServer.ask)),
      contender(
        AHEAD,
        databases.fork(),
        Effect.scoped(Effect.flatMap(databases.fork(), ({ connection }) => testing(connection)))
      ),
      contender(ON_DEMAND, databases.fork(), databases.fork())
    ])
  })

/** A `postgres` of the host, on a folder that was prepared and on a copy of it. */
const waysToBare = Effect.gen(function* () {
  const place = yield* temporaryFolder
  const bare = yield* Effect.try({ try: () => host(place), catch: unmeasured })
  const folder = yield* bare.prepare
  return yield* Effect.all([
    contender(BARE, bare.ask(folder, question)),
    contender(
      COPIED,
      Effect.flatMap(bare.copy(folder), (data) => bare.ask(data, question))
    )
  ])
}).pipe(
  Effect.catchTag("Unmeasured", ({ message }) => Effect.as(Console.log(`skipped ${BARE}: ${message}`), []))
)

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const { image, missing } = yield* Effect.promise(() => service("postgres"))
    if (missing !== false) return yield* Effect.fail(unmeasured(missing))
    const servers = yield* postgresServer.of(image, KEY).open
    const databases = yield* postgres({ ...optionsOf(image, KEY), fork: "database" }).open
    const { layout } = yield* image
    const contenders = [
      ...(yield* waysTo(postgresServer)),
      ...(yield* waysToDatabases(servers, databases)),
      ...(yield* waysToBare),
      ...(layout === undefined
        ? []
        : [
            ...(yield* enginePostgres("podman", [PODMAN, PODMAN_VOLUME], yield* temporaryFolder, layout)),
            ...(yield* enginePostgres("docker", [DOCKER, DOCKER_VOLUME], yield* temporaryFolder, layout))
          ]),
      ...(yield* waysTo(mariadbServer)),
      ...(yield* waysTo(redisServer))
    ]
    const { skipped, summaries } = yield* interleave(contenders, { rounds, warmups: 1 })
    for (const [name, why] of skipped) yield* Console.log(`skipped ${name}: ${why}`)
    yield* Console.log(timesTable(summaries, BARE))
    const many = [
      yield* measureMany(postgresServer, MANY),
      yield* measureMany(mariadbServer, MANY),
      yield* measureMany(redisServer, MANY)
    ]
    const fork = forkOf("postgres")
    const targets: ReadonlyArray<Target> = [
      { what: `${fork} / ${BARE}`, value: ratio(summaries, fork, BARE), atMost: 1.3 },
      { what: `${fork} / ${PODMAN}`, value: ratio(summaries, fork, PODMAN), atMost: 0.1 },
      { what: `${ON_DEMAND}, ms`, value: summaries[ON_DEMAND]!.median, atMost: 60 },
      { what: `${AHEAD}, ms`, value: summaries[AHEAD]!.median, atMost: 5 },
      { what: `memory of ${MANY} forks of postgres, MB (PSS)`, value: many[0]!.bytes / 1e6, atMost: 1500 }
    ]
    yield* Console.log(targetsTable(targets, "medians"))
    yield* Console.log(
      `written: ${writeResults("fixtures", { machine: machine(), rounds, summaries, many })}`
    )
  }).pipe(Effect.mapError(unmeasured))

export const fixtures = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "20" } } })
  return onBerth(measure(Number(values.rounds)))
}
