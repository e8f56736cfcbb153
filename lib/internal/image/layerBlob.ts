/** New layers as blobs of the store. */
import { pipeline, Readable } from "node:stream"
import { createGzip } from "node:zlib"
import * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Digest } from "../../Reference.ts"
import type { Source } from "../layer/nativeProgram.ts"
import * as Pack from "../layer/pack.ts"
import { DEFAULT_LAYER_BYTES_MAX } from "../layer/unpack.ts"
import * as Descriptors from "../oci/descriptors.ts"
import type * as Oci from "../oci/documents.ts"
import * as Store from "../store/store.ts"
import * as Archive from "../store/tarIndex.ts"
import { Hasher } from "../util/digest.ts"

export interface LayerBlob {
  readonly descriptor: Oci.Descriptor
  /** The digest of the uncompressed tar. */
  readonly diffId: Digest
}

/** The size and digests of a layer, known at the end of its stream. */
class Measured {
  private readonly tar = new Hasher()
  private readonly gzip = new Hasher()
  size = 0

  get diffId(): Digest {
    return this.tar.digest
  }

  get digest(): Digest {
    return this.gzip.digest
  }

  async *compressed(parts: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    const { tar } = this
    const hashed = async function* () {
      for await (const part of parts) {
        tar.update(part)
        yield part
      }
    }
    const transform = createGzip({ level: 6, chunkSize: 64 * 1024 })
    // An error of either stream reaches the reader, and a reader that stops closes both.
    pipeline(Readable.from(hashed()), transform, () => {})
    for await (const part of transform as AsyncIterable<Uint8Array>) {
      // The byte of the gzip header for the operating system: unknown.
      if (this.size === 0) part[GZIP_SYSTEM_AT] = 255
      this.size += part.length
      this.gzip.update(part)
      yield part
    }
  }
}

const GZIP_SYSTEM_AT = 9

/** The layer of a folder, by native/pack. */
export const packed = (
  berth: Berth,
  subject: string,
  source: Source,
  options: Pack.Options
): Effect.Effect<LayerBlob, BerthError> =>
  Archive.temporary(berth, subject, (path, file) =>
    Effect.gen(function* () {
      const { diffId, digest, size } = yield* Effect.scoped(
        Pack.pack(berth, subject, source, options, file.fd)
      )
      yield* Store.adopt(berth, digest, path, file)
      return { descriptor: Descriptors.ofLayer(options.compression, digest, size), diffId }
    })
  )

/** The layer of a tar that is made in this program, as it is for a layer in memory, which nothing else can see. `content` gives the stream of the compressed bytes, and fails if the tar is not whole. */
export const put = <R>(
  berth: Berth,
  subject: string,
  content: (
    compressed: (tar: AsyncIterable<Uint8Array>) => AsyncIterable<Uint8Array>
  ) => Stream.Stream<Uint8Array, BerthError, R>
): Effect.Effect<LayerBlob, BerthError, R> =>
  Effect.suspend(() => {
    const measured = new Measured()
    const compressed = content((tar) => measured.compressed(tar))
    return Archive.spooled(berth, subject, compressed, DEFAULT_LAYER_BYTES_MAX, (path) => {
      const { diffId, digest, size } = measured
      const bytes = Archive.read(berth, path, subject, { offset: 0, size })
      const descriptor = Descriptors.ofLayer("gzip", digest, size)
      return Effect.as(Store.put(berth, digest, bytes, size), { descriptor, diffId })
    })
  })
