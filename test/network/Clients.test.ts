/** Real servers in containers, and the usual clients of theirs, which talk to them without a port of the host. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { AbstractConnector, Redis } from "ioredis"
import mysql from "mysql2/promise"
import pg from "pg"
import postgresJs from "postgres"
import { Container, WaitFor } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { type ServerName, service } from "../support/services.ts"

const names = ["postgres", "mariadb", "redis", "nginx", "rabbitmq"] as const
const services = Object.fromEntries(
  await Promise.all(names.map(async (name) => [name, await service(name)] as const))
) as Readonly<Record<ServerName, Awaited<ReturnType<typeof service>>>>

/** The line by which a server says that it is ready, and its port. */
const ready: Readonly<Record<ServerName, readonly [line: string, port: number]>> = {
  postgres: ["database system is ready to accept connections", 5432],
  mariadb: ["mariadbd: ready for connections", 3306],
  redis: ["Ready to accept connections", 6379],
  nginx: ["start worker processes", 80],
  rabbitmq: ["Server startup complete", 5672]
}

const start = (name: ServerName, options: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    const box = yield* Container.start(yield* services[name].image, options)
    yield* WaitFor.log(box, ready[name][0], { timeout: "60 seconds" })
    return box
  })

/** The inodes of this program's sockets in its own network namespace, in which no connection to a container can be. */
const ownSockets = (): ReadonlyArray<string> => {
  const inodes = ["tcp", "tcp6"].flatMap((table) =>
    fs
      .readFileSync(`/proc/net/${table}`, "utf8")
      .split("\n")
      .slice(1)
      .map((line) => line.trim().split(/\s+/)[9])
  )
  return fs.readdirSync("/proc/self/fd").flatMap((fd) => {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(fs.readlinkSync(`/proc/self/fd/${fd}`))?.[1]
      return inode !== undefined && inodes.includes(inode) ? [inode] : []
    } catch {
      return [] // the descriptor of the folder itself
    }
  })
}

/** Uses a client, which must not make a socket on the host; `use` calls `connected` while it is connected. */
const withoutHost = <A>(use: (connected: () => void) => Promise<A>): Effect.Effect<A> =>
  Effect.promise(async () => {
    const before = ownSockets()
    let checked = false
    const result = await use(() => {
      checked = true
      assert.deepEqual(
        ownSockets().filter((inode) => !before.includes(inode)),
        []
      )
    })
    assert.ok(checked)
    return result
  })

const connection = { user: "postgres", password: "postgres", database: "postgres" }

suite("a client of a real server in a container", (effect) => {
  for (const name of names)
    effect(
      `${name} of Debian's package serves in a container`,
      function* () {
        const box = yield* start(name)
        yield* Effect.scoped(Container.connect(box, ready[name][1]))
      },
      { skip: services[name].missing }
    )

  effect(
    "pg: a client with a socket, one that connects late, and a pool",
    function* () {
      const box = yield* start("postgres")
      yield* withoutHost(async (connected) => {
        // Its types know only the function, the library takes both.
        const stream = Container.netSocket(box, 5432) as never
        const client = new pg.Client({ ...connection, stream })
        await client.connect()
        assert.deepEqual((await client.query("select 6 * 7 as n")).rows, [{ n: 42 }])
        connected()
        await client.end()
      })
      yield* withoutHost(async (connected) => {
        const socket = Container.netSocket(box, 5432)
        await new Promise((resolve) => socket.once("connect", resolve))
        const client = new pg.Client({ ...connection, stream: () => socket })
        await client.connect()
        connected()
        await client.end()
      })
      yield* withoutHost(async (connected) => {
        const pool = new pg.Pool({ ...connection, max: 5, stream: () => Container.netSocket(box, 5432) })
        const answers = await Promise.all(
          Array.from({ length: 20 }, (_, n) => pool.query("select $1::int as n", [n]))
        )
        assert.deepEqual(
          answers.map(({ rows }) => rows[0].n),
          Array.from({ length: 20 }, (_, n) => n)
        )
        connected()
        await pool.end()
      })
    },
    { skip: services.postgres.missing }
  )

  effect(
    "pg: the server refuses a wrong password",
    function* () {
      const box = yield* start("postgres")
      const client = new pg.Client({
        ...connection,
        password: "wrong",
        stream: () => Container.netSocket(box, 5432)
      })
      const error = yield* Effect.flip(Effect.tryPromise({ try: () => client.connect(), catch: String }))
      assert.match(error, /password authentication failed/)
    },
    { skip: services.postgres.missing }
  )

  effect(
    "postgres.js: its option socket, and a Unix socket of the container",
    function* () {
      const box = yield* start("postgres")
      for (const address of [5432, { path: "/var/run/postgresql/.s.PGSQL.5432" }])
        yield* withoutHost(async (connected) => {
          const socket = () => Container.netSocket(box, address)
          const sql = postgresJs({ ...connection, max: 2, socket } as postgresJs.Options<{}>)
          const [row] = await sql`select ${"text"} as text`
          assert.deepEqual(row, { text: "text" })
          connected()
          await sql.end()
        })
    },
    { skip: services.postgres.missing }
  )

  effect(
    "ioredis: a Connector",
    function* () {
      const box = yield* start("redis")
      class InContainer extends AbstractConnector {
        constructor() {
          super(1000)
        }
        override async connect() {
          this.stream = Container.netSocket(box, 6379)
          return this.stream
        }
      }
      yield* withoutHost(async (connected) => {
        const client = new Redis({ Connector: InContainer as never })
        await client.set("key", "value")
        assert.equal(await client.get("key"), "value")
        connected()
        await client.quit()
      })
    },
    { skip: services.redis.missing }
  )

  effect(
    "mysql2: a connection with a socket, and a pool",
    function* () {
      const box = yield* start("mariadb")
      const login = { user: "root", password: "mariadb" }
      yield* withoutHost(async (connected) => {
        const client = await mysql.createConnection({ ...login, stream: Container.netSocket(box, 3306) })
        assert.deepEqual((await client.query("select 6 * 7 as n"))[0], [{ n: 42 }])
        connected()
        await client.end()
      })
      yield* withoutHost(async (connected) => {
        const pool = mysql.createPool({
          ...login,
          connectionLimit: 3,
          stream: () => Container.netSocket(box, 3306)
        })
        const answers = await Promise.all(
          Array.from({ length: 9 }, (_, n) => pool.query("select ? as n", [n]))
        )
        assert.deepEqual(
          answers.map(([rows]) => rows),
          Array.from({ length: 9 }, (_, n) => [{ n }])
        )
        connected()
        await pool.end()
      })
    },
    { skip: services.mariadb.missing }
  )
})
