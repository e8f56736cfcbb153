/** The values of `Build`, and their evaluation. */
import * as os from "node:os"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { hasProperty } from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type {
  Build,
  TypeId as BuildTypeId,
  ConfigOptions,
  Context,
  CopyOptions,
  Explanation,
  ExportOptions,
  GitOptions,
  ImageOptions,
  RunOptions,
  Shell,
  ShellOptions
} from "../../Build.ts"
import type { Remote } from "../../BuildStep.ts"
import type { Image, ImageConfig } from "../../Image.ts"
import { scratch } from "../image/image.ts"
import * as Store from "../store/store.ts"
import * as gits from "../util/gitAddress.ts"
import { later } from "../util/later.ts"
import { prints } from "../util/prints.ts"
import type { Evaluation, State } from "./evaluate.ts"
import type { Git, Node, Shown, Source } from "./node.ts"

const evaluation = later(() => import("./evaluate.ts"))
const caching = later(() => import("./cache.ts"))
const cacheWriting = later(() => import("./cacheWrite.ts"))
const exporting = later(() => import("./export.ts"))
const writing = later(() => import("./output.ts"))
const shells = later(() => import("./shell.ts"))

export const TypeId: BuildTypeId = Symbol.for("berth/Build") as BuildTypeId

export const isBuild = (u: unknown): u is Build => hasProperty(u, TypeId)

const textOf = (node: Node): string => (node._tag === "From" ? "FROM" : node.text)

const Proto = {
  ...prints<Build>({
    id: "berth/Build",
    json: ({ node }) => ({ last: textOf(node) }),
    line: ({ node }) => textOf(node)
  }),
  [TypeId]: TypeId
}

export const of = (node: Node): Build => Object.assign(Object.create(Proto), { node })

export const from = (source: Source): Build => of({ _tag: "From", source })

export const local = (
  folder: string,
  options: { readonly ignore?: ReadonlyArray<string> | undefined } = {}
): Context => ({ _tag: "Context", folder: path.resolve(folder), ignore: options.ignore ?? [] })

export const remote = (url: string, options: { readonly checksum?: string | undefined } = {}): Remote => ({
  _tag: "Remote",
  url,
  checksum: options.checksum
})

export const git = (
  address: string,
  { keepGitDir = false, knownHosts, ssh: agent, submodules, token }: GitOptions = {}
): Build => {
  const parsed = gits.parse(address)
  const problem = typeof parsed === "string" ? parsed : undefined
  // An address with a password is not shown.
  const found = typeof parsed === "string" ? { url: "", ref: undefined, folder: "." } : parsed
  const its = { keepGitDir, submodules, checksum: undefined, token, agent, knownHosts }
  return gitBuild({ _tag: "Git", ...found, problem, ...its })
}

/** The build whose files are those of a repository. */
export const gitBuild = (from: Git): Build =>
  of({
    _tag: "Copy",
    parent: { _tag: "From", source: scratch },
    parts: [{ from, paths: ["."], unpack: false }],
    options: { to: "/" },
    text: `GIT ${from.url}#${from.ref ?? ""}:${from.folder}`,
    place: undefined
  })

const isDataFirst = (args: IArguments): boolean => isBuild(args[0])

/** Where the layer of a context's files has them. */
const COPIED = "/files"

/** Files that a command sees. Those of a context are copied into a layer of their own, so that they cannot change meanwhile. */
export const shownOf = (from: Context | Node, path: string, place?: string): Shown => {
  if (from._tag !== "Context") return { from, path }
  const copied: Node = {
    _tag: "Copy",
    parent: { _tag: "From", source: scratch },
    parts: [{ from, paths: [path], unpack: false }],
    options: { to: COPIED },
    text: `MOUNT ${path}`,
    place
  }
  return { from: copied, path: COPIED }
}

export const run = dual<
  (command: string | ReadonlyArray<string>, options?: RunOptions) => (build: Build) => Build,
  (build: Build, command: string | ReadonlyArray<string>, options?: RunOptions) => Build
>(isDataFirst, (build, command, { bind = [], cache = {}, secret = {}, ssh = {}, ...options } = {}) =>
  of({
    _tag: "Run",
    parent: build.node,
    command: typeof command === "string" ? ["/bin/sh", "-c", command] : command,
    options,
    binds: bind.map(({ from: source, path: shown = "/", target, writable = false }) => ({
      ...shownOf(isBuild(source) ? source.node : source, shown),
      target,
      writable
    })),
    caches: Object.entries(cache).map(([target, given]) => {
      const { from: source, path: shown = "/", ...rest } = typeof given === "string" ? { name: given } : given
      const base = source === undefined ? undefined : shownOf(isBuild(source) ? source.node : source, shown)
      return { target, base, ...rest }
    }),
    secrets: Object.entries(secret).map(([name, given]) => ({
      name,
      ...(typeof given === "string" || Redacted.isRedacted(given) ? { value: given } : given)
    })),
    agents: Object.entries(ssh).flatMap(([target, given]) => {
      const { required = false, ...agent } = typeof given === "object" ? given : { socket: given }
      return agent.socket === undefined && !required ? [] : [{ target, ...agent }]
    }),
    text: `RUN ${typeof command === "string" ? command : JSON.stringify(command)}`,
    place: undefined
  })
)

export const copy = dual<
  (options: CopyOptions) => (build: Build) => Build,
  (build: Build, options: CopyOptions) => Build
>(2, (build, options) => {
  const { from: source, paths = ["."], unpack = false, ...rest } = options
  return of({
    _tag: "Copy",
    parent: build.node,
    parts: [{ from: isBuild(source) ? source.node : source, paths, unpack }],
    options: rest,
    text: `COPY ${[...("url" in source ? [source.url] : paths), options.to ?? "."].join(" ")}`,
    place: undefined
  })
})

export const workdir = dual<(path: string) => (build: Build) => Build, (build: Build, path: string) => Build>(
  2,
  (build, to) =>
    of({ _tag: "Workdir", parent: build.node, path: to, text: `WORKDIR ${to}`, place: undefined })
)

const changeOf =
  ({ environment, expose, labels, ...rest }: ConfigOptions) =>
  (before: ImageConfig): Partial<ImageConfig> => ({
    ...rest,
    ...(environment === undefined ? {} : { environment: { ...before.environment, ...environment } }),
    ...(labels === undefined ? {} : { labels: { ...before.labels, ...labels } }),
    ...(expose === undefined
      ? {}
      : {
          exposedPorts: [
            ...new Set([
              ...before.exposedPorts,
              ...expose.map((port) => (/\//.test(String(port)) ? String(port) : `${port}/tcp`))
            ])
          ]
        })
  })

export const config = dual<
  (options: ConfigOptions) => (build: Build) => Build,
  (build: Build, options: ConfigOptions) => Build
>(2, (build, options) =>
  of({
    _tag: "Configure",
    parent: build.node,
    change: changeOf(options),
    text: `CONFIG ${Object.keys(options).join(" ")}`,
    place: undefined
  })
)

/** `SOURCE_DATE_EPOCH`, in seconds. */
const epoch = (): Date | undefined => {
  const text = process.env.SOURCE_DATE_EPOCH ?? ""
  return /^\d{1,12}$/.test(text) ? new Date(Number(text) * 1000) : undefined
}

/** The state after the last step. */
const evaluated = (
  build: Build,
  options: ImageOptions,
  watched: Pick<Evaluation, "explain" | "failed"> = {}
): Effect.Effect<State, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const slots = yield* Effect.makeSemaphore(options.concurrency ?? os.availableParallelism())
    const tell = options.onEvent ?? (() => {})
    const { cacheFrom = [], cacheTo } = options
    const places = Array.isArray(cacheFrom) ? cacheFrom : [cacheFrom]
    // A place that cannot be one is told before the build.
    if (cacheTo !== undefined) yield* cacheWriting((module) => module.check(berth, cacheTo))
    const caches = yield* Effect.forEach(places, (place) => caching((module) => module.open(berth, place)))
    const made = new Set<string>()
    const how = {
      berth,
      options,
      tell,
      slots,
      known: new Map(),
      numbers: new Map(),
      caches,
      made,
      ...watched
    }
    const state = yield* evaluation((module) => module.evaluate(how, build.node))
    if (cacheTo !== undefined && watched.explain === undefined)
      yield* cacheWriting((module) =>
        module.write(berth, cacheTo, made, { ...options, created: options.created ?? epoch() })
      )
    return state
  })

const built = (build: Build, options: ImageOptions): Effect.Effect<Image, BerthError, Berth> =>
  Effect.gen(function* () {
    const state = yield* evaluated(build, options)
    const { tag } = options
    if (tag === undefined) return state.image
    return yield* exporting((module) =>
      module.named(state, { ...options, created: options.created ?? epoch() })
    )
  }).pipe(
    Store.keeping,
    Effect.withSpan("berth.Build.image", { attributes: { "container.image.name": options.tag } })
  )

export const image = dual<
  (options?: ImageOptions) => (build: Build) => Effect.Effect<Image, BerthError, Berth>,
  (build: Build, options?: ImageOptions) => Effect.Effect<Image, BerthError, Berth>
>(isDataFirst, (build, options = {}) => built(build, options))

export const exported = dual<
  (options: ExportOptions) => (build: Build) => Effect.Effect<void, BerthError, Berth>,
  (build: Build, options: ExportOptions) => Effect.Effect<void, BerthError, Berth>
>(2, (build, options) =>
  writing((module) =>
    Effect.gen(function* () {
      yield* module.check(options)
      const state = yield* evaluated(build, options)
      yield* module.output(state, options, options.created ?? epoch())
    })
  ).pipe(
    Store.keeping,
    Effect.withSpan("berth.Build.export", { attributes: { "berth.build.target": options.to } })
  )
)

export const explain = dual<
  (options?: ImageOptions) => (build: Build) => Effect.Effect<ReadonlyArray<Explanation>, BerthError, Berth>,
  (build: Build, options?: ImageOptions) => Effect.Effect<ReadonlyArray<Explanation>, BerthError, Berth>
>(isDataFirst, (build, options = {}) =>
  Effect.suspend(() => {
    const explained: Array<Explanation> = []
    return Effect.as(
      evaluated(build, { ...options, cache: true }, { explain: (one) => explained.push(one) }),
      explained
    )
  }).pipe(Store.keeping, Effect.withSpan("berth.Build.explain"))
)

export const shell = dual<
  (options?: ShellOptions) => (build: Build) => Effect.Effect<Shell, BerthError, Berth | Scope.Scope>,
  (build: Build, options?: ShellOptions) => Effect.Effect<Shell, BerthError, Berth | Scope.Scope>
>(isDataFirst, (build, options = {}) =>
  shells((module) => module.shell((failed) => evaluated(build, options, { failed }), options)).pipe(
    Store.keeping,
    Effect.withSpan("berth.Build.shell")
  )
)
