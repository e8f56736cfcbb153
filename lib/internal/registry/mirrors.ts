/** Which of several registries is asked: the mirrors in their order, then the registry itself. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Registry } from "../../Registry.ts"
import * as references from "../oci/reference.ts"
import { quote } from "../util/text.ts"
import type { Client, Place } from "./client.ts"

/** A mirror that cannot be reached is not asked for the next blob, too: each would wait for its timeout. */
const millisPassedOver = 60_000

/** Where something is: its host, and what of the path there stands for what. */
export const parseLocation = (
  option: string,
  location: string,
  replaces: string
): Effect.Effect<{ readonly host: string; readonly place: Place }, InvalidOption> => {
  const host = location.split("/")[0]!
  const path = location.slice(host.length + 1)
  // Docker Hub's other name is no place: it has nothing there.
  const isHost = Either.getOrUndefined(references.parseRegistry(host)) === host
  const fits = isHost && (location === host || references.isPath(path))
  return fits
    ? Effect.succeed({ host, place: { path, replaces } })
    : new InvalidOption({
        option,
        value: quote(location),
        expected: "host, host:port or host:port/path, without a scheme"
      })
}

/** The mirrors that may be asked now. */
export const usable = (self: Registry): ReadonlyArray<Client> =>
  self.mirrors.filter(({ state }) => Date.now() >= state.passedOverUntil)

/** Why a mirror did not give it is said only to who listens: the next one may. */
export const passOver = (mirror: Client, error: BerthError): Effect.Effect<void> => {
  if (error._tag === "RegistryError" && error.reason === "Unreachable") {
    mirror.state.passedOverUntil = Date.now() + millisPassedOver
  }
  return Effect.logDebug(`berth: the mirror ${mirror.name} is passed over: ${error.message}`)
}

/** The answer of the first that gives one; the error of the registry itself where none does. */
export const first = <A>(
  self: Registry,
  ask: (client: Client) => Effect.Effect<A, BerthError>
): Effect.Effect<A, BerthError> =>
  Effect.suspend(() =>
    usable(self).reduceRight(
      (next, mirror) =>
        Effect.catchAll(ask(mirror), (error) => Effect.zipRight(passOver(mirror, error), next)),
      Effect.suspend(() => ask(self.client))
    )
  )

const withMirrors = (self: Registry, mirrors: ReadonlyArray<Client>): Registry =>
  Object.assign(Object.create(Object.getPrototypeOf(self)), self, { mirrors })

/**
 * Once more from the next mirror, and in the end from the registry itself, where the bytes were others than the digest
 * says. Which of several it was that gave them is not known: the first that was asked is taken for it.
 */
export const orFromNext = <A, R>(
  self: Registry,
  use: (registry: Registry) => Effect.Effect<A, BerthError, R>
): Effect.Effect<A, BerthError, R> =>
  Effect.suspend(() => {
    const [asked] = usable(self)
    return asked === undefined
      ? use(self)
      : Effect.catchIf(
          use(self),
          (error) => error._tag === "ImageError" && error.reason === "DigestMismatch",
          () => orFromNext(withMirrors(self, self.mirrors.slice(self.mirrors.indexOf(asked) + 1)), use)
        )
  })
