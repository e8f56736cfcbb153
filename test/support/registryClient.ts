/** What tests of registries share. */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { BerthError, RegistryError } from "../../lib/BerthError.ts"
import * as Registry from "../../lib/Registry.ts"
import { type Blob, sha256, types } from "./images.ts"
import { type Front, startFront } from "./registry.ts"

export const assertRegistryError = (
  error: BerthError,
  reason: RegistryError["reason"],
  ...mentions: ReadonlyArray<string>
): void => {
  assert.equal(error._tag, "RegistryError", error.message)
  assert.equal((error as RegistryError).reason, reason, error.message)
  for (const mention of mentions) {
    assert.ok(error.message.includes(mention), `${error.message} does not mention ${mention}`)
  }
}

export const withRegistry = <A, E, R>(
  host: string,
  use: (registry: Registry.Registry) => Effect.Effect<A, E, R>,
  options?: Registry.ConnectOptions
) => Effect.flatMap(Registry.connect(host, options), use)

/** Something before the registry while `use` runs. */
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

/** A blob, and a stream of its bytes in many pieces. */
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
