/**
 * A client for registries that follow the OCI distribution specification. It resolves tags, reads manifests and blobs,
 * resumes broken downloads, and pushes.
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
import * as typeIds from "./internal/typeIds.ts"
import { later } from "./internal/util/later.ts"
import type { Descriptor } from "./Store.ts"

const configuring = later(() => import("./internal/registry/conf.ts"))
const listing = later(() => import("./internal/registry/listing.ts"))
const pushing = later(() => import("./internal/registry/push.ts"))
const reading = later(() => import("./internal/registry/reads.ts"))

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = typeIds.RegistryTypeId

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * A registry, with the tokens that it has issued. It holds no connection, so it needs no scope.
 *
 * @since 0.1.0
 * @category models
 */
export interface Registry extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** The host and port, as in a reference: `docker.io`, `127.0.0.1:5000`. */
  readonly host: string
  /** @internal */
  readonly berth: Berth
  /** @internal */
  readonly client: Client
  /** @internal */
  readonly mirrors: ReadonlyArray<Client>
}

/**
 * The credentials for a registry.
 *
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  readonly username: string
  readonly password: string | Redacted.Redacted<string>
}

/**
 * Options of `connect`. The proxies of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` in the environment are
 * used, except for this machine itself. TLS is end to end with the registry, through the proxy.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectOptions {
  /**
   * The address of the registry, if it differs from the name: `host:port`, or `host:port/path` if its repositories have
   * a prefix there. Credentials and certificates of that host are used. Default: the name.
   */
  readonly location?: string | undefined
  /**
   * The prefix of repository names that `location` replaces: with `library` and `example.org/mirrored`,
   * `library/alpine` is `example.org/mirrored/alpine`. Default: no prefix, so that `location` comes before the whole
   * name.
   */
  readonly replaces?: string | undefined
  /**
   * Whether to use HTTP without TLS. Default: true for `localhost`, `127.0.0.0/8` and `::1`, unless there are
   * certificates for the host in these options or in the folders that `ca` names; false for all other hosts.
   */
  readonly plainHttp?: boolean | undefined
  /**
   * Default: the credentials that `podman login` and `docker login` have stored, the most specific first:
   * `$REGISTRY_AUTH_FILE` alone if it is set, else `$XDG_RUNTIME_DIR/containers/auth.json`,
   * `$XDG_CONFIG_HOME/containers/auth.json` and `$DOCKER_CONFIG/config.json`, with the credential helpers that these
   * files name.
   */
  readonly credentials?: Credentials | undefined
  /**
   * Certificate authorities to trust in addition to the usual ones: PEM text, or the path of a file with it. The
   * `*.crt` files of the first existing folder of these are added: `$XDG_CONFIG_HOME/containers/certs.d/HOST:PORT`,
   * `/etc/containers/certs.d/HOST:PORT`, `/etc/docker/certs.d/HOST:PORT`.
   */
  readonly ca?: string | ReadonlyArray<string> | undefined
  /** The client certificate. Default: a `NAME.cert` and its `NAME.key` in the folder that `ca` describes. */
  readonly clientCertificate?: ClientCertificate | undefined
  /**
   * `false` accepts any certificate of this host: attackers can then read everything, credentials too. Default: `true`.
   */
  readonly tlsVerify?: boolean | undefined
  /**
   * Registries that are tried before this one, in this order, as `host:port` or, if repositories have a prefix there,
   * `host:port/path`. The first one that knows a tag resolves it; every byte is verified by its digest. No option for
   * this registry applies to the mirrors, and they never get its credentials. Default: none.
   */
  readonly mirrors?: ReadonlyArray<string | Mirror> | undefined
  /**
   * The time without any byte after which a download is resumed on another connection. Default: one minute. A download
   * that is slower than 1 KiB per second on average over three times as long fails.
   */
  readonly stallTimeout?: DurationInput | undefined
}

/**
 * A certificate and its key, each as PEM text or the path of a file with it. The key must not have a passphrase.
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
export const isRegistry: (u: unknown) => u is Registry = typeIds.isRegistry

/**
 * A client for the registry with this host and, if it is not the scheme's default, port. Sends nothing yet. Fails with
 * `InvalidOption`, also for certificates that cannot be read.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (host: string, options?: ConnectOptions): Effect.Effect<Registry, BerthError, Berth> =>
  Effect.flatMap(Berth, (berth) => reading((module) => module.connect(berth, host, options ?? {}))).pipe(
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
 * The entry of this machine's registries.conf for an image, as options of `connect`, `Image.pull` and `Image.push`: the
 * location of its registry, the mirrors to try before it, and whether they are `insecure`. Insecure registries are
 * asked at once whether they speak TLS: if so, any certificate of theirs is accepted, else HTTP is used.
 *
 * The file is the one at `path`, if given. Otherwise it is `$CONTAINERS_REGISTRIES_CONF`, or
 * `$XDG_CONFIG_HOME/containers/registries.conf`, or `/etc/containers/registries.conf`, with the drop-ins of
 * `registries.conf.d` in the same places, as in containers-registries.conf(5), version 2. A missing file is not an
 * error. Short names are not resolved: a reference without a registry belongs to docker.io.
 *
 * Fails with `InvalidOption` for a blocked image, and with `InvalidData` for a file that cannot be parsed, with its
 * path, line and mistake.
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
  Effect.flatMap(Berth, (berth) => configuring((module) => module.optionsFor(berth, reference, path))).pipe(
    Effect.withSpan("berth.Registry.fromRegistriesConf", {
      attributes: { "container.image.name": reference }
    })
  )

/** A parsed reference: no other text becomes part of a URL. */
const inRepository = (self: Registry, repository: string, tagOrDigest: string) =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    references.inRepository(parsed, tagOrDigest)
  )

/**
 * Resolves a tag or digest to a manifest, or to an index of several.
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
    reading((module) => module.resolve(self, reference))
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
    reading((module) => module.manifest(self, parsed, descriptor))
  ).pipe(Effect.withSpan(...request("manifest", self, repository, { "berth.digest": descriptor.digest })))

/**
 * The bytes of a blob. A download continues after a broken connection. Fails with `DigestMismatch` if the bytes do not
 * match the descriptor; the last byte is withheld then. So all `size` bytes of a blob are correct, but a part of them
 * cannot be trusted.
 *
 * Blobs from mirrors are stored in Berth's folder and verified before the first byte is delivered. If the blob is
 * wrong, the next mirror is tried, and in the end the registry itself.
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
    Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
      reading((module) => Effect.succeed(module.blob(self, parsed, descriptor)))
    )
  ).pipe(Stream.withSpan(...request("blob", self, repository, { "berth.digest": descriptor.digest })))

/**
 * All tags of a repository, in the registry's order. Fails with `NotFound` if the repository does not exist.
 *
 * @since 0.1.0
 * @category requests
 */
export const tags = (self: Registry, repository: string): Effect.Effect<ReadonlyArray<string>, BerthError> =>
  Effect.flatMap(references.inRegistry(self.host, repository), (parsed) =>
    listing((module) => module.tags(self, parsed))
  ).pipe(Effect.withSpan(...request("tags", self, repository)))

/**
 * A manifest that refers to another one: a signature, a bill of materials.
 *
 * @since 0.1.0
 * @category models
 */
export interface Referrer extends Descriptor {
  /** Its type: `application/vnd.dev.sigstore.bundle.v0.3+json`. */
  readonly artifactType?: string | undefined
}

/**
 * The manifests that refer to the one with this digest, optionally only those of an `artifactType`. If the registry
 * does not list referrers, the tag is read in which clients keep the list, as `putManifest` does.
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
    listing((module) => module.referrers(self, parsed, digest, options?.artifactType))
  ).pipe(Effect.withSpan(...request("referrers", self, repository, { "berth.digest": digest })))

/**
 * How a blob came into a repository: it existed, it was mounted from another repository of the registry, or its bytes
 * were uploaded.
 *
 * @since 0.1.0
 * @category models
 */
export type Placed = "present" | "mounted" | "uploaded"

/**
 * Puts a blob into a repository. If it exists already, the stream is not run. If the connection breaks or the registry
 * has a temporary failure, the upload starts again, and the stream is run again.
 *
 * Fails with `DigestMismatch` if the bytes do not match the descriptor, in which case the last byte is not sent, and
 * with the error of the stream.
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
    pushing((module) => module.putBlob(self, parsed, descriptor, content))
  ).pipe(Effect.withSpan(...request("putBlob", self, repository, { "berth.digest": descriptor.digest })))

/**
 * Puts a blob of the repository `from` into another repository of the same registry. No bytes are transferred if the
 * registry supports this; otherwise the blob is downloaded and uploaded.
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
      pushing((module) => module.mount(self, parsed, descriptor, source))
    )
  ).pipe(Effect.withSpan(...request("mount", self, repository, { "berth.digest": descriptor.digest })))

/**
 * Puts a manifest or index of at most 4 MiB under a tag or its own digest. Its blobs and manifests must exist in the
 * repository. Default media type: the one in the manifest. If it refers to another manifest and the registry does not
 * list referrers, the list is kept under the tag that the specification defines.
 *
 * Fails with `Corrupt` for bytes that are not a manifest, and with `DigestMismatch` for a digest other than its own.
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
    pushing((module) => module.putManifest(self, reference, bytes, options?.mediaType))
  ).pipe(Effect.withSpan(...request("putManifest", self, repository, { "berth.tag": tagOrDigest })))

/**
 * Deletes a tag, or, given a digest, a manifest with all of its tags. The registry removes the blobs at a time of its
 * choice. Fails with `NotFound`, and with `Unsupported` if the registry does not allow deletion, or only by digest.
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
    listing((module) => module.deleteManifest(self, reference))
  ).pipe(Effect.withSpan(...request("deleteManifest", self, repository, { "berth.tag": tagOrDigest })))
