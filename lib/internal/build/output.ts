/** `Build.export`: the result of a build as files of the host, as an archive, or as a layout. */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidOption } from "../../BerthError.ts"
import type { ExportOptions } from "../../Build.ts"
import * as Image from "../../Image.ts"
import { copyTo, fromSource, host, inside, withoutPrivileges } from "../files/archiveCopy.ts"
import { failedAs } from "../files/fileFailure.ts"
import * as inRoot from "../files/rooted.ts"
import { own } from "../ids/idMaps.ts"
import { writeFile } from "../image/save.ts"
import { merged } from "../layer/crossLayerLinks.ts"
import { archiveOf } from "../tar/containerTar.ts"
import { streamed } from "../tar/members.ts"
import type { State } from "./evaluate.ts"
import { named } from "./export.ts"

const FORMATS = ["folder", "tar", "oci-archive", "oci-layout", "docker-archive"]

/** Checks that come before the build: a mistake should not appear only at its end. */
export const check = ({ format = "folder", to }: ExportOptions): Effect.Effect<void, BerthError> =>
  !FORMATS.includes(format)
    ? new InvalidOption({ option: "format", value: JSON.stringify(format), expected: FORMATS.join(", ") })
    : typeof to !== "string" || to === "" || to.includes("\0")
      ? new InvalidOption({
          option: "to",
          value: JSON.stringify(to),
          expected: "the path of a file or folder"
        })
      : Effect.void

const files = (state: State, options: ExportOptions): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { layers, reference } = state.image
    const { format, path: from = "/.", to } = options
    if (layers.length === 0)
      return yield* new InvalidOption({ option: "build", value: reference, expected: "a build with files" })
    const root = yield* merged(berth, layers)
    const failed = failedAs(`export ${from} -> ${to}`)
    if (format === "tar") {
      const tar = streamed((signal) => archiveOf({ root, ids: own() }, from, {}, signal), failed)
      return yield* writeFile(berth.fileSystem, path.resolve(to), tar)
    }
    return yield* Effect.mapError(
      inRoot.promised((signal) =>
        fromSource(inside(root), from, (source) =>
          copyTo(source, host, path.resolve(to), { keep: withoutPrivileges, signal })
        )
      ),
      failed
    )
  }).pipe(Effect.scoped)

export const output = (
  state: State,
  options: ExportOptions,
  created: Date | undefined
): Effect.Effect<void, BerthError, Berth> =>
  Effect.gen(function* () {
    const { format = "folder", tag, to } = options
    if (format === "folder" || format === "tar") return yield* files(state, options)
    const image = yield* named(state, { ...options, created })
    return yield* Image.save(image, path.resolve(to), { format, tag })
  })
