/** Helpers for tests of registries. */
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { RegistryError } from "../../lib/BerthError.ts"
import * as Registry from "../../lib/Registry.ts"
import { assertError, type Blob, sh, sha256, types } from "./images.ts"
import { type Front, startFront } from "./registry.ts"

export const assertRegistryError = assertError<RegistryError>("RegistryError")

export const withRegistry = <A, E, R>(
  host: string,
  use: (registry: Registry.Registry) => Effect.Effect<A, E, R>,
  options?: Registry.ConnectOptions
) => Effect.flatMap(Registry.connect(host, options), use)

/** Runs `use` with a server in front of the registry. */
export const withFrontOf = async (
  host: string,
  handle: Parameters<typeof startFront>[1],
  use: (front: Front) => Promise<void>
): Promise<void> => {
  const front = await startFront(host, handle)
  try {
    await use(front)
  } finally {
    await front.stop()
  }
}

/** A blob, and a stream of its bytes in pieces. */
export const ofBytes = (
  bytes: Uint8Array
): { readonly blob: Blob; readonly content: Stream.Stream<Uint8Array> } => {
  const chunks: Array<Uint8Array> = []
  for (let at = 0; at < bytes.length; at += 65536) {
    chunks.push(bytes.subarray(at, at + 65536))
  }
  const blob = { mediaType: types.gzip, digest: sha256(bytes), size: bytes.length }
  return { blob, content: Stream.fromIterable(chunks) }
}

/** Copies an image to a registry on this machine. */
export const push = (source: string, target: string, ...options: ReadonlyArray<string>) =>
  sh("skopeo", "copy", "--dest-tls-verify=false", ...options, source, `docker://${target}`)

/** The bytes of a blob, by the public functions. */
export const download = (host: string, repository: string, blob: Blob) =>
  Effect.gen(function* () {
    const registry = yield* Registry.connect(host)
    const chunks = yield* Stream.runCollect(Registry.blob(registry, repository, blob))
    return Buffer.concat(Chunk.toReadonlyArray(chunks))
  })

/** Resolves a name by a new connection. */
export const resolve = (host: string, repository: string, name: string, options?: Registry.ConnectOptions) =>
  Effect.flatMap(Registry.connect(host, options), (registry) => Registry.resolve(registry, repository, name))
