/** A step that runs a command in a container, whose writable layer is the step's layer. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed, InvalidOption } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Mount from "../../Mount.ts"
import * as Process from "../../Process.ts"
import * as Volume from "../../Volume.ts"
import { stateOf } from "../container/waitFor.ts"
import type { Evaluation, Made } from "./evaluate.ts"
import type { Run } from "./node.ts"

const LOG_LINES = 20

/** The name of the volume of a cache, which all builds of a store share. */
export const cacheVolume = (name: string): string => `build-cache.${name}`

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
export const mountsOf = ({ cache = {}, mounts = [], secret = {} }: Run["options"]) =>
  Effect.gen(function* () {
    const secrets = Object.entries(secret).map(([name, text]) =>
      Mount.file(`${secretsFolder}/${checkSecret(name)}`, text)
    )
    const caches = yield* Effect.forEach(Object.entries(cache), ([target, name]) =>
      Effect.map(Volume.make({ name: cacheVolume(name) }), (volume) => Mount.volume(volume, target))
    )
    return [...secrets, ...mounts, ...caches]
  })

const execute = (
  { numbers, options: given, tell }: Evaluation,
  node: Run,
  image: Image,
  key: string
): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const { command, options, place, text } = node
    const { env, limits, network = given.network, timeout, user } = options
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
      env,
      user,
      limits,
      network,
      mounts: yield* mountsOf(options),
      upper: "disk"
    })
    const event = { step: numbers.get(node)!, text, place }
    const output = Stream.runForEach(Process.logs(box, { follow: true }), ({ line, stream }) =>
      Effect.sync(() => tell({ _tag: "Output", ...event, line, stream }))
    )
    const end = Effect.zipLeft(box.exit, output)
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

/** What a command sees of its image's configuration and of its options; not the values of secrets, nor the contents of caches. */
export const run = (evaluation: Evaluation, node: Run, image: Image): Made => {
  const {
    cache = {},
    env = {},
    mounts = [],
    network = evaluation.options.network,
    secret = {},
    user
  } = node.options
  const { environment, user: ownUser, workingDirectory } = image.config
  const shown = typeof network === "string" || network === undefined ? (network ?? "none") : "a network"
  return {
    key: [
      "run",
      node.command,
      { ...environment, ...env },
      user ?? ownUser,
      workingDirectory,
      shown,
      Object.entries(cache),
      Object.keys(secret),
      mounts
    ],
    make: (key) => execute(evaluation, node, image, key)
  }
}
