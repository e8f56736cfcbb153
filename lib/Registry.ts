/**
 * A client for registries that follow the OCI distribution specification: what tags stand for, manifests, and blobs
 * whose download resumes where the connection broke.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import * as Predicate from "effect/Predicate"
import type * as Redacted from "effect/Redacted"
import type * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as internal from "./internal/registry.ts"
import type { Client } from "./internal/registryClient.ts"
import type { Descriptor } from "./Store.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Registry")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * One registry, with the tokens that it has given. It holds no connection: there is nothing to close.
 *
 * @since 0.1.0
 * @category models
 */
export interface Registry extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** As in a reference: `docker.io`, `127.0.0.1:5000`. */
  readonly host: string
  /** @internal */
  readonly client: Client
}

/**
 * Who to be at a registry.
 *
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  readonly username: string
  readonly password: string | Redacted.Redacted<string>
}

/**
 * Options of `connect`.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions {
  /** HTTP without TLS. Unless given, that is for `localhost`, `127.0.0.0/8` and `::1` alone. */
  readonly plainHttp?: boolean | undefined
  /** Unless given, those that `docker login` has put into `~/.docker/config.json`, where there are any. */
  readonly credentials?: Credentials | undefined
}

/**
 * Whether a value is a `Registry`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isRegistry = (u: unknown): u is Registry => Predicate.hasProperty(u, TypeId)

/**
 * A client for the registry with this host and, where it is not the scheme's own, port. Nothing is sent yet. Fails with
 * `InvalidOption`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (host: string, options?: ConnectOptions): Effect.Effect<Registry, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => internal.connect(berth, host, options ?? {}))

/**
 * What a tag or digest stands for now: a manifest, or an index of several.
 *
 * @since 0.1.0
 * @category requests
 */
export const resolve = (
  self: Registry,
  repository: string,
  tagOrDigest: string
): Effect.Effect<Descriptor, BerthError> =>
  internal.resolve(self, repository, tagOrDigest).pipe(
    Effect.withSpan("berth.Registry.resolve", {
      attributes: { "server.address": self.host, "berth.repository": repository, "berth.tag": tagOrDigest }
    })
  )

/**
 * The bytes of a manifest or index, verified, at most 4 MiB.
 *
 * @since 0.1.0
 * @category requests
 */
export const manifest = (
  self: Registry,
  repository: string,
  descriptor: Descriptor
): Effect.Effect<Uint8Array, BerthError> => internal.manifest(self, repository, descriptor)

/**
 * The bytes of a blob. A broken connection is resumed where it broke. The stream fails at its end where the bytes were not
 * what the descriptor says: until then, they are not to be trusted.
 *
 * @since 0.1.0
 * @category requests
 */
export const blob = (
  self: Registry,
  repository: string,
  descriptor: Descriptor
): Stream.Stream<Uint8Array, BerthError> => internal.blob(self, repository, descriptor)
