/** Cases for a FileSystem of `@effect/platform`, whose results are compared between two implementations. */
import type { PlatformError } from "@effect/platform/Error"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"

type Fs = FileSystem.FileSystem
type Body = (fs: Fs, at: (name: string) => string) => Effect.Effect<unknown, PlatformError, Scope.Scope>

export const runtime = "Deno" in globalThis ? "deno" : "Bun" in globalThis ? "bun" : "node"

/** The comparable part of a result: paths without the folder, errors without their messages. */
export const plain = (result: Either.Either<unknown, PlatformError>, folder: string): unknown =>
  Either.match(result, {
    onLeft: (error) =>
      error._tag === "BadArgument"
        ? `${error._tag} ${error.module} ${error.method}`
        : `${error._tag} ${error.reason} ${error.module} ${error.method} ${String(error.pathOrDescriptor).replaceAll(folder, "")}`,
    onRight: (value) =>
      JSON.parse(
        JSON.stringify(value ?? null, (_, v) =>
          typeof v === "bigint" ? `${v}n` : typeof v === "string" ? v.replaceAll(folder, "") : v
        )
      )
  })

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const text = (some: Uint8Array): string => new TextDecoder().decode(some)

/** A result or an error as a value, so that a case can have several. */
export const outcome = (effect: Effect.Effect<unknown, PlatformError, Scope.Scope>) =>
  Effect.map(Effect.either(effect), (result) => plain(result, "\0"))

export const outcomes = (effects: ReadonlyArray<Effect.Effect<unknown, PlatformError, Scope.Scope>>) =>
  Effect.forEach(effects, outcome)

/** The expected result on runtimes whose node:fs differs from Node's. */
export interface Exception {
  readonly on: ReadonlyArray<typeof runtime>
  readonly gives: unknown
}

// Without root, files on the host cannot be given away, and a container's ids differ from the host's.
const isRoot = process.getuid?.() === 0

export const table: ReadonlyArray<readonly [name: string, body: Body, exception?: Exception]> = [
  [
    "a file is written and read",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.writeFileString(at("a"), "lorem ipsum")
        const first = yield* fs.readFileString(at("a"))
        yield* fs.writeFile(at("a"), bytes("dolor"))
        yield* fs.writeFile(at("a"), bytes(" sit"), { flag: "a" })
        return [first, text(yield* fs.readFile(at("a"))), (yield* fs.stat(at("a"))).mode]
      })
  ],
  [
    "a file is made with the given mode less the umask",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.writeFileString(at("a"), "", { mode: 0o777 })
        yield* fs.writeFileString(at("b"), "", { mode: 0o600 })
        yield* Effect.scoped(fs.open(at("c"), { flag: "wx", mode: 0o640 }))
        return yield* Effect.forEach(["a", "b", "c"], (name) =>
          Effect.map(fs.stat(at(name)), (info) => info.mode.toString(8))
        )
      }),
    // Deno's writeFile ignores the umask.
    { on: ["deno"], gives: ["100755", "100600", "100640"] }
  ],
  [
    "calls on a missing path fail as on the host",
    (fs, at) =>
      Effect.suspend(() =>
        outcomes([
          fs.access(at("x")),
          fs.chmod(at("x"), 0o600),
          fs.chown(at("x"), 0, 0),
          fs.copyFile(at("x"), at("y")),
          fs.exists(at("x")),
          fs.link(at("x"), at("y")),
          fs.makeDirectory(at("x/y")),
          fs.makeTempDirectory({ directory: at("x") }),
          fs.open(at("x")),
          fs.readDirectory(at("x")),
          fs.readFile(at("x")),
          fs.readFileString(at("x")),
          fs.readLink(at("x")),
          fs.realPath(at("x")),
          fs.remove(at("x")),
          fs.remove(at("x"), { force: true }),
          fs.remove(at("x"), { recursive: true }),
          fs.rename(at("x"), at("y")),
          fs.stat(at("x")),
          Stream.runDrain(fs.stream(at("x"))),
          fs.symlink("t", at("x/y")),
          fs.truncate(at("x")),
          fs.utimes(at("x"), 1, 1),
          Stream.runDrain(fs.watch(at("x"))),
          fs.writeFileString(at("x/y"), ""),
          fs.copy(at("x"), at("y"))
        ])
      )
  ],
  [
    "calls on a path through a file fail as on the host",
    (fs, at) =>
      Effect.zipRight(
        fs.writeFileString(at("f"), "f"),
        outcomes([
          fs.access(at("f/x")),
          fs.exists(at("f/x")),
          fs.makeDirectory(at("f")),
          fs.makeDirectory(at("f"), { recursive: true }),
          fs.makeDirectory(at("f/x")),
          fs.makeDirectory(at("f/x/y"), { recursive: true }),
          fs.open(at("f"), { flag: "wx" }),
          fs.open(at("f/")),
          fs.readDirectory(at("f")),
          fs.readLink(at("f")),
          fs.stat(at("f/")),
          fs.symlink("t", at("f")),
          fs.link(at("f"), at("f")),
          fs.writeFileString(at("f/x"), "")
        ])
      )
  ],
  [
    "calls that need a file fail on a folder as on the host",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("d/e"), { recursive: true })
        yield* fs.writeFileString(at("f"), "f")
        return yield* outcomes([
          fs.readFile(at("d")),
          fs.writeFileString(at("d"), ""),
          fs.open(at("d"), { flag: "r+" }),
          fs.remove(at("d")),
          fs.makeDirectory(at("d")),
          fs.makeDirectory(at("d"), { recursive: true }),
          fs.truncate(at("d")),
          fs.link(at("d"), at("l")),
          fs.rename(at("f"), at("d")),
          fs.rename(at("d"), at("f")),
          fs.rename(at("d"), at("d/e/g")),
          fs.symlink("t", at("d")),
          fs.copyFile(at("f"), at("d")),
          fs.copy(at("f"), at("d")),
          fs.copy(at("d"), at("f")),
          fs.copy(at("d"), at("d/e/g"))
        ])
      })
  ],
  [
    "invalid arguments are refused as on the host",
    (fs, at) =>
      Effect.zipRight(
        fs.writeFileString(at("f"), ""),
        outcomes([
          fs.stat(at("a\0b")),
          fs.readFile(at("a\0b")),
          fs.rename(at("f"), at("a\0b")),
          fs.open(at("f"), { flag: "nonsense" as "r" }),
          fs.chown(at("f"), -2, 0),
          fs.stat("")
        ])
      )
  ],
  [
    "names that are too long fail as on the host",
    (fs, at) =>
      outcomes([
        Effect.mapError(
          fs.stat(at("x".repeat(256))),
          (e) => ({ ...e, pathOrDescriptor: "" }) as PlatformError
        ),
        Effect.mapError(
          fs.readFile(at("x/".repeat(2500))),
          (e) => ({ ...e, pathOrDescriptor: "" }) as PlatformError
        )
      ])
  ],
  [
    "makeDirectory makes one folder or a whole path",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("a"), { mode: 0o700 })
        yield* fs.makeDirectory(at("b/c/d"), { recursive: true })
        yield* fs.makeDirectory(at("b/c/d"), { recursive: true })
        yield* fs.makeDirectory(at("a/e/"), { recursive: false })
        yield* fs.symlink("b", at("l"))
        yield* fs.makeDirectory(at("l/c/g/h/"), { recursive: true })
        const names = (yield* fs.readDirectory(at(""))).toSorted()
        return [names, (yield* fs.stat(at("a"))).mode, (yield* fs.stat(at("b/c/g/h"))).mode]
      })
  ],
  [
    "readDirectory lists a folder, or the tree below it",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("a/b/c"), { recursive: true })
        yield* fs.writeFileString(at("a/b/f"), "")
        yield* fs.writeFileString(at("g"), "")
        return [
          (yield* fs.readDirectory(at(""))).toSorted(),
          (yield* fs.readDirectory(at(""), { recursive: true })).toSorted()
        ]
      })
  ],
  [
    "temporary folders and files are made",
    (fs, at) =>
      Effect.gen(function* () {
        const folder = yield* fs.makeTempDirectory({ directory: at(""), prefix: "tmp-" })
        const file = yield* fs.makeTempFile({ directory: at(""), prefix: "file-", suffix: ".txt" })
        const gone = yield* Effect.scoped(
          Effect.tap(fs.makeTempDirectoryScoped({ directory: at("") }), (path) =>
            fs.writeFileString(`${path}/x`, "x")
          )
        )
        const goneFile = yield* Effect.scoped(fs.makeTempFileScoped({ directory: at("") }))
        const anywhere = yield* fs.makeTempDirectoryScoped()
        return [
          folder.slice(at("").length).replace(/[^/-]{6}$/, "?"),
          file.slice(at("").length).replace(/-[^/]{6}\/[0-9a-f]{12}/, "-?/?"),
          (yield* fs.stat(folder)).mode,
          (yield* fs.stat(file)).mode,
          yield* fs.exists(gone),
          yield* fs.exists(goneFile),
          yield* fs.exists(anywhere)
        ]
      })
  ],
  [
    "links are followed as on the host",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("d/e"), { recursive: true })
        yield* fs.writeFileString(at("d/f"), "text")
        yield* fs.symlink("d/f", at("l"))
        yield* fs.symlink("../../d", at("d/e/up"))
        yield* fs.symlink("nowhere", at("dangling"))
        yield* fs.symlink("loop", at("loop"))
        yield* fs.writeFileString(at("dangling"), "made by its link")
        return [
          yield* fs.readFileString(at("l")),
          yield* fs.readFileString(at("d/e/up/e/up/f")),
          yield* fs.readLink(at("l")),
          yield* fs.readLink(at("d/e/up")),
          yield* fs.realPath(at("d/e/up/e/../f")),
          yield* fs.readFileString(at("nowhere")),
          (yield* fs.stat(at("l"))).type,
          yield* outcomes([
            fs.stat(at("loop")),
            fs.open(at("loop")),
            fs.open(at("l"), { flag: "wx" }),
            fs.readLink(at("d")),
            fs.remove(at("loop")),
            fs.readLink(at("loop"))
          ])
        ]
      })
  ],
  [
    "files are removed, renamed and linked",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("d/e/f"), { recursive: true })
        yield* fs.writeFileString(at("d/e/f/g"), "text")
        yield* fs.makeDirectory(at("kept"))
        yield* fs.writeFileString(at("kept/file"), "kept")
        yield* fs.symlink("../../kept", at("d/e/l"))
        yield* fs.link(at("d/e/f/g"), at("hard"))
        yield* fs.rename(at("d/e"), at("d/E"))
        yield* fs.rename(at("d/E/f/g"), at("new"))
        const links = Option.getOrThrow((yield* fs.stat(at("hard"))).nlink)
        yield* fs.remove(at("d"), { recursive: true })
        yield* fs.remove(at("new"))
        return [links, (yield* fs.readDirectory(at(""), { recursive: true })).toSorted()]
      })
  ],
  [
    "modes, owners, times and sizes are set",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.writeFileString(at("f"), "0123456789")
        yield* fs.symlink("f", at("l"))
        yield* fs.chmod(at("l"), 0o4710)
        yield* fs.utimes(at("l"), 1000, new Date(2_000_000))
        yield* fs.truncate(at("l"), 4)
        yield* fs.utimes(at("l"), 1000, new Date(2_000_000))
        if (isRoot) yield* fs.chown(at("l"), 12, 34)
        const info = yield* fs.stat(at("f"))
        yield* fs.truncate(at("f"))
        return [
          { mode: info.mode, size: info.size, type: info.type },
          isRoot ? [info.uid, info.gid] : [],
          { atime: info.atime, mtime: info.mtime, nlink: info.nlink },
          (yield* fs.stat(at("f"))).size
        ]
      })
  ],
  [
    "an open file is read and written",
    (fs, at) =>
      Effect.gen(function* () {
        const file = yield* fs.open(at("f"), { flag: "w+" })
        yield* file.writeAll(bytes("lorem ipsum dolor"))
        yield* file.seek(6, "start")
        const some = new Uint8Array(5)
        const read = yield* file.read(some)
        yield* file.seek(1, "current")
        const rest = yield* file.readAlloc(100)
        const end = yield* file.readAlloc(1)
        yield* file.truncate(5)
        yield* file.write(bytes("!"))
        yield* file.sync
        const { size } = yield* file.stat
        const appended = yield* fs.open(at("f"), { flag: "a+" })
        yield* appended.writeAll(bytes("?"))
        yield* appended.seek(3, "start")
        return [
          text(some),
          read,
          Option.map(rest, text),
          end,
          size,
          Option.map(yield* appended.readAlloc(10), text),
          yield* fs.readFileString(at("f"))
        ]
      }),
    // Bun's write takes no position without a length.
    {
      on: ["bun"],
      gives: [
        "ipsum",
        "5n",
        { _id: "Option", _tag: "Some", value: "dolor" },
        { _id: "Option", _tag: "None" },
        "6n",
        { _id: "Option", _tag: "Some", value: "em!?" },
        "lorem!?"
      ]
    }
  ],
  [
    "a file is the sink and the source of a stream",
    (fs, at) =>
      Effect.gen(function* () {
        yield* Stream.run(Stream.make(bytes("abc"), bytes("defgh")), fs.sink(at("f")))
        const all = yield* Stream.runCollect(fs.stream(at("f"), { chunkSize: 3 }))
        const part = yield* Stream.runCollect(fs.stream(at("f"), { offset: 2, bytesToRead: 4 }))
        return [Chunk.toReadonlyArray(all).map(text), Chunk.toReadonlyArray(part).map(text)]
      })
  ],
  [
    "files are copied",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.writeFileString(at("a"), "a", { mode: 0o751 })
        yield* fs.writeFileString(at("b"), "something longer")
        yield* fs.symlink("b", at("l"))
        yield* fs.copyFile(at("a"), at("new"))
        yield* fs.copyFile(at("a"), at("l"))
        yield* fs.copyFile(at("a"), at("a"))
        return [
          yield* fs.readFileString(at("b")),
          (yield* fs.stat(at("new"))).mode,
          yield* fs.readLink(at("l")),
          yield* fs.readFileString(at("a"))
        ]
      }),
    // Deno's copyFile fails with EINVAL where both are the same file.
    { on: ["deno"], gives: ["a", 0o100751, "b", "a"] }
  ],
  [
    "trees are copied",
    (fs, at) =>
      Effect.gen(function* () {
        yield* fs.makeDirectory(at("d/e"), { recursive: true })
        yield* fs.writeFileString(at("d/e/f"), "f", { mode: 0o750 })
        yield* fs.symlink("e/f", at("d/l"))
        yield* fs.utimes(at("d/e/f"), 1000, 2000)
        yield* fs.chmod(at("d/e"), 0o711)
        yield* fs.copy(at("d"), at("new/deep/copy"), { preserveTimestamps: true })
        yield* fs.writeFileString(at("d/e/f"), "changed")
        yield* fs.copy(at("d/e"), at("new/deep/copy/e"))
        const kept = yield* fs.readFileString(at("new/deep/copy/e/f"))
        const { mtime } = yield* fs.stat(at("new/deep/copy/e/f"))
        const link = yield* fs.readLink(at("new/deep/copy/l"))
        // Of Node, as a link to the same is taken for one into itself.
        yield* fs.remove(at("new/deep/copy/l"))
        yield* fs.copy(at("d"), at("new/deep/copy"), { overwrite: true })
        return [
          kept,
          mtime,
          yield* fs.readFileString(at("new/deep/copy/e/f")),
          (yield* fs.stat(at("new/deep/copy/e/f"))).mode,
          (yield* fs.stat(at("new/deep/copy/e"))).mode,
          link,
          (yield* fs.readDirectory(at("new"), { recursive: true })).toSorted()
        ]
      })
  ]
]
