/**
 * What each step was last made of, to say why it runs again: a digest of each input by a name for people. Steps are told apart by
 * the texts of all steps before them, so a step whose text has changed is a new one. Nothing depends on these records.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import type { ImageOptions } from "../../Build.ts"
import type { Image } from "../../Image.ts"
import * as caches from "./caches.ts"
import type { Node } from "./node.ts"
import * as secrets from "./secrets.ts"
import * as agents from "./ssh.ts"

const RECORD_BYTES_MAX = 4 * 1024 * 1024
/** Beyond so many files, a change is told of all of them. */
const FILES_MAX = 20_000
const NAMES_SHOWN = 10

/** Digests of inputs, by their names. */
export type Inputs = Readonly<Record<string, string>>

const Record = Schema.parseJson(
  Schema.Struct({ name: Schema.String, inputs: Schema.Record({ key: Schema.String, value: Schema.String }) })
)

const digestOf = (value: unknown): string =>
  createHash("sha256")
    .update(JSON.stringify(value) ?? "")
    .digest("base64")
    .slice(0, 22)

export const stepsFolder = (berth: Berth): string => `${berth.folder}/build/steps`

/** What tells a step from other ones. */
export const placeOf = (node: Node): string => {
  const texts: Array<string> = []
  for (let at: Node = node; ; at = at.parent) {
    if (at._tag === "From") {
      const { source } = at
      texts.push(typeof source === "string" ? source : "reference" in source ? source.reference : "an effect")
      return createHash("sha256").update(JSON.stringify(texts)).digest("hex")
    }
    texts.push(at.text)
  }
}

const each = (prefix: string, values: Iterable<readonly [name: string, value: unknown]>): Inputs =>
  Object.fromEntries([...values].map(([name, value]) => [`${prefix} ${name}`, digestOf(value)]))

/** The inputs of a step that makes a layer. `files` are digests of the files that it copies, or of what a command sees at a path. */
export const inputsOf = (
  node: Exclude<Node, { readonly _tag: "From" }>,
  image: Image,
  identity: string,
  files: ReadonlyMap<string, string> | undefined,
  defaultNetwork: ImageOptions["network"]
): Inputs => {
  const below = { "the image below": digestOf([identity, image.layers]) }
  const { environment, user, workingDirectory } = image.config
  switch (node._tag) {
    case "Run": {
      const { env, mounts, network = defaultNetwork ?? "none", security, user: own } = node.options
      return {
        ...below,
        "the command": digestOf(node.command),
        "the user": digestOf(own ?? user),
        "the working directory": digestOf(workingDirectory),
        "the network": digestOf(typeof network === "object" ? "a network" : network),
        "the security": digestOf(security ?? "sandbox"),
        "the list of caches": digestOf(caches.placesOf(node)),
        "the mounts": digestOf(mounts),
        ...each("what is at", files ?? []),
        "the list of secrets": digestOf(secrets.placesOf(node)),
        "the list of SSH agents": digestOf(agents.placesOf(node)),
        ...each("the variable", Object.entries({ ...environment, ...env }))
      }
    }
    case "Copy": {
      const { to, ...rest } = node.options
      const what = node.parts.map(({ paths, unpack }) => [paths, unpack])
      const known =
        files === undefined
          ? {}
          : files.size > FILES_MAX
            ? { "the files": digestOf([...files]) }
            : each("the file", files)
      return { ...below, "the options": digestOf([workingDirectory, rest, what, to]), ...known }
    }
    default:
      return below
  }
}

/** The record of a step, if there is one. */
const read = (berth: Berth, place: string): typeof Record.Type | undefined => {
  try {
    const file = `${stepsFolder(berth)}/${place}.json`
    if (fs.statSync(file).size > RECORD_BYTES_MAX) return undefined
    return Option.getOrUndefined(Schema.decodeUnknownOption(Record)(fs.readFileSync(file, "utf8")))
  } catch {
    return undefined
  }
}

const named = (names: ReadonlyArray<string>, what: string): ReadonlyArray<string> =>
  names.length <= NAMES_SHOWN
    ? names.map((name) => `${name} ${what}`)
    : [
        ...names.slice(0, NAMES_SHOWN).map((name) => `${name} ${what}`),
        `${names.length - NAMES_SHOWN} more inputs like these`
      ]

/** Why a step has no layer yet: what changed since its inputs were recorded; undefined if they were not. */
export const reasonsOf = (berth: Berth, place: string, inputs: Inputs): ReadonlyArray<string> | undefined => {
  const before = read(berth, place)?.inputs
  if (before === undefined) return undefined
  const has = (all: Inputs, name: string) => Object.hasOwn(all, name)
  const reasons = [
    ...named(
      Object.keys(inputs).filter((name) => has(before, name) && before[name] !== inputs[name]),
      "has changed"
    ),
    ...named(
      Object.keys(inputs).filter((name) => !has(before, name)),
      "is new"
    ),
    ...named(
      Object.keys(before).filter((name) => !has(inputs, name)),
      "is gone"
    )
  ]
  return reasons.length > 0 ? reasons : ["its layer is not in the store any more, or it has failed before"]
}

/** The name of the layer that a step had last. */
export const lastName = (berth: Berth, place: string): string | undefined => read(berth, place)?.name

/** The name in a record, without a look at the rest; undefined for one that was not written to its end. */
const nameIn = (file: string): unknown => {
  try {
    return JSON.parse(fs.readFileSync(file, "utf8")).name
  } catch {
    return undefined
  }
}

/** Records the inputs of a step whose layer is there under a name. Without room for it, no reason can be told later. */
export const record = (berth: Berth, place: string, name: string, inputs: () => Inputs): void => {
  const file = `${stepsFolder(berth)}/${place}.json`
  if (nameIn(file) === name) return
  try {
    fs.mkdirSync(stepsFolder(berth), { recursive: true, mode: 0o700 })
    // In place: ext4 writes a new file at once that takes the place of another, which takes longer than a step that has been made
    // before. Who reads meanwhile finds no record.
    const fd = fs.openSync(file, fs.constants.O_WRONLY | fs.constants.O_CREAT, 0o600)
    try {
      fs.ftruncateSync(fd, fs.writeSync(fd, JSON.stringify({ name, inputs: inputs() })))
    } finally {
      fs.closeSync(fd)
    }
  } catch {
    fs.rmSync(file, { force: true })
  }
}
