/** What a runner lets its clients do: whatever could reach past a container is refused unless its configuration allows it. */
import * as process from "node:process"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { Limits } from "../../Cgroup.ts"
import type { StartOptions } from "../../Container.ts"
import { FleetError } from "../../FleetError.ts"
import type { Allow } from "../../fleet.ts"
import type { Mount } from "../../Mount.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import { native, O_PATH } from "../system/addon.ts"
import { parseBytes } from "../util/bytes.ts"
import type { PlainStart } from "./options.ts"

/** What a container takes of a runner's room. */
export interface Request {
  readonly memoryBytes: number
  readonly cpus: number
}

export interface Admitted {
  readonly options: StartOptions
  readonly request: Request
}

const refused = (runner: string, what: string, how: string): FleetError =>
  new FleetError({
    reason: "Refused",
    subject: `runner ${runner}`,
    detail: `its configuration does not allow ${what}: leave it out, or have the runner started with ${how}`
  })

/** The first part of the options that needs a permission which is not given. */
const privilege = (options: PlainStart): string | undefined => {
  const { capabilities, limits, seccomp } = options
  if ((capabilities as { readonly add?: unknown } | undefined)?.add !== undefined) return "capabilities.add"
  if (seccomp !== undefined && seccomp !== "default") return "another seccomp profile than the default one"
  if (options.noNewPrivileges === false) return "noNewPrivileges: false"
  if (options.appArmor !== undefined) return "an AppArmor profile"
  if (options.maskedPaths !== undefined) return "maskedPaths"
  if (options.readonlyPaths !== undefined) return "readonlyPaths"
  if (options.sysctls !== undefined) return "sysctls"
  if (options.userns !== undefined && options.userns !== "auto") return "user namespaces with maps of its own"
  if ((limits as Limits | undefined)?.devices !== undefined) return "limits.devices"
  return undefined
}

const hostNamespace = ({ namespaces, network }: PlainStart): string | undefined => {
  if (network === "host") return "the host's network"
  const [kind] = Object.entries(namespaces ?? {}).find(([, origin]) => origin === "host") ?? []
  return kind === undefined ? undefined : `the host's ${kind} namespace`
}

const memoryOf = (limits: Limits): number | undefined => {
  const { memory } = limits
  const max = typeof memory === "object" ? memory.max : memory
  if (max === undefined || max === "max") return undefined
  return parseBytes(max)
}

/** A limit of the container, below the runner's largest; without one, the runner's largest. */
const below = <A extends number>(
  runner: string,
  option: string,
  wanted: number | "max" | undefined,
  most: A | undefined
): Effect.Effect<number | undefined, FleetError> =>
  most === undefined
    ? Effect.succeed(wanted === "max" ? undefined : wanted)
    : wanted !== undefined && wanted !== "max" && wanted <= most
      ? Effect.succeed(wanted)
      : wanted === undefined
        ? Effect.succeed(most)
        : refused(runner, `${option} of ${wanted}, as ${most} is its largest`, `a larger one`)

/**
 * A folder or file of the host, below one that is allowed, as a path that nobody can lead elsewhere any more: that of a descriptor
 * which was opened without following a link.
 */
const boundPath = (
  runner: string,
  source: string,
  allowed: ReadonlyArray<string>
): Effect.Effect<string, BerthError, Scope.Scope> => {
  const folder = allowed.find((path) => source === path || source.startsWith(`${path}/`))
  if (folder === undefined)
    return refused(runner, `the bind of ${JSON.stringify(source)}`, `\`binds\` that has its folder`)
  const open = Effect.try({
    try: () =>
      inRoot.using(inRoot.openHost(folder, inRoot.O_FOLDER), (root) =>
        inRoot.open(root, source.slice(folder.length) || "/", O_PATH)
      ),
    catch: failedAs(`bind ${source}`)
  })
  return Effect.map(
    Effect.acquireRelease(open, (fd) => Effect.sync(() => native().close(fd))),
    (fd) => `/proc/${process.pid}/fd/${fd}`
  )
}

/** Checks the options of a start against the configuration of the runner. What is not allowed fails, before anything is done. */
export const admit = (
  runner: string,
  allow: Allow,
  reference: string,
  { mounts = [], ...options }: PlainStart
): Effect.Effect<Admitted, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    if (allow.images !== undefined && !allow.images.some((prefix) => reference.startsWith(prefix)))
      return yield* refused(runner, `the image ${reference}`, "`images` that has a prefix of it")
    const host = hostNamespace(options)
    if (host !== undefined && allow.hostNamespaces !== true)
      return yield* refused(runner, host, "`hostNamespaces`")
    const privileged = privilege(options)
    if (privileged !== undefined && allow.privileges !== true)
      return yield* refused(runner, privileged, "`privileges`")
    const limits = (options.limits ?? {}) as Limits
    const most = allow.limits ?? {}
    const bytes = most.memory === undefined ? undefined : parseBytes(most.memory)
    const memory = yield* below(runner, "limits.memory", memoryOf(limits), bytes)
    const cpus = yield* below(runner, "limits.cpus", limits.cpus, most.cpus)
    const pids = yield* below(runner, "limits.pids", limits.pids, most.pids)
    const bound: Array<Mount> = []
    for (const mount of mounts)
      bound.push(
        mount.type === "bind"
          ? { ...mount, source: yield* boundPath(runner, mount.source, allow.binds ?? []) }
          : mount
      )
    return {
      options: {
        ...options,
        mounts: bound,
        limits: {
          ...limits,
          ...(memory === undefined
            ? {}
            : { memory: typeof limits.memory === "object" ? limits.memory : memory }),
          ...(cpus === undefined ? {} : { cpus }),
          ...(pids === undefined ? {} : { pids })
        }
      } as StartOptions,
      request: { memoryBytes: memory ?? 0, cpus: cpus ?? 0 }
    }
  })
