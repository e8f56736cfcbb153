/** The files of a container that runs on a runner, as `@effect/platform`'s FileSystem. */
import { type PlatformError, SystemError } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { BerthError } from "../../BerthError.ts"
import type { Link } from "./client.ts"
import { fileMethods } from "./protocol.ts"

/** The largest part of a file in one message. */
const PART_BYTES = 4 * 1024 * 1024

const unsupported = (method: string) =>
  Effect.fail(
    new SystemError({
      module: "FileSystem",
      method,
      reason: "Unknown",
      description: "a file of another machine cannot be used in this way: read or write it as a whole"
    })
  )

const isPlatformError = (error: unknown): error is PlatformError =>
  typeof error === "object" && error !== null && "module" in error

const asPlatformError =
  (method: string) =>
  (error: PlatformError | BerthError): PlatformError =>
    isPlatformError(error)
      ? error
      : new SystemError({
          module: "FileSystem",
          method,
          reason: "Unknown",
          description: error.message,
          cause: error
        })

/** The answer of `stat` as plain data: an Option is its value, or nothing. */
export const plainInfo = (info: FileSystem.File.Info): Readonly<Record<string, unknown>> =>
  Object.fromEntries(
    Object.entries(info).map(([name, value]) => [
      name,
      Option.isOption(value) ? Option.getOrUndefined(value) : value
    ])
  )

const optional = ["mtime", "atime", "birthtime", "ino", "nlink", "uid", "gid", "rdev", "blocks"]

const infoOf = (plain: Readonly<Record<string, unknown>>): FileSystem.File.Info => {
  const size = (value: unknown) => FileSystem.Size(BigInt(value as number | bigint))
  return {
    ...plain,
    ...Object.fromEntries(optional.map((name) => [name, Option.fromNullable(plain[name])])),
    size: size(plain.size),
    blksize: Option.map(Option.fromNullable(plain.blksize), size)
  } as FileSystem.File.Info
}

/** Puts the parts of a file together. */
const joined = (parts: Iterable<Uint8Array>): Uint8Array => {
  const all = [...parts]
  const whole = new Uint8Array(all.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of all) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

export const filesOf = (link: Link, id: string): FileSystem.FileSystem => {
  const ask =
    (method: (typeof fileMethods)[number]) =>
    (...given: ReadonlyArray<unknown>): Effect.Effect<never, PlatformError> =>
      link
        .call((calls) => calls.file({ id, method, arguments: given }))
        .pipe(Effect.mapError(asPlatformError(method))) as never
  const methods = Object.fromEntries(fileMethods.map((method) => [method, ask(method)])) as Record<
    (typeof fileMethods)[number],
    ReturnType<typeof ask>
  >
  const read = (path: string) =>
    Stream.mapError(
      link.listen((calls) => calls.read({ id, path })),
      asPlatformError("readFile")
    )
  const rest = (path: string, data: Uint8Array, from: number): Effect.Effect<void, PlatformError> =>
    from >= data.length
      ? Effect.void
      : Effect.zipRight(
          methods.writeFile(path, data.subarray(from, from + PART_BYTES), { flag: "a" }),
          rest(path, data, from + PART_BYTES)
        )
  const files = FileSystem.make({
    ...(methods as unknown as FileSystem.FileSystem),
    stat: (path) => Effect.map(methods.stat(path), infoOf),
    readFile: (path) => Effect.map(Stream.runCollect(read(path)), joined),
    writeFile: (path, data, options) =>
      Effect.zipRight(
        methods.writeFile(path, data.subarray(0, PART_BYTES), options),
        rest(path, data, PART_BYTES)
      ),
    makeTempDirectoryScoped: () => unsupported("makeTempDirectoryScoped"),
    makeTempFileScoped: () => unsupported("makeTempFileScoped"),
    open: () => unsupported("open"),
    watch: () => Stream.unwrap(unsupported("watch"))
  })
  return { ...files, stream: (path) => read(path) as ReturnType<FileSystem.FileSystem["stream"]> }
}
