/**
 * Data of a layer about layers below it, which differ between images. It is stored beside the layer's folder, and
 * applied when an image is put together.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { ImageError } from "../../BerthError.ts"
import { io, readBounded, replaceFile } from "../disk/files.ts"

/** A hard link to a file that the layer lacks. Both paths are percent-encoded, because names need not be UTF-8. */
export type Link = readonly [target: string, path: string]

export interface Notes {
  /** Folders without an entry in the tar. */
  readonly implicit: ReadonlyArray<string>
  readonly links: ReadonlyArray<Link>
}

/** Decodes a percent-encoded path of the unpacker, for messages and comparisons. */
export const decodePath = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    // Not UTF-8, which file names need not be.
    return text
  }
}

/** The limit of the unpacker's report (native/unpack/unpack.c). */
export const REPORT_BYTES_MAX = 16 * 1024 * 1024

const Paths = Schema.Array(Schema.String)
const File = Schema.parseJson(
  Schema.Union(
    Paths,
    Schema.Struct({ implicit: Paths, links: Schema.Array(Schema.Tuple(Schema.String, Schema.String)) })
  )
)

/** Writes the file beside the layer's folder. */
export const save = (berth: Berth, folder: string, notes: Notes): Effect.Effect<void, ImageError> => {
  const slash = folder.lastIndexOf("/")
  const { implicit, links } = notes
  if (implicit.length === 0 && links.length === 0) return Effect.void
  const bytes = new TextEncoder().encode(JSON.stringify(links.length === 0 ? implicit : notes))
  return io(folder)(
    replaceFile(berth.fileSystem, folder.slice(0, slash), `${folder.slice(slash + 1)}.implicit`, bytes)
  )
}

export const load = (berth: Berth, folder: string): Effect.Effect<Notes, ImageError> => {
  const path = `${folder}.implicit`
  return Effect.flatMap(readBounded(berth.fileSystem, path, folder, REPORT_BYTES_MAX), (bytes) => {
    if (Option.isNone(bytes)) return Effect.succeed({ implicit: [], links: [] })
    const notes = Schema.decodeUnknownEither(File)(new TextDecoder().decode(bytes.value))
    if (Either.isLeft(notes)) {
      const detail = `${path} was changed since Berth wrote it: remove it and ${folder}, and get the image again`
      return new ImageError({ reason: "Corrupt", subject: folder, detail, cause: notes.left })
    }
    return Effect.succeed("links" in notes.right ? notes.right : { implicit: notes.right, links: [] })
  })
}
