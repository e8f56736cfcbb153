/**
 * What a layer leaves to the layers below, which it does not know, as it is shared by images: kept beside its folder, and
 * made good where an image is put together.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { ImageError } from "../../BerthError.ts"
import { io, readBounded, replaceFile } from "../disk/files.ts"

/** A hard link to a file that the layer does not have. Both paths are percent-encoded, as names need not be UTF-8. */
export type Link = readonly [target: string, path: string]

export interface Notes {
  /** Folders that the tar has no entry for. */
  readonly implicit: ReadonlyArray<string>
  readonly links: ReadonlyArray<Link>
}

/** What the unpacker has percent-encoded, to be shown or compared. */
export const decodePath = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    // Not UTF-8, as names of files need not be.
    return text
  }
}

/** As much as the unpacker says at most (native/unpack/unpack.c). */
const maxBytes = 16 * 1024 * 1024

const Paths = Schema.Array(Schema.String)
const File = Schema.parseJson(
  Schema.Union(
    Paths,
    Schema.Struct({ implicit: Paths, links: Schema.Array(Schema.Tuple(Schema.String, Schema.String)) })
  )
)

/** Remembers them beside the layer whose folder this will be. */
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
  return Effect.flatMap(readBounded(berth.fileSystem, path, folder, maxBytes), (bytes) => {
    if (Option.isNone(bytes)) return Effect.succeed({ implicit: [], links: [] })
    const notes = Schema.decodeUnknownEither(File)(new TextDecoder().decode(bytes.value))
    if (Either.isLeft(notes)) {
      const detail = `${path} was changed since Berth wrote it: remove it and ${folder}, and get the image again`
      return new ImageError({ reason: "Corrupt", subject: folder, detail, cause: notes.left })
    }
    return Effect.succeed("links" in notes.right ? notes.right : { implicit: notes.right, links: [] })
  })
}
