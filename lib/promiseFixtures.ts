/**
 * Fixtures of common servers as promises: `berth/promise/fixtures`. A fixture is prepared once, in the first `fork` of any program, and
 * each fork is a server of its own with the prepared data: see `Fixture`.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import type * as BerthFixture from "./Fixture.ts"
import * as presets from "./fixtures.ts"
import type { Image } from "./Image.ts"
import { makeFixture } from "./internal/promise/fixture.ts"
import { named } from "./internal/promise/images.ts"
import { lazyClient } from "./internal/promise/postgresClient.ts"
import { shared } from "./internal/promise/runtime.ts"
import type { Box, CallOptions } from "./promise.ts"

export type { MariaDb, Nginx, Postgres, RabbitMq, Redis } from "./fixtures.ts"

/**
 * A running server: what clients need, and its container. It is gone when it is disposed of.
 *
 * @since 0.2.0
 * @category models
 */
export type Fork<A> = A &
  AsyncDisposable & {
    readonly box: Box
    /** The same as the end of `await using`. */
    readonly close: () => Promise<void>
  }

/**
 * A server while it is prepared.
 *
 * @since 0.2.0
 * @category models
 */
export type Server<A> = A & { readonly box: Box }

/**
 * @since 0.2.0
 * @category models
 */
export interface ForkOptions extends BerthFixture.ForkOptions, CallOptions {}

/**
 * A fixture. Nothing starts before the first `fork`. What its forks share (with `fork: "database"` a server) ends with the program, or
 * when the fixture is disposed of; it does not keep the program running.
 *
 * @since 0.2.0
 * @category models
 */
export interface Fixture<A> extends AsyncDisposable {
  /** Rejects as `Fixture.make` fails. */
  readonly fork: (options?: ForkOptions) => Promise<Fork<A>>
  /**
   * Calls `body` with a fork, and closes it when the result is there. If `body` fails, its error has the last 20 lines of the server's log
   * at the end of its message, where every test runner shows them. A server with `shared: "run"` has its log in the first program alone.
   */
  readonly use: <T>(body: (fork: Fork<A>) => T, options?: ForkOptions) => Promise<Awaited<T>>
  /** Ends what the forks share. The same as the end of `await using`. */
  readonly close: () => Promise<void>
}

/**
 * A client of the prepared database.
 *
 * @since 0.2.0
 * @category models
 */
export interface Client {
  /** Runs SQL by the package `pg`, which the program has to have: it is loaded by the first call. */
  readonly query: <Row = Readonly<Record<string, unknown>>>(
    text: string,
    values?: ReadonlyArray<unknown>
  ) => Promise<{ readonly rows: ReadonlyArray<Row> }>
}

type Options<Preset> = Omit<Preset, "image" | "migrate"> & {
  /** As the first argument of `start`, in place of the official image. */
  readonly image?: string | Image | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface PostgresOptions extends Options<presets.PostgresOptions> {
  /** Fills the new database: with the client, or with other tools by `server.url`. See `PresetOptions.migrate`. */
  readonly migrate?: ((client: Client, server: Server<presets.Postgres>) => unknown) | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RedisOptions extends Options<presets.RedisOptions> {
  /** Fills the new server. See `PresetOptions.migrate`. */
  readonly migrate?: ((server: Server<presets.Redis>) => unknown) | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface MariaDbOptions extends Options<presets.MariaDbOptions> {
  /** Fills the new server. See `PresetOptions.migrate`. */
  readonly migrate?: ((server: Server<presets.MariaDb>) => unknown) | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RabbitMqOptions extends Options<presets.RabbitMqOptions> {
  /** Fills the new server. See `PresetOptions.migrate`. */
  readonly migrate?: ((server: Server<presets.RabbitMq>) => unknown) | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface NginxOptions extends Options<presets.NginxOptions> {}

const imageOf = (image: string | Image | undefined) =>
  image === undefined ? {} : { image: Effect.suspend(() => named(image, {})) }

/**
 * PostgreSQL: see `postgres` of `berth/fixtures`.
 *
 * @since 0.2.0
 * @category presets
 * @example
 * const db = postgres({ version: "17", migrate: (client) => client.query("create table t (n int)") })
 *
 * await using mine = await db.fork()
 * const client = new pg.Client(mine.connection)
 */
export const postgres = ({ image, migrate, ...options }: PostgresOptions): Fixture<presets.Postgres> =>
  makeFixture(shared, (server) =>
    presets.postgres({
      ...options,
      ...imageOf(image),
      key: options.key ?? String(migrate ?? ""),
      migrate:
        migrate === undefined
          ? undefined
          : server(async (running) => {
              const client = lazyClient(running.connection)
              try {
                await migrate(client, running)
              } finally {
                await client.end()
              }
            })
    })
  )

interface Filled<A> extends Options<presets.PresetOptions<A>> {
  readonly migrate?: ((server: Server<A>) => unknown) | undefined
}

/** A fixture of a preset, filled by a function with promises. */
const filled = <A extends object, O extends Filled<A>>(
  preset: (options: presets.PresetOptions<A>) => BerthFixture.Fixture<A>,
  { image, migrate, ...options }: O
): Fixture<A> =>
  makeFixture(shared, (server) =>
    preset({
      ...options,
      ...imageOf(image),
      key: options.key ?? String(migrate ?? ""),
      migrate:
        migrate === undefined ? undefined : server(async (running: Server<A>) => await migrate(running))
    })
  )

/**
 * Redis: see `redis` of `berth/fixtures`.
 *
 * @since 0.2.0
 * @category presets
 */
export const redis = (options: RedisOptions): Fixture<presets.Redis> => filled(presets.redis, options)

/**
 * MariaDB: see `mariadb` of `berth/fixtures`.
 *
 * @since 0.2.0
 * @category presets
 */
export const mariadb = (options: MariaDbOptions): Fixture<presets.MariaDb> => filled(presets.mariadb, options)

/**
 * RabbitMQ: see `rabbitmq` of `berth/fixtures`.
 *
 * @since 0.2.0
 * @category presets
 */
export const rabbitmq = (options: RabbitMqOptions): Fixture<presets.RabbitMq> =>
  filled(presets.rabbitmq, options)

/**
 * nginx: see `nginx` of `berth/fixtures`.
 *
 * @since 0.2.0
 * @category presets
 */
export const nginx = ({ image, ...options }: NginxOptions): Fixture<presets.Nginx> =>
  makeFixture(shared, () => presets.nginx({ ...options, ...imageOf(image) }))
