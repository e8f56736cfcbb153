/** A step that runs a command in a container, whose writable layer is the step's layer. */
import { createHash } from "node:crypto"
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed, InvalidOption } from "../../BerthError.ts"
import type { CacheOptions } from "../../Build.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Mount from "../../Mount.ts"
import * as Process from "../../Process.ts"
import * as Volume from "../../Volume.ts"
import { stateOf } from "../container/waitFor.ts"
import * as Kept from "../layer/kept.ts"
import { attempt } from "../util/fromThrowing.ts"
import { mountOf } from "./bind.ts"
import type { Evaluation, Made, State } from "./evaluate.ts"
import type { Run } from "./node.ts"

const LOG_LINES = 20

/** The name of the volume of a cache, which all builds of a store share. */
export const cacheVolume = (name: string): string => `build-cache.${name}`

/** The caches of a step, with their targets. */
const cachesOf = ({ options: { cache = {} } }: Run) =>
  Object.entries(cache).map(([target, given]): CacheOptions & { readonly target: string } => ({
    target,
    ...(typeof given === "string" ? { name: given } : given)
  }))

/** The names of the caches that other steps wait for; throws. */
const lockedBy = (node: Run): ReadonlyArray<string> =>
  cachesOf(node).flatMap(({ name, sharing = "shared" }) => {
    if (sharing === "shared" || sharing === "locked") return sharing === "locked" ? [name] : []
    throw new InvalidOption({
      option: "cache.sharing",
      value: JSON.stringify(sharing),
      expected: '"shared" or "locked"'
    })
  })

const digestOf = (name: string): string => createHash("sha256").update(name).digest("hex")

/** Runs an effect while no other step has a cache that is locked. The order is the same for all, so that no two wait for each other. */
const whileAlone = <A>(
  berth: Berth,
  names: ReadonlyArray<string>,
  effect: Effect.Effect<A, BerthError, Berth>
): Effect.Effect<A, BerthError, Berth> =>
  [...new Set(names)]
    .toSorted()
    .reduceRight(
      (inside, name) => Kept.exclusive(berth, `${Kept.parentFolder(berth)}/cache-${digestOf(name)}`, inside),
      effect
    )

const secretsFolder = "/run/secrets"

const checkSecret = (name: string): string => {
  if (/^[\w.-]+$/.test(name) && !/^\.+$/.test(name)) return name
  throw new InvalidOption({
    option: "secret",
    value: JSON.stringify(name),
    expected: "names of letters, digits, _, . and -"
  })
}

/** The mounts of a step. Caches are volumes of the store. */
export const mountsOf = (node: Run, image: Image, seen: ReadonlyArray<Image>) =>
  Effect.gen(function* () {
    const { mounts = [], secret = {}, ssh = {} } = node.options
    const { workingDirectory } = image.config
    const secrets = Object.entries(secret).map(([name, text]) =>
      Mount.file(`${secretsFolder}/${checkSecret(name)}`, text)
    )
    const caches = yield* Effect.forEach(cachesOf(node), ({ name, target }) =>
      Effect.map(Volume.make({ name: cacheVolume(name) }), (volume) =>
        Mount.volume(volume, posix.resolve("/", workingDirectory, target))
      )
    )
    const binds = yield* Effect.forEach(node.binds, (bind, k) =>
      mountOf(node, bind, seen[k]!, workingDirectory)
    )
    const agents = Object.entries(ssh).map(([target, socket]) => Mount.bind(socket, target))
    const own = mounts.map((mount) => ({
      ...mount,
      target: posix.resolve("/", workingDirectory, mount.target)
    }))
    return [...secrets, ...own, ...binds, ...caches, ...agents]
  })

/** What of a step's options a start takes as it is. */
export const startOf = ({ options }: Run) => {
  const { env, limits, security, ssh = {}, user } = options
  const [agent] = Object.keys(ssh)
  return {
    env: agent === undefined ? env : { ...env, SSH_AUTH_SOCK: agent },
    limits,
    user,
    ...(security === "insecure" ? insecure : {})
  }
}

const insecure = {
  capabilities: { add: ["ALL"] },
  seccomp: "unconfined",
  noNewPrivileges: false,
  maskedPaths: [],
  readonlyPaths: []
} as const

const execute = (
  { numbers, options: given, tell }: Evaluation,
  node: Run,
  image: Image,
  seen: ReadonlyArray<Image>,
  key: string
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const { command, options, place, text } = node
    const { network = given.network, timeout } = options
    const failed = (
      box: Container.Container,
      reason: BuildFailed["reason"],
      detail: string,
      exitCode?: number
    ) =>
      new BuildFailed({
        reason,
        step: text,
        place,
        detail,
        exitCode,
        log: [...box.state.log().tail(LOG_LINES)]
      })
    const box = yield* Container.start(image, {
      entrypoint: [],
      command,
      ...startOf(node),
      network,
      mounts: yield* mountsOf(node, image, seen),
      upper: "disk"
    })
    const event = { step: numbers.get(node)!, text, place }
    const output = Stream.runForEach(Process.logs(box, { follow: true }), ({ line, stream }) =>
      Effect.sync(() => tell({ _tag: "Output", ...event, line, stream }))
    )
    const end = Effect.zipLeft(box.exit, output, { concurrent: true })
    const status = yield* timeout === undefined
      ? end
      : Effect.flatMap(
          Effect.timeoutOption(end, timeout),
          Option.match({
            onNone: () =>
              Effect.fail(
                failed(box, "TimedOut", "ran past its time, and was ended: give it a larger timeout")
              ),
            onSome: Effect.succeed
          })
        )
    if (status.outOfMemory !== undefined)
      return yield* failed(
        box,
        "OutOfMemory",
        "was ended for its use of memory: give it a larger limit",
        status.exitCode
      )
    if (status.exitCode !== 0) return yield* failed(box, "Command", stateOf(status), status.exitCode)
    return yield* Container.keep(box, { key })
  }).pipe(
    Effect.scoped,
    Effect.withSpan("berth.Build.run", { attributes: { "berth.build.step": node.text } })
  )

/**
 * What a command sees of its image's configuration and of its options; not the values of secrets, nor the contents of caches. `seen` are
 * the images of its binds, whose layers say what the files are.
 */
export const run = (evaluation: Evaluation, node: Run, image: Image, seen: ReadonlyArray<State>): Made => {
  const {
    env = {},
    mounts = [],
    network = evaluation.options.network,
    secret = {},
    security = "sandbox",
    ssh = {},
    user
  } = node.options
  const { environment, user: ownUser, workingDirectory } = image.config
  const shown = typeof network === "string" || network === undefined ? (network ?? "none") : "a network"
  const binds = node.binds.map(({ path, target, writable }, k) => {
    const { identity, image } = seen[k]!
    return { path, target, writable, identity, layers: Kept.relative(evaluation.berth, image.layers) }
  })
  return {
    key: [
      "run",
      node.command,
      { ...environment, ...env },
      user ?? ownUser,
      workingDirectory,
      shown,
      // Whether a cache is locked changes nothing of what the step makes.
      cachesOf(node).map(({ name, target }) => [target, name]),
      Object.keys(secret),
      mounts,
      binds,
      [security, Object.keys(ssh)]
    ],
    files: new Map(binds.map((bind) => [bind.target, JSON.stringify(bind)])),
    make: (key) =>
      Effect.flatMap(
        attempt(() => lockedBy(node)),
        (names) => {
          const images = seen.map((state) => state.image)
          return whileAlone(evaluation.berth, names, execute(evaluation, node, image, images, key))
        }
      )
  }
}
