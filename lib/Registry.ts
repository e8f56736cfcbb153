/**
 * A client for registries that follow the OCI distribution specification: what tags stand for, manifests, and blobs
 * whose download resumes where the connection broke; and the way back, for whoever may write there.
 *
 * @since 0.1.0
 */
import type { DurationInput } from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Inspectable from "effect/Inspectable"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Berth } from "./Berth.ts"
import type { BerthError } from "./BerthError.ts"
import * as references from "./internal/oci/reference.ts"
import type { Client } from "./internal/registry/client.ts"
import * as registriesConf from "./internal/registry/conf.ts"
import * as listing from "./internal/registry/listing.ts"
import * as pushing from "./internal/registry/push.ts"
import * as internal from "./internal/registry/reads.ts"
import type { Descriptor } from "./Store.ts"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = internal.TypeId

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
  readonly berth: Berth
  /** @internal */
  readonly client: Client
  /** @internal */
  readonly mirrors: ReadonlyArray<Client>
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
 * Options of `connect`. The proxies of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` in the environment are used,
 * but not for this machine itself. TLS is with the registry, through the proxy.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions {
  /**
   * Where the registry is, if it is not where its name says: `host:port`, or `host:port/path` where its repositories have
   * something before their names there. Credentials and certificates are those of this host. Default: as named.
   */
  readonly location?: string | undefined
  /**
   * The beginning of the names of repositories that `location` stands for: with `library` and `example.org/mirrored`,
   * `library/alpine` is `example.org/mirrored/alpine`. Default: nothing, so that whole names come after `location`.
   */
  readonly replaces?: string | undefined
  /**
   * HTTP without TLS. Unless given, that is for `localhost`, `127.0.0.0/8` and `::1` alone, and only where there is
   * nothing about certificates here or in the folders that `ca` names.
   */
  readonly plainHttp?: boolean | undefined
  /**
   * Unless given, what `podman login` and `docker login` have left, the most specific first: `$REGISTRY_AUTH_FILE` alone
   * where it is set, else `$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` and
   * `$DOCKER_CONFIG/config.json`, with the credential helpers that these name.
   */
  readonly credentials?: Credentials | undefined
  /**
   * Authorities to trust beside the usual ones: PEM text, or the path of a file with it. The `*.crt` files of the first
   * of these folders that is there are added: `$XDG_CONFIG_HOME/containers/certs.d/HOST:PORT`,
   * `/etc/containers/certs.d/HOST:PORT`, `/etc/docker/certs.d/HOST:PORT`.
   */
  readonly ca?: string | ReadonlyArray<string> | undefined
  /** Who to be in TLS. Unless given, a `NAME.cert` and its `NAME.key` in the folder that `ca` describes. */
  readonly clientCertificate?: ClientCertificate | undefined
  /** `false` takes any certificate of this host: then anybody on the way can read along, credentials too. Default: `true`. */
  readonly tlsVerify?: boolean | undefined
  /**
   * Registries that are asked for images before this one is, in this order, as `host:port` or, where names have
   * something before them there, `host:port/path`. What a tag stands for is what the first that knows it says; every
   * byte is verified by its digest. Nothing given here for this registry goes to them, credentials least of all.
   * Default: none.
   */
  readonly mirrors?: ReadonlyArray<string | Mirror> | undefined
  /**
   * How long nothing may come of a download before it is resumed on another connection. Default: one minute. What comes, but
   * at less than 1 KiB per second over three times as long, is given up.
   */
  readonly stallTimeout?: DurationInput | undefined
}

/**
 * A certificate and its key, each as PEM text or the path of a file with it. The key has no passphrase.
 *
 * @since 0.1.0
 * @category models
 */
export interface ClientCertificate {
  readonly certificate: string
  readonly key: string | Redacted.Redacted<string>
}

/**
 * A mirror with options of its own.
 *
 * @since 0.1.0
 * @category models
 */
export interface Mirror extends Omit<ConnectOptions, "mirrors" | "location"> {
  /** `host:port`, or `host:port/path`. */
  readonly location: string
}

/**
 * Whether a value is a `Registry`.
 *
 * @since 0.1.0
 * @category guards
 */
export const isRegistry: (u: unknown) => u is Registry = internal.isRegistry

/**
 * A client for the registry with this host and, where it is not the scheme's own, port. Nothing is sent yet. Fails with
 * `InvalidOption`, also for certificates that cannot be read.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (host: string, options?: ConnectOptions): Effect.Effect<Registry, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => internal.connect(berth, host, options ?? {})).pipe(
    Effect.withSpan("berth.Registry.connect", { attributes: { "server.address": host } })
  )

/** The span of a request. */
const request = (
  method: string,
  self: Registry,
  repository: string,
  attributes: Readonly<Record<string, unknown>> = {}
): readonly [name: string, options: { readonly attributes: Readonly<Record<string, unknown>> }] => [
  `berth.Registry.${method}`,
  { attributes: { "server.address": self.host, "berth.repository": repository, ...attributes } }
]

/**
 * What this machine's registries.conf says of an image, for `connect`, `Image.pull` and `Image.push`: where its registry
 * is, which mirrors are asked before it, and which of them are `insecure`. Those are asked at once whether they speak TLS:
 * if so, any certificate of theirs is taken, else there is none.
 *
 * The file is the one at `path` alone where that is given. Else it is `$CONTAINERS_REGISTRIES_CONF`, or
 * `$XDG_CONFIG_HOME/containers/registries.conf`, or `/etc/containers/registries.conf`, with the drop-ins of
 * `registries.conf.d` in the same places, as containers-registries.conf(5) has it, version 2. Nothing there is no error.
 * Short names are not looked up: a reference without a registry is docker.io's.
 *
 * Fails with `InvalidOption` for an image that is blocked, and with `InvalidData` for a file that cannot be parsed: with the
 * file, the line, and what is wrong.
 *
 * @since 0.1.0
 * @category configuration
 * @example
 * import { Image, Registry } from "berth"
 * import { Effect } from "effect"
 *
 * const program = Effect.flatMap(Registry.fromRegistriesConf("alpine:3"), (options) => Image.pull("alpine:3", options))
 */
export const fromRegistriesConf = (
  reference: string,
  path?: string
): Effect.Effect<ConnectOptions, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => registriesConf.optionsFor(berth, reference, path)).pipe(
    Effect.withSpan("berth.Registry.fromRegistriesConf", {
      attributes: { "container.image.name": reference }
    })
  )

/** What is asked for, parsed: nothing else becomes part of a URL. */
const inRepository = (self: Registry, repository: string, tagOrDigest: string) =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    references.inRepository(parsed, tagOrDigest)
  )

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
  Effect.flatMap(inRepository(self, repository, tagOrDigest), (reference) =>
    internal.resolve(self, reference)
  ).pipe(Effect.withSpan(...request("resolve", self, repository, { "berth.tag": tagOrDigest })))

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
): Effect.Effect<Uint8Array, BerthError> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    internal.manifest(self, parsed, descriptor)
  ).pipe(Effect.withSpan(...request("manifest", self, repository, { "berth.digest": descriptor.digest })))

/**
 * The bytes of a blob. A broken connection is resumed where it broke. Fails with `DigestMismatch` where the bytes are not
 * what the descriptor says, of which the last is then not given: all `size` bytes of a blob are the right ones, but a part
 * of them is not to be trusted.
 *
 * What mirrors give waits in Berth's folder until it is known to be right, all of it before the first byte comes out. Where
 * it is not, the next mirror is asked, and in the end the registry itself.
 *
 * @since 0.1.0
 * @category requests
 */
export const blob = (
  self: Registry,
  repository: string,
  descriptor: Descriptor
): Stream.Stream<Uint8Array, BerthError> =>
  Stream.unwrap(
    Effect.map(references.inRegistry(self.host, repository), (parsed) =>
      internal.blob(self, parsed, descriptor)
    )
  ).pipe(Stream.withSpan(...request("blob", self, repository, { "berth.digest": descriptor.digest })))

/**
 * Every tag of a repository, as the registry orders them. Fails with `NotFound` where there is no such repository.
 *
 * @since 0.1.0
 * @category requests
 */
export const tags = (self: Registry, repository: string): Effect.Effect<ReadonlyArray<string>, BerthError> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) => listing.tags(self, parsed)).pipe(
    Effect.withSpan(...request("tags", self, repository))
  )

/**
 * A manifest that refers to another one: a signature, a bill of materials.
 *
 * @since 0.1.0
 * @category models
 */
export interface Referrer extends Descriptor {
  /** What it is: `application/vnd.dev.sigstore.bundle.v0.3+json`. */
  readonly artifactType?: string | undefined
}

/**
 * The manifests that refer to the one with this digest; those of one `artifactType` where it is given. A registry
 * without this list is asked for the tag under which clients keep it, as `putManifest` does.
 *
 * @since 0.1.0
 * @category requests
 */
export const referrers = (
  self: Registry,
  repository: string,
  digest: string,
  options?: { readonly artifactType?: string | undefined }
): Effect.Effect<ReadonlyArray<Referrer>, BerthError> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    listing.referrers(self, parsed, digest, options?.artifactType)
  ).pipe(Effect.withSpan(...request("referrers", self, repository, { "berth.digest": digest })))

/**
 * How a blob has come to be in a repository: it was there, it was taken from another repository of the registry, or its
 * bytes were sent.
 *
 * @since 0.1.0
 * @category models
 */
export type Placed = "present" | "mounted" | "uploaded"

/**
 * Puts a blob into a repository, unless it is there already: then the stream is not run. Where the connection breaks,
 * or the registry is in trouble, the upload starts again and the stream is run again.
 *
 * Fails with `DigestMismatch` when the bytes are not what the descriptor says, of which the registry then has not got
 * the last, and with whatever the stream fails with.
 *
 * @since 0.1.0
 * @category uploads
 */
export const putBlob = <E, R>(
  self: Registry,
  repository: string,
  descriptor: Descriptor,
  content: Stream.Stream<Uint8Array, E, R>
): Effect.Effect<Placed, E | BerthError, R> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    pushing.putBlob(self, parsed, descriptor, content)
  ).pipe(Effect.withSpan(...request("putBlob", self, repository, { "berth.digest": descriptor.digest })))

/**
 * Puts a blob that is in the repository `from` into another one of the same registry, which moves no bytes where the
 * registry can do that. Where it cannot, the blob is downloaded and uploaded.
 *
 * @since 0.1.0
 * @category uploads
 */
export const mount = (
  self: Registry,
  repository: string,
  descriptor: Descriptor,
  from: string
): Effect.Effect<Placed, BerthError> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    Effect.flatMap(references.inRegistry(self.host, from), (source) =>
      pushing.mount(self, parsed, descriptor, source)
    )
  ).pipe(Effect.withSpan(...request("mount", self, repository, { "berth.digest": descriptor.digest })))

/**
 * Puts a manifest or index of at most 4 MiB, whose blobs and manifests have to be there, under a tag or its own digest.
 * Its media type is the one that it says it has, unless another is given. Where it refers to another manifest and the
 * registry keeps no list of referrers, the list is kept under the tag that the specification has for it.
 *
 * Fails with `Corrupt` for something else than a manifest, and with `DigestMismatch` for another digest than its own.
 *
 * @since 0.1.0
 * @category uploads
 */
export const putManifest = (
  self: Registry,
  repository: string,
  tagOrDigest: string,
  bytes: Uint8Array,
  options?: { readonly mediaType?: string | undefined }
): Effect.Effect<Descriptor, BerthError> =>
  Effect.flatMap(inRepository(self, repository, tagOrDigest), (reference) =>
    pushing.putManifest(self, reference, bytes, options?.mediaType)
  ).pipe(Effect.withSpan(...request("putManifest", self, repository, { "berth.tag": tagOrDigest })))

/**
 * Deletes a tag, or a manifest with all of its tags by its digest. The registry removes blobs when it pleases. Fails
 * with `NotFound`, and with `Unsupported` where the registry allows no deleting, or deletes by digest alone.
 *
 * @since 0.1.0
 * @category requests
 */
export const deleteManifest = (
  self: Registry,
  repository: string,
  tagOrDigest: string
): Effect.Effect<void, BerthError> =>
  Effect.flatMap(inRepository(self, repository, tagOrDigest), (reference) =>
    listing.deleteManifest(self, reference)
  ).pipe(Effect.withSpan(...request("deleteManifest", self, repository, { "berth.tag": tagOrDigest })))
