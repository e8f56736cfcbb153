/** The order in which registries are asked: the mirrors, then the registry itself. */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { Registry } from "../../Registry.ts"
import * as references from "../oci/reference.ts"
import { quote } from "../util/text.ts"
import type { Client, Place } from "./client.ts"

/** A mirror that cannot be reached is not asked for the next blobs either, because each would wait for its timeout. */
const PASSED_OVER_MILLIS = 60_000

/** The location of a registry: its host, and the prefix of its repositories. */
export const parseLocation = (
  option: string,
  location: string,
  replaces: string
): Effect.Effect<{ readonly host: string; readonly place: Place }, InvalidOption> => {
  const host = location.split("/")[0]!
  const path = location.slice(host.length + 1)
  // Docker Hub's other name has no repositories.
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

/** The error of a mirror is only logged, because the next one may succeed. */
export const passOver = (mirror: Client, error: BerthError): Effect.Effect<void> => {
  if (error._tag === "RegistryError" && error.reason === "Unreachable") {
    mirror.state.passedOverUntil = Date.now() + PASSED_OVER_MILLIS
  }
  return Effect.logDebug(`berth: the mirror ${mirror.name} is skipped: ${error.message}`)
}

/** The first successful answer; the error of the registry itself if all fail. */
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
 * After a digest mismatch, repeats with the next mirror, and in the end with the registry itself. Several may have
 * contributed bytes, and it is unknown which one was wrong: the first one is skipped.
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
