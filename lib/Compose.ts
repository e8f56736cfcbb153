/**
 * Compose files, such as `compose.yaml`: read as the options of `Fixture.group`, and brought up as a group of services, without a
 * daemon and without a command of Docker. What Berth does not support is an error with its line, never ignored.
 *
 * What is as the Compose specification says, and what is not:
 *
 * - Supported are services with `image`, `build` (`context`, `dockerfile`, `dockerfile_inline`, `target`, `args`, `additional_contexts` other than `target:NAME`,
 *   one of `platforms`, `network`, `no_cache`, `ssh` with sockets of agents, `entitlements`, `privileged`), `pull_policy`, `command`, `entrypoint`, `environment`, `env_file`, `ports`, `expose`, `volumes`, `tmpfs`,
 *   `depends_on`, `healthcheck`, `networks`, `network_mode: none`, `profiles`, `working_dir`, `user`, `hostname`, `container_name`, `extra_hosts`, `dns`,
 *   `dns_search`, `labels`, `cap_add`, `cap_drop`, `read_only`, `ulimits`, `shm_size`, `mem_limit`, `cpus`, `pids_limit`, `deploy.resources.limits`,
 *   `stop_signal`, `stop_grace_period`, `restart`, `init`, `tty`, `stdin_open` and `sysctls`; `networks`, `volumes` and `name` of the file;
 *   variables, `.env`, anchors, `<<`, and keys that begin with `x-`. Services whose profiles are not active are not read.
 * - A port without an address is published on `localhost`, as by `Container.publish`, and not on all addresses.
 * - A service with `build` has the image of its Dockerfile, built as `Build.dockerfile` does; `image` is its name then. Steps of a build have no
 *   network, unless it says `network: host`. `privileged` allows `RUN --security=insecure`, as the entitlement `security.insecure` does.
 * - A network reaches other machines by TCP (`outbound: "proxy"`), unless it is `internal`.
 * - A volume of the file is kept in Berth's folder under the name `PROJECT_VOLUME`. What the image has at its target is not copied into it.
 * - The source of a bind has to exist. Paths are relative to the folder of the file, and may lead out of it, as with Docker: a compose
 *   file has the rights of whoever brings it up.
 * - A container that `restart` starts again is a new one: what the last one wrote outside of volumes is gone.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as Fixture from "./Fixture.ts"
import { attempt } from "./internal/util/fromThrowing.ts"
import { later } from "./internal/util/later.ts"

const reading = later(() => import("./internal/compose/project.ts"))

/**
 * The text of a compose file.
 *
 * @since 0.2.0
 * @category models
 */
export interface Text {
  readonly text: string
  /** The folder that paths of the text are relative to, and whose `.env` is read. Default: the working folder of the program. */
  readonly folder?: string | undefined
}

/**
 * @since 0.2.0
 * @category models
 */
export interface Options {
  /** The active profiles, `"*"` for all. Default: none, so that only services without `profiles` are there. */
  readonly profiles?: ReadonlyArray<string> | undefined
  /** The variables of the environment, which come before those of the file `.env` beside the compose file. Default: `process.env`. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
  /** The name of the project. Default: the variable `COMPOSE_PROJECT_NAME`, the file's `name`, or the name of its folder. */
  readonly name?: string | undefined
}

/**
 * A compose file that was read: the options of `Fixture.group`, as data that can be changed before it is brought up.
 *
 * @since 0.2.0
 * @category models
 */
export interface Project extends Fixture.GroupOptions<Readonly<Record<string, Fixture.ImageService>>> {
  readonly name: string
}

/**
 * Reads a compose file, by its path or as text. Nothing is started.
 *
 * Fails with `ComposeError`, which has the file, the line, the column and the keys that lead to what is wrong or not supported, such as
 * `services.db.privileged`.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const project = yield* Compose.read("compose.yaml", { profiles: ["test"] })
 * const app = yield* Fixture.group({ ...project, volumes: { data: {} } }) // its volume ends with the group
 */
export const read = (source: string | Text, options: Options = {}): Effect.Effect<Project, BerthError> =>
  reading((module) => {
    const warnings: Array<string> = []
    return Effect.tap(
      attempt(() => module.read(source, options, (message) => warnings.push(message))),
      () => Effect.forEach(warnings, (message) => Effect.logWarning(message), { discard: true })
    )
  }).pipe(Effect.withSpan("berth.Compose.read"))

/**
 * Brings up a compose file, or a project of `read`: see `Fixture.group`. It is there once all services have started, and those with a
 * health check are healthy.
 *
 * @since 0.2.0
 * @category constructors
 * @example
 * const app = yield* Compose.up("compose.yaml")
 * const response = yield* Container.fetch(app.services.api!, "http://api:8080/")
 */
export const up = (
  source: string | Text | Project,
  options: Options = {}
): Effect.Effect<Fixture.Group<Project["services"]>, BerthError, Berth | Scope.Scope> =>
  Effect.flatMap(
    typeof source === "object" && "services" in source ? Effect.succeed(source) : read(source, options),
    (project) => Fixture.group<Project["services"]>(project)
  ).pipe(Effect.withSpan("berth.Compose.up"))
