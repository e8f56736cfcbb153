/** Real servers in containers, and the usual clients of theirs, which talk to them without a port of the host. */
import assert from "node:assert/strict"
import { once } from "node:events"
import * as fs from "node:fs"
import * as net from "node:net"
import { test } from "node:test"
import * as tls from "node:tls"
import * as HttpClient from "@effect/platform/HttpClient"
import * as Effect from "effect/Effect"
import { AbstractConnector, Redis } from "ioredis"
import mysql from "mysql2/promise"
import pg from "pg"
import postgresJs from "postgres"
import { Container, Network, WaitFor } from "../../lib/index.ts"
import { makeAuthority } from "../support/certificates.ts"
import { makeTemporaryFolder, remove, suite } from "../support/effect.ts"
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

test("a connection to this machine is seen among this program's sockets", async () => {
  const before = ownSockets()
  const server = net.createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  assert.equal(ownSockets().length, before.length + 1)
  server.close()
  await once(server, "close")
})

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
    "pg: a client by the address of a container in a network, whose loopback would trust it",
    function* () {
      const image = yield* services.postgres.image
      const network = yield* Network.make()
      const db = yield* Container.start(image, { network, name: "db", env: { POSTGRES_PASSWORD: "x" } })
      yield* WaitFor.port(db, 5432)
      const trusting = "sed -i '/127.0.0.1/s/scram-sha-256/trust/' $PGDATA/pg_hba.conf && pg_ctl reload"
      yield* Container.exec(db, ["sh", "-c", trusting])
      yield* WaitFor.log(db, "received SIGHUP, reloading configuration files")
      const trusted = ["psql", "--host=127.0.0.1", "--no-password", "--command=select 1"]
      assert.equal((yield* Container.exec(db, trusted)).exitCode, 0)
      yield* withoutHost(async (connected) => {
        const login = { user: "postgres", password: "x" }
        // @ts-expect-error its types know only a function that gives a socket, the library takes both
        const client = new pg.Client({ ...login, stream: Container.netSocket(db, 5432) })
        await client.connect()
        assert.deepEqual((await client.query("select 6 * 7 as n")).rows, [{ n: 42 }])
        connected()
        await client.end()
      })
      const stream = () => Container.netSocket(db, 5432)
      const wrong = new pg.Client({ user: "postgres", password: "wrong", stream })
      const error = yield* Effect.flip(Effect.tryPromise({ try: () => wrong.connect(), catch: String }))
      assert.match(error, /password authentication failed/)
    },
    { skip: services.postgres.missing }
  )

  for (const [mode, run, options] of [
    ["a container", effect, {}],
    ['a container with userns: "auto"', effect.asRoot, { userns: "auto" }]
  ] as const)
    run(
      `pg: clients, a pool and a flood of ${mode}`,
      function* () {
        const box = yield* start("postgres", options)
        const stream = () => Container.netSocket(box, 5432)
        yield* withoutHost(async (connected) => {
          const socket = stream()
          await new Promise((resolve) => socket.once("connect", resolve))
          const late = new pg.Client({ ...connection, stream: () => socket })
          await late.connect()
          connected()
          await late.end()
        })
        yield* withoutHost(async (connected) => {
          const pool = new pg.Pool({ ...connection, max: 5, stream })
          const numbers = Array.from({ length: 20 }, (_, n) => n)
          const answers = await Promise.all(numbers.map((n) => pool.query("select $1::int as n", [n])))
          assert.deepEqual(
            answers.map(({ rows }) => rows[0].n),
            numbers
          )
          connected()
          await pool.end()
        })
        yield* withoutHost(async (connected) => {
          const client = new pg.Client({ ...connection, stream })
          await client.connect()
          const { rows } = await client.query("select repeat('x', 1000) as x from generate_series(1, 20000)")
          assert.equal(rows.length, 20000)
          assert.ok(rows.every(({ x }) => x.length === 1000))
          connected()
          await client.end()
        })
      },
      { skip: services.postgres.missing }
    )

  effect(
    "pg: a port that nobody listens on, and a server that ends, are errors of the client",
    function* () {
      const box = yield* start("postgres")
      const nobody = new pg.Client({ ...connection, stream: () => Container.netSocket(box, 5433) })
      const refused = yield* Effect.flip(
        Effect.tryPromise({ try: () => nobody.connect(), catch: (error) => error as { code?: string } })
      )
      assert.equal(refused.code, "ECONNREFUSED")
      assert.match(String(refused), /127\.0\.0\.1:5433: nothing listens there/)
      const client = new pg.Client({ ...connection, stream: () => Container.netSocket(box, 5432) })
      client.on("error", () => {})
      yield* Effect.promise(() => client.connect())
      const asleep = client.query("select pg_sleep(1000)").then(
        () => "an answer",
        (error) => String(error)
      )
      yield* Container.signal(box, "SIGQUIT")
      assert.match(yield* Effect.promise(() => asleep), /terminat|reset|closed|shut/i)
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
    "ioredis: a Connector, and a connection that the server ends",
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
        // It connects again, by its Connector.
        const again = new Promise((resolve) => client.once("ready", resolve))
        await client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no").catch(() => {})
        await again
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

  effect(
    "fetch, the HttpClient and a socket with TLS have the pages of nginx",
    function* () {
      const authority = makeAuthority()
      const { certificate, key } = authority.issue("api")
      const folder = yield* Effect.acquireRelease(Effect.sync(makeTemporaryFolder), (path) =>
        Effect.sync(() => remove(path))
      )
      fs.chmodSync(folder, 0o755)
      const server = `listen 443 ssl default_server; root /pages;
        ssl_certificate /etc/nginx/conf.d/certificate; ssl_certificate_key /etc/nginx/conf.d/key;`
      fs.writeFileSync(`${folder}/tls.conf`, `server { listen 80 default_server; ${server} }`)
      fs.writeFileSync(`${folder}/certificate`, certificate)
      fs.writeFileSync(`${folder}/key`, key)
      const page = "0123456789".repeat(1_000_000)
      fs.writeFileSync(`${folder}/page`, page)
      const network = yield* Network.make()
      const api = yield* start("nginx", {
        network,
        name: "api",
        mounts: [
          { type: "bind", source: folder, target: "/etc/nginx/conf.d", readOnly: true },
          { type: "bind", source: folder, target: "/pages", readOnly: true }
        ]
      })
      const before = ownSockets()
      const response = yield* Container.fetch(api, "http://api/page")
      assert.equal(response.headers.get("content-length"), String(page.length))
      assert.ok((yield* Effect.promise(() => response.text())) === page)
      assert.equal((yield* Container.fetch(api, "http://api/none")).status, 404)
      const text = yield* HttpClient.get("http://api/page").pipe(
        Effect.flatMap(({ text }) => text),
        Effect.provide(Container.httpClient(api))
      )
      assert.ok(text === page)
      const { authorized, status } = yield* Effect.promise(
        () =>
          new Promise<{ readonly authorized: boolean; readonly status: string }>((resolve, reject) => {
            const socket = tls.connect({
              socket: Container.netSocket(api, 443),
              ca: authority.certificate,
              servername: "api"
            })
            let status = ""
            socket.on("secureConnect", () =>
              socket.write("HEAD /page HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
            )
            socket.on("data", (bytes) => {
              status += bytes
            })
            socket.on("error", reject)
            socket.on("end", () => resolve({ authorized: socket.authorized, status }))
          })
      )
      assert.equal(authorized, true)
      assert.match(status, /^HTTP\/1\.1 200 OK\r\n/)
      assert.deepEqual(ownSockets(), before)
    },
    { skip: services.nginx.missing }
  )
})
