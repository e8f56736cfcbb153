/** A step that runs a command in a container, whose writable layer is the step's layer. */
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Mount from "../../Mount.ts"
import * as Process from "../../Process.ts"
import { stateOf } from "../container/waitFor.ts"
import { attempt } from "../util/fromThrowing.ts"
import { filesOf, mountOf } from "./bind.ts"
import * as caches from "./caches.ts"
import type { Evaluation, Made, Seen } from "./evaluate.ts"
import { fullDisk, notExecuted } from "./failure.ts"
import type { Run, Shown } from "./node.ts"
import * as secrets from "./secrets.ts"
import * as agents from "./ssh.ts"

const LOG_LINES = 20

/** The mounts of a step. `given` are the names of the volumes that its caches are. */
export const mountsOf = (node: Run, image: Image, seen: Seen, given?: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const volumes = given ?? node.caches.map((cache) => caches.volumeOf(berth, cache, seen))
    const { mounts = [] } = node.options
    const { workingDirectory } = image.config
    const within = (target: string): string => posix.resolve("/", workingDirectory, target)
    const hidden = yield* attempt(() => secrets.mountsOf(node))
    const shared = yield* Effect.forEach(node.caches, (cache, k) =>
      Effect.map(caches.opened(berth, node, cache, volumes[k]!, seen), (volume) =>
        Mount.volume(volume, within(cache.target), { readOnly: cache.readOnly })
      )
    )
    const binds = yield* Effect.forEach(node.binds, (bind) =>
      mountOf(node, bind, seen.get(bind.from)!.image, workingDirectory)
    )
    const sockets = yield* Effect.forEach(node.agents, (agent) =>
      Effect.map(agents.opened(berth, node, agent), (socket) => Mount.bind(socket, within(agent.target)))
    )
    const own = mounts.map((mount) => ({ ...mount, target: within(mount.target) }))
    return [...hidden, ...own, ...binds, ...shared, ...sockets]
  })

/** What of a step's options a start takes as it is, and its variables; throws. */
export const startOf = (node: Run) => {
  const { env, limits, security, user } = node.options
  const [agent] = node.agents
  return {
    env: {
      ...env,
      ...(agent === undefined ? {} : { SSH_AUTH_SOCK: agent.target }),
      ...secrets.variablesOf(node)
    },
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
  { berth, numbers, options: given, tell }: Evaluation,
  node: Run,
  image: Image,
  seen: Seen,
  volumes: ReadonlyArray<string>,
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
      ...(yield* attempt(() => startOf(node))),
      network,
      mounts: yield* mountsOf(node, image, seen, volumes),
      upper: "disk"
    }).pipe(Effect.mapError(notExecuted(node, image)))
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
    if (status.exitCode !== 0) {
      // Its files are still there, so a disk that they have filled is still full.
      const full = fullDisk(berth)
      const detail = [stateOf(status), full ?? []].flat().join(", ")
      return yield* failed(box, full === undefined ? "Command" : "Storage", detail, status.exitCode)
    }
    return yield* Container.keep(box, { key })
  }).pipe(
    Effect.scoped,
    Effect.withSpan("berth.Build.run", { attributes: { "berth.build.step": node.text } })
  )

/**
 * What a command sees of its image's configuration and of its options; not the values of secrets, nor the contents of caches. `seen` are
 * the builds whose files it sees; their layers say what the files are.
 */
export const run = (evaluation: Evaluation, node: Run, image: Image, seen: Seen): Made => {
  const {
    env = {},
    mounts = [],
    network = evaluation.options.network,
    security = "sandbox",
    user
  } = node.options
  const { environment, user: ownUser, workingDirectory } = image.config
  const shown = typeof network === "string" || network === undefined ? (network ?? "none") : "a network"
  const its = ({ from, path }: Shown) => ({ path, ...filesOf(evaluation.berth, seen.get(from)!) })
  const binds = [
    ...node.binds.map((bind) => ({ ...its(bind), target: bind.target, writable: bind.writable })),
    ...node.caches.flatMap(({ base, target }) => (base === undefined ? [] : [{ ...its(base), target }]))
  ]
  return {
    key: [
      "run",
      node.command,
      { ...environment, ...env },
      user ?? ownUser,
      workingDirectory,
      shown,
      caches.placesOf(node),
      secrets.placesOf(node),
      mounts,
      binds,
      [security, agents.placesOf(node)]
    ],
    files: new Map(binds.map((bind) => [bind.target, JSON.stringify(bind)])),
    make: (key) =>
      caches.holding(evaluation.berth, node, seen, (volumes) =>
        execute(evaluation, node, image, seen, volumes, key)
      )
  }
}
