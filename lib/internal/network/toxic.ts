/** Faults of what a proxy serves: TypeScript adds up those that are in force, native/proxy/pair.c has them. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Scope from "effect/Scope"
import type { BerthError } from "../../BerthError.ts"
import type { ToxicTarget as Target, ToxicOptions } from "../../Network.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as check from "../util/validate.ts"
import type { Proxy } from "./proxy.ts"

/** The faults of one direction, as native/proxy/toxic.h has them: times in microseconds. */
interface Toxic {
  readonly latency: number
  readonly jitter: number
  readonly rate: number | undefined
  readonly resetBytes: number | undefined
  readonly resetAfter: number | undefined
  readonly halfOpen: boolean
}

const none: Toxic = {
  latency: 0,
  jitter: 0,
  rate: undefined,
  resetBytes: undefined,
  resetAfter: undefined,
  halfOpen: false
}

/** What a proxy serves, with the faults that are in force. */
interface Shaped {
  readonly proxy: Proxy
  readonly ids: ReadonlyArray<number>
  readonly inForce: Set<Readonly<Record<"up" | "down", Toxic>>>
}

const shaped = new WeakMap<object, Shaped>()

/** Lets faults be given to what a proxy has been told to accept, by the numbers of its sockets. */
export const shape = <A extends Target>(target: A, proxy: Proxy, ids: ReadonlyArray<number>): A => {
  shaped.set(target, { proxy, ids, inForce: new Set() })
  return target
}

const MICROS_MAX = 3_600_000_000

/** In microseconds, at most an hour. */
const micros = (option: string, value: Duration.DurationInput): number => {
  const time = Duration.toMillis(check.duration(option, value)) * 1000
  return time >= 0 && time <= MICROS_MAX
    ? Math.round(time)
    : check.invalid(option, value, "a duration of at most an hour")
}

const parse = (options: ToxicOptions): Readonly<Record<"up" | "down", Toxic>> => {
  const { direction = "both", halfOpen = false, jitter = 0, latency = 0, rate, reset } = options
  const toxic: Toxic = {
    latency: micros("latency", latency),
    jitter: micros("jitter", jitter),
    rate: rate === undefined ? undefined : check.bytes("rate", rate),
    resetBytes: reset?.bytes === undefined ? undefined : check.bytes("reset.bytes", reset.bytes),
    resetAfter: reset?.after === undefined ? undefined : micros("reset.after", reset.after),
    halfOpen
  }
  if (toxic.rate === 0) check.invalid("rate", rate, "at least one byte a second; halfOpen stops all of them")
  if (reset !== undefined && toxic.resetBytes === undefined && toxic.resetAfter === undefined)
    check.invalid("reset", reset, "bytes, after, or both")
  if (!["both", "up", "down"].includes(direction))
    check.invalid("direction", direction, '"both", "up" or "down"')
  return { up: direction === "down" ? none : toxic, down: direction === "up" ? none : toxic }
}

const least = (values: ReadonlyArray<number | undefined>): number | undefined => {
  const given = values.filter((value) => value !== undefined)
  return given.length === 0 ? undefined : Math.min(...given)
}

/** Several at a time: delays add up, and of limits the lowest counts. */
const together = (toxics: ReadonlyArray<Toxic>): Toxic => ({
  latency: toxics.reduce((sum, { latency }) => sum + latency, 0),
  jitter: toxics.reduce((sum, { jitter }) => sum + jitter, 0),
  rate: least(toxics.map(({ rate }) => rate)),
  resetBytes: least(toxics.map(({ resetBytes }) => resetBytes)),
  resetAfter: least(toxics.map(({ resetAfter }) => resetAfter)),
  halfOpen: toxics.some(({ halfOpen }) => halfOpen)
})

const NEVER = 2n ** 64n - 1n

const encode = ({ halfOpen, jitter, latency, rate = 0, resetAfter, resetBytes }: Toxic): string =>
  [latency, jitter, rate, resetBytes ?? NEVER, resetAfter ?? NEVER, halfOpen ? 1 : 0].join(":")

const tell = ({ ids, inForce, proxy }: Shaped): Effect.Effect<void, BerthError> => {
  const directions = (["up", "down"] as const).map((way) =>
    encode(together([...inForce].map((each) => each[way])))
  )
  return Effect.forEach(ids, (id) => proxy.toxic(id, directions.join(" ")), { discard: true })
}

const EXPECTED =
  "what `Container.publish`, `Container.published` or `Network.expose` has given, for TCP, or a network with outbound"

/** See `Network.toxic`. */
export const toxic: {
  (options: ToxicOptions): (target: Target) => Effect.Effect<void, BerthError, Scope.Scope>
  (target: Target, options: ToxicOptions): Effect.Effect<void, BerthError, Scope.Scope>
} = dual(
  2,
  Effect.fn("berth.Network.toxic")(function* (target: Target, options: ToxicOptions) {
    const toxics = yield* attempt(() => parse(options))
    const found = yield* attempt(() => shaped.get(target) ?? check.invalid("target", target, EXPECTED))
    yield* Effect.acquireRelease(
      Effect.suspend(() => {
        found.inForce.add(toxics)
        return tell(found)
      }),
      () =>
        Effect.suspend(() => {
          found.inForce.delete(toxics)
          return Effect.ignore(tell(found))
        })
    )
  })
)
