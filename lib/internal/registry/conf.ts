/** containers-registries.conf(5), version 2: the locations of registries, and their mirrors. */
import * as os from "node:os"
import * as tls from "node:tls"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { parse as parseToml, TomlError } from "smol-toml"
import type { Berth } from "../../Berth.ts"
import { type BerthError, InvalidData, InvalidOption } from "../../BerthError.ts"
import * as Reference from "../../Reference.ts"
import type { ConnectOptions } from "../../Registry.ts"
import { readBounded } from "../disk/files.ts"
import { parseLocation } from "./mirrors.ts"

const CONF_BYTES_MAX = 1024 * 1024

const text = Schema.optionalWith(Schema.String, { default: () => "" })
const flag = Schema.optionalWith(Schema.Boolean, { default: () => false })
const Entry = Schema.Struct({
  prefix: text,
  location: text,
  insecure: flag,
  blocked: flag,
  "mirror-by-digest-only": flag,
  mirror: Schema.optionalWith(
    Schema.Array(
      Schema.Struct({
        location: Schema.NonEmptyString,
        insecure: flag,
        "pull-from-mirror": Schema.optionalWith(Schema.Literal("all", "digest-only", "tag-only"), {
          default: () => "all" as const
        })
      })
    ),
    { default: () => [] }
  )
})
const File = Schema.Struct({ registry: Schema.optionalWith(Schema.Array(Entry), { default: () => [] }) })

/** One `[[registry]]` table, and its file. */
interface Known {
  readonly file: string
  readonly prefix: string
  readonly entry: typeof Entry.Type
}

type Path = ReadonlyArray<PropertyKey>

/** The line of a key, or of the header of the table that should have it: `["registry", 1, "mirror", 0, "location"]`. */
const lineOf = (content: string, [, registry = -1, key = "", mirror = -1, inner = ""]: Path): number => {
  const isMirror = key === "mirror" && mirror !== -1
  const wanted = isMirror ? `${String(registry)}.${String(mirror)}` : `${String(registry)}.-1`
  const assignment = new RegExp(`^\\s*"?${String(isMirror ? inner : key)}"?\\s*=`)
  let [registries, mirrors] = [-1, -1]
  let header = 1
  for (const [i, line] of content.split("\n").entries()) {
    const table = /^\s*\[\[?\s*([^\]]*?)\s*\]/.exec(line)?.[1]?.replaceAll(/[\s"]/g, "")
    if (table === "registry") {
      registries++
      mirrors = -1
    } else if (table === "registry.mirror") {
      mirrors++
    }
    if (`${registries}.${mirrors}` === wanted) {
      if (table !== undefined) header = i + 1
      else if (assignment.test(line)) return i + 1
    }
  }
  return header
}

const refuse = (file: string, line: number, why: string, cause?: unknown): InvalidData =>
  new InvalidData({
    format: "registries.conf",
    value: `${file}, line ${line} (${why})`,
    expected: "a file as containers-registries.conf(5) describes version 2",
    cause
  })

const parse = (file: string, content: string): Effect.Effect<ReadonlyArray<Known>, InvalidData> =>
  Effect.gen(function* () {
    const document = yield* Effect.try({
      try: () => parseToml(content),
      catch: (error) =>
        error instanceof TomlError
          ? refuse(file, error.line, error.message.split("\n")[0]!, error)
          : refuse(file, 1, String(error), error)
    })
    if ("registries" in document) {
      const line = content.split("\n").findIndex((one) => /^\s*\[?\s*registries\b/.test(one)) + 1
      return yield* refuse(file, line, "it is of version 1: write a [[registry]] for each")
    }
    const decoded = Schema.decodeUnknownEither(File)(document)
    if (Either.isLeft(decoded)) {
      const [issue] = ParseResult.ArrayFormatter.formatErrorSync(decoded.left)
      const name = issue!.path.filter((part) => typeof part === "string").join(".")
      return yield* refuse(file, lineOf(content, issue!.path), `${name}: ${issue!.message}`, decoded.left)
    }
    const known = new Map<string, Known>()
    for (const [i, entry] of decoded.right.registry.entries()) {
      const at = (...path: Path) => lineOf(content, ["registry", i, ...path])
      const prefix = (entry.prefix || entry.location).replace(/\/+$/, "")
      if (entry.location === "" && !prefix.startsWith("*."))
        return yield* refuse(file, at("location"), "location is missing")
      if (/@|\/.*:/.test(prefix))
        return yield* refuse(
          file,
          at("prefix"),
          "a prefix with a tag or a digest, which Berth does not support"
        )
      if (known.has(prefix)) return yield* refuse(file, at("prefix"), `${prefix} appears twice`)
      // A prefix has the grammar of a name, except for the wildcard of subdomains.
      yield* Effect.mapError(parseLocation("prefix", prefix.replace(/^\*\./, ""), ""), (cause) =>
        refuse(file, at("prefix"), "prefix is not a host with an optional port and path", cause)
      )
      const places = [
        ...(entry.location === "" ? [] : [{ location: entry.location, path: ["location"] }]),
        ...entry.mirror.map(({ location }, k) => ({ location, path: ["mirror", k, "location"] }))
      ]
      for (const { location, path } of places) {
        yield* Effect.mapError(parseLocation("location", location, ""), (cause) =>
          refuse(file, at(...path), `location should be ${cause.expected}`, cause)
        )
      }
      known.set(prefix, { file, prefix, entry })
    }
    return [...known.values()]
  })

interface Source {
  readonly file: string
  /** Folders of drop-ins, in this order. */
  readonly folders: ReadonlyArray<string>
}

const source = (berth: Berth): Effect.Effect<Source> => {
  const user = `${process.env.XDG_CONFIG_HOME || `${os.homedir()}/.config`}/containers/registries.conf`
  const system = "/etc/containers/registries.conf"
  const given = process.env.CONTAINERS_REGISTRIES_CONF
  return given
    ? Effect.succeed({ file: given, folders: [`${system}.d`, `${user}.d`] })
    : Effect.map(
        Effect.orElseSucceed(berth.fileSystem.exists(user), () => false),
        (exists) =>
          exists
            ? { file: user, folders: [`${user}.d`] }
            : { file: system, folders: [`${system}.d`, `${user}.d`] }
      )
}

const readFile = (
  berth: Berth,
  file: string
): Effect.Effect<Option.Option<ReadonlyArray<Known>>, BerthError> =>
  Effect.flatMap(readBounded(berth.fileSystem, file, file, CONF_BYTES_MAX), (bytes) =>
    Option.isNone(bytes)
      ? Effect.succeedNone
      : Effect.asSome(parse(file, new TextDecoder().decode(bytes.value)))
  )

/** The tables of all files, by prefix: a later file replaces an earlier one. */
const read = (berth: Berth, path: string | undefined): Effect.Effect<ReadonlyArray<Known>, BerthError> =>
  Effect.gen(function* () {
    if (path !== undefined) {
      const known = yield* readFile(berth, path)
      const expected = "the path of an existing registries.conf"
      return Option.isSome(known)
        ? known.value
        : yield* new InvalidOption({ option: "path", value: JSON.stringify(path), expected })
    }
    const { file, folders } = yield* source(berth)
    const files = [file]
    for (const folder of folders) {
      const names = yield* Effect.orElseSucceed(berth.fileSystem.readDirectory(folder), () => [])
      const dropIns = names.filter((name) => name.endsWith(".conf")).sort()
      files.push(...dropIns.map((name) => `${folder}/${name}`))
    }
    const all = new Map<string, Known>()
    for (const one of files) {
      for (const known of Option.getOrElse(yield* readFile(berth, one), () => []))
        all.set(known.prefix, known)
    }
    return [...all.values()]
  })

/** The part of a name that matches the prefix: for a wildcard of subdomains, the whole host. */
const matched = (prefix: string, { registry, repository }: Reference.Reference): string | undefined => {
  if (prefix.startsWith("*.")) return registry.endsWith(prefix.slice(1)) ? registry : undefined
  return `${registry}/${repository}/`.startsWith(`${prefix}/`) ? prefix : undefined
}

const CONNECT_TIMEOUT_MILLIS = 5000

/** The protocol of an insecure registry. If it does not answer, the later request reports that. */
const insecurity = (location: string): Effect.Effect<Pick<ConnectOptions, "plainHttp" | "tlsVerify">> => {
  const { hostname, port } = new URL(`https://${location}`)
  return Effect.async<Pick<ConnectOptions, "plainHttp" | "tlsVerify">>((resume) => {
    const host = hostname.replace(/^\[|\]$/g, "")
    const socket = tls.connect({ host, port: Number(port || 443), rejectUnauthorized: false })
    socket.on("secureConnect", () => {
      socket.destroy()
      resume(Effect.succeed({ tlsVerify: false }))
    })
    socket.on("error", (error) => {
      const spoke = /^(EPROTO|ERR_SSL|ERR_TLS|ECONNRESET)/.test(String((error as { code?: unknown }).code))
      resume(Effect.succeed(spoke || port === "" ? { plainHttp: true } : { tlsVerify: false }))
    })
    return Effect.sync(() => socket.destroy())
  }).pipe(
    Effect.timeoutTo({
      duration: CONNECT_TIMEOUT_MILLIS,
      onSuccess: (found) => found,
      onTimeout: () => ({ tlsVerify: false })
    })
  )
}

export const optionsFor = (
  berth: Berth,
  name: string,
  path: string | undefined
): Effect.Effect<ConnectOptions, BerthError> =>
  Effect.gen(function* () {
    const reference = yield* Reference.parse(name)
    const found = (yield* read(berth, path))
      .map((known) => ({ ...known, match: matched(known.prefix, reference) }))
      .sort((a, b) => b.prefix.length - a.prefix.length)
      .find(({ match }) => match !== undefined)
    if (found === undefined) return {}
    const { entry, file, match } = found
    if (entry.blocked) {
      const value = JSON.stringify(Reference.print(reference))
      const expected = `an image that ${file} does not block with ${found.prefix}`
      return yield* new InvalidOption({ option: "reference", value, expected })
    }
    const replaces = match!.slice(reference.registry.length + 1)
    const at = (location: string, insecure: boolean) =>
      Effect.map(insecure ? insecurity(location) : Effect.succeed({}), (settings) => ({
        location,
        ...(replaces === "" ? {} : { replaces }),
        ...settings
      }))
    const asked = entry.mirror.filter((mirror) => {
      const when = entry["mirror-by-digest-only"] ? "digest-only" : mirror["pull-from-mirror"]
      return when === "all" || (when === "digest-only") === (reference.digest !== undefined)
    })
    const mirrors = yield* Effect.forEach(asked, ({ insecure, location }) => at(location, insecure), {
      concurrency: "unbounded"
    })
    return { ...(yield* at(entry.location || match!, entry.insecure)), mirrors }
  })
