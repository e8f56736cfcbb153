/**
 * Fixtures of common servers, for programs that use Effect: see `Fixture`. `berth/promise/fixtures` has them for others. Each takes the
 * official image of its server, and images with Debian's packages.
 *
 * @since 0.2.0
 */
import type * as Effect from "effect/Effect"
import type { Fixture, ImageSource, Server } from "./Fixture.ts"
import * as internalMariadb from "./internal/fixtures/mariadb.ts"
import * as internalNginx from "./internal/fixtures/nginx.ts"
import * as internalPostgres from "./internal/fixtures/postgres.ts"
import * as internalRabbitmq from "./internal/fixtures/rabbitmq.ts"
import * as internalRedis from "./internal/fixtures/redis.ts"

/**
 * What the fixtures have in common.
 *
 * @since 0.2.0
 * @category models
 */
export interface PresetOptions<A, R = never> {
  /** The tag of the official image, such as `"17"` or `"17-alpine"`. Required without `image`. */
  readonly version?: string | undefined
  /** The image, in place of the official one. */
  readonly image?: ImageSource | undefined
  /**
   * Fills the new server. It runs once: all forks have its result. It runs again when its text changes, or `key`, or another option,
   * or the image.
   */
  readonly migrate?: ((server: Server<A>) => Effect.Effect<unknown, unknown, R>) | undefined
  /** All that `migrate` depends on, in place of its text: what it imports and the values that it uses are not in its text. */
  readonly key?: string | undefined
}

/**
 * The options by which clients of SQL databases connect.
 *
 * @since 0.2.0
 * @category models
 */
export interface DatabaseConnection {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: string
  readonly database: string
}

/**
 * How clients reach a PostgreSQL server.
 *
 * @since 0.2.0
 * @category models
 */
export interface Postgres {
  /**
   * `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with percent signs for special characters. Clients read them in users and passwords,
   * but not all of them in databases: use `connection` for a database whose name has other characters than letters, digits, `-`, `_`, `.`.
   */
  readonly url: string
  /** The options of `pg` and `postgres`. */
  readonly connection: DatabaseConnection
}

/**
 * @since 0.2.0
 * @category models
 */
export interface PostgresOptions<R = never> extends PresetOptions<Postgres, R> {
  /** The superuser's name. Default `postgres`. */
  readonly user?: string | undefined
  /** Default `postgres`. Clients need it from everywhere but within the container. */
  readonly password?: string | undefined
  /** Default: the user's name. */
  readonly database?: string | undefined
  /**
   * Settings of postgresql.conf. The defaults are for data that no crash of the machine has to survive: `fsync` and
   * `full_page_writes` are off, and `shared_buffers` is 16 MB.
   */
  readonly configuration?: Readonly<Record<string, string | number>> | undefined
  /** Files of the host that run before `migrate`, in their order: `.sql`, `.sql.gz`, and `.sh` in the container. */
  readonly init?: ReadonlyArray<string> | undefined
  /**
   * What a fork is. `"container"`: a server of its own. `"database"`: a database of one server, which lives as long as the opened
   * fixture. It is made faster and needs less memory, but all forks share roles and settings, and the options of a fork have no effect.
   * Default: `"container"`; with `shared`, `"database"`.
   */
  readonly fork?: "container" | "database" | undefined
  /**
   * Where the writable layer of a server is. On disk, a new database of 300 files waits for the journal of the file system while other
   * programs write: 80 to 240 ms, in memory 12 to 16; on an idle disk both take 20. Databases in memory can fill half of the machine's memory.
   * A file system with reflinks (xfs, btrfs) is between them: on a busy machine the first answer of a container takes 0.8 of the time on ext4
   * there, and 0.6 in memory.
   * Default: `"memory"` for databases, `"disk"` for containers, as `Container.snapshot` needs it.
   */
  readonly upper?: "disk" | "memory" | undefined
  /**
   * `"run"`: the databases of all programs that have opened the fixture at the same time, such as the workers of a test runner, are in
   * one server, which ends within a second after the last program: see `Fixture.Definition`. The databases of a program that dies stay
   * until then. Containers as forks share the prepared data in any case, and nothing more.
   */
  readonly shared?: "run" | undefined
}

/**
 * PostgreSQL. The image needs a user `postgres`, a shell, and the programs in the folders of Debian's packages or in
 * `/usr/local/bin`. The data is in `/var/lib/postgresql/berth`.
 *
 * A container's first answer takes 1.2 to 1.3 times as long as that of a `postgres` on the host, on 2 cores 38 ms: 3 for the
 * container, 20 for the server's own start, 8 for the connection, 5 for the statement. The server opens each file of a table for writing,
 * which copies 45 files, 5 MB. With `upper: "memory"` it is 1.1 times; while other programs write to the disk, 1.0 times instead of 1.6.
 * As a crash of the machine may lose the data of a test, nothing is synced; WAL segments have 1 MB, since the first write copies one.
 *
 * @since 0.2.0
 * @category presets
 * @example
 * const database = postgres({ version: "17", init: ["schema.sql"] })
 * const program = Effect.flatMap(Fixture.fork(database), ({ url }) => test(url))
 */
export const postgres: <R = never>(options: PostgresOptions<R>) => Fixture<Postgres, R> =
  internalPostgres.postgres

/**
 * How clients reach a Redis server.
 *
 * @since 0.2.0
 * @category models
 */
export interface Redis {
  /** `redis://:PASSWORD@HOST:PORT` */
  readonly url: string
  /** The options of `ioredis`. */
  readonly connection: {
    readonly host: string
    readonly port: number
    readonly password?: string | undefined
  }
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RedisOptions<R = never> extends PresetOptions<Redis, R> {
  /** Default: none. */
  readonly password?: string | undefined
  /**
   * `"run"`: each fork is the same server, also in other programs: see `Fixture.Definition`. All see the same keys, so each has to use
   * names, or a number of a database, of its own.
   */
  readonly shared?: "run" | undefined
  /** Settings of redis.conf. */
  readonly configuration?: Readonly<Record<string, string | number>> | undefined
  /**
   * Files of the host that run before `migrate`, in their order: `.redis` and `.redis.gz`, which have a command for `redis-cli` on each line,
   * or a comment after `#`; and `.sh` in the container, where `redis-cli` needs no password. An error of a command fails the preparation. The
   * image needs a shell, `sed` and `redis-cli` for them.
   */
  readonly init?: ReadonlyArray<string> | undefined
}

/**
 * Redis.
 *
 * @since 0.2.0
 * @category presets
 */
export const redis: <R = never>(options: RedisOptions<R>) => Fixture<Redis, R> = internalRedis.redis

/**
 * How clients reach a MariaDB server.
 *
 * @since 0.2.0
 * @category models
 */
export interface MariaDb {
  /** `mysql://USER:PASSWORD@HOST:PORT/DATABASE` */
  readonly url: string
  /** The options of `mysql2` and `mariadb`. */
  readonly connection: DatabaseConnection
}

/**
 * @since 0.2.0
 * @category models
 */
export interface MariaDbOptions<R = never> extends PresetOptions<MariaDb, R> {
  /** A user with all privileges. Default `root`. */
  readonly user?: string | undefined
  /** Default `root`. Clients need it from everywhere but within the container, where root needs none. */
  readonly password?: string | undefined
  /** A database that is made. Default `test`. */
  readonly database?: string | undefined
  /**
   * `"run"`: each fork is the same server, also in other programs: see `Fixture.Definition`. All see the same databases, so each has to make
   * one of its own.
   */
  readonly shared?: "run" | undefined
  /**
   * Settings of mariadbd, which reads no file of the image. The defaults are for data that no crash has to survive: nothing is synced, the
   * doublewrite buffer is off, and the buffer pool is 32 MB.
   */
  readonly configuration?: Readonly<Record<string, string | number>> | undefined
  /** Files of the host that run before `migrate`, in their order: `.sql`, `.sql.gz`, and `.sh` in the container. */
  readonly init?: ReadonlyArray<string> | undefined
}

/**
 * MariaDB 10.4 and later. The image needs a user `mysql`, a shell, and the programs `mariadbd`, `mariadb-install-db` and, for `init`,
 * `mariadb`. The data is in `/var/lib/mysql/berth`.
 *
 * @since 0.2.0
 * @category presets
 * @example
 * const database = mariadb({ version: "11.4", init: ["schema.sql"] })
 */
export const mariadb: <R = never>(options: MariaDbOptions<R>) => Fixture<MariaDb, R> = internalMariadb.mariadb

/**
 * How clients reach a RabbitMQ server.
 *
 * @since 0.2.0
 * @category models
 */
export interface RabbitMq {
  /** `amqp://USER:PASSWORD@HOST:PORT/VIRTUAL-HOST` */
  readonly url: string
  /** The options of `amqplib`. */
  readonly connection: {
    readonly hostname: string
    readonly port: number
    readonly username: string
    readonly password: string
    readonly vhost: string
  }
}

/**
 * @since 0.2.0
 * @category models
 */
export interface RabbitMqOptions<R = never> extends PresetOptions<RabbitMq, R> {
  /** Default `guest`. */
  readonly user?: string | undefined
  /** Default `guest`. */
  readonly password?: string | undefined
  /** Default `/`. */
  readonly virtualHost?: string | undefined
  /**
   * `"run"`: each fork is the same server, also in other programs: see `Fixture.Definition`. All see the same queues, so each has to use
   * names, or a virtual host, of its own.
   */
  readonly shared?: "run" | undefined
  /** Settings of rabbitmq.conf. */
  readonly configuration?: Readonly<Record<string, string | number>> | undefined
  /**
   * Files of the host that run before `migrate`, in their order: `.json` and `.json.gz` with definitions, as `rabbitmqctl export_definitions`
   * writes them, and `.sh` in the container.
   */
  readonly init?: ReadonlyArray<string> | undefined
}

/**
 * RabbitMQ. The image needs a user `rabbitmq` and a shell. The node is `rabbit@localhost`.
 *
 * @since 0.2.0
 * @category presets
 * @example
 * const broker = rabbitmq({ version: "4.1" })
 */
export const rabbitmq: <R = never>(options: RabbitMqOptions<R>) => Fixture<RabbitMq, R> =
  internalRabbitmq.rabbitmq

/**
 * How clients reach an nginx.
 *
 * @since 0.2.0
 * @category models
 */
export interface Nginx {
  /** `http://HOST:PORT` */
  readonly url: string
}

/**
 * @since 0.2.0
 * @category models
 */
export interface NginxOptions extends Pick<PresetOptions<Nginx>, "image" | "version"> {
  /** A folder of the host that is served as it is, from `/srv/berth`. The workers' user must be able to read it. */
  readonly files?: string | undefined
  /** Directives of the `server` block in place of `root /srv/berth;`, such as `location / { return 204; }`. */
  readonly server?: string | undefined
  /**
   * Files of the host that prepare the server, in their order: `.conf` and `.conf.gz` for the `http` block, with directives such as `upstream`
   * and `map` and with other servers, and `.sh` in the container, for example to make what it serves.
   */
  readonly init?: ReadonlyArray<string> | undefined
}

/**
 * nginx. Without `init`, nothing is prepared: a fork is a container of the image.
 *
 * @since 0.2.0
 * @category presets
 * @example
 * const upstream = nginx({ version: "1.29", server: "location / { return 503; }" })
 */
export const nginx: (options: NginxOptions) => Fixture<Nginx> = internalNginx.nginx
