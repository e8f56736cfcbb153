/** Reads the values of a compose file, each in the forms that the Compose specification gives it. All of these throw. */
import { isBerthError } from "../../BerthError.ts"
import { words } from "../util/commandTemplate.ts"
import { nearest } from "../util/didYouMean.ts"
import { interpolate, type Lookup, type Missing, Uninterpolable } from "./interpolate.ts"
import { fail, keyOf, type MapNode, type Node, type Place } from "./tree.ts"

const MILLIS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  µs: 1e-3,
  μs: 1e-3,
  ms: 1,
  s: 1000,
  m: 60_000,
  h: 3_600_000
}

const describe = ({ kind }: Node): string => ({ scalar: "one value", list: "a list", map: "a mapping" })[kind]

const wrong = (node: Node, expected: string): never =>
  fail(node.at, "Invalid", `expected ${expected}, found ${describe(node)}`)

/** Whether a key has no value: it is as if left out. */
export const isNull = (node: Node | undefined): node is undefined =>
  node === undefined || (node.kind === "scalar" && node.value === null)

export class Values {
  private readonly lookup: Lookup
  private readonly missing: Missing

  constructor(lookup: Lookup, missing: Missing = () => {}) {
    this.lookup = lookup
    this.missing = missing
  }

  /** Runs a check of Berth's own on a value, and gives its error the value's place. */
  at<A>({ at }: Node, body: () => A): A {
    try {
      return body()
    } catch (error) {
      if (error instanceof Uninterpolable) return fail(at, "Variable", error.message)
      if (!isBerthError(error)) throw error
      const detail =
        error._tag === "InvalidOption"
          ? `${error.value} is not acceptable: expected ${error.expected}`
          : error.message
      return fail(at, "Invalid", detail, error)
    }
  }

  /** A value as text, with its variables, whatever its type is. */
  word(node: Node, expected = "text"): string {
    if (node.kind !== "scalar") return wrong(node, expected)
    if (node.value === null) return fail(node.at, "Invalid", `expected ${expected}, found nothing`)
    const { value } = node
    return typeof value === "string"
      ? this.at(node, () => interpolate(value, this.lookup, this.missing))
      : node.source
  }

  text(node: Node, expected = "text"): string {
    if (node.kind === "scalar" && node.value !== null && typeof node.value !== "string")
      return fail(node.at, "Invalid", `expected ${expected}: put ${node.source} into quotes`)
    return this.word(node, expected)
  }

  boolean(node: Node): boolean {
    const text = this.word(node, "true or false")
    return text === "true"
      ? true
      : text === "false"
        ? false
        : fail(node.at, "Invalid", `expected true or false, found ${JSON.stringify(text)}`)
  }

  number(node: Node, expected = "a number"): number {
    const text = this.word(node, expected)
    return /^\d+(\.\d+)?$/.test(text)
      ? Number(text)
      : fail(node.at, "Invalid", `expected ${expected}, found ${JSON.stringify(text)}`)
  }

  integer(node: Node, expected = "a whole number"): number {
    const value = this.number(node, expected)
    return Number.isSafeInteger(value)
      ? value
      : fail(node.at, "Invalid", `expected ${expected}, found ${value}`)
  }

  /** Milliseconds. */
  duration(node: Node): number {
    const text = this.word(node, "a duration")
    const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|s|m|h)/g)]
    if (text !== "0" && (parts.length === 0 || parts.map(([all]) => all).join("") !== text))
      return fail(
        node.at,
        "Invalid",
        `expected a duration such as 10s or 1m30s, found ${JSON.stringify(text)}`
      )
    return parts.reduce((sum, [, amount, unit]) => sum + Number(amount) * MILLIS[unit!]!, 0)
  }

  bytes(node: Node): number {
    const text = this.word(node, "a size")
    const [, amount, unit] = /^(\d+(?:\.\d+)?) ?([kmgt]?)b?$/i.exec(text) ?? []
    const bytes = Math.floor(Number(amount) * 1024 ** " kmgt".indexOf((unit || " ").toLowerCase()))
    return amount !== undefined && Number.isSafeInteger(bytes)
      ? bytes
      : fail(node.at, "Invalid", `expected a size such as 512m or 1gb, found ${JSON.stringify(text)}`)
  }

  choice<A extends string>(node: Node, choices: ReadonlyArray<A>): A {
    const text = this.word(node)
    return choices.includes(text as A)
      ? (text as A)
      : fail(node.at, "Invalid", `expected one of ${choices.join(", ")}, found ${JSON.stringify(text)}`)
  }

  list(node: Node, expected = "a list"): ReadonlyArray<Node> {
    return node.kind === "list" ? node.items : wrong(node, expected)
  }

  texts(node: Node): ReadonlyArray<string> {
    return this.list(node, "a list of texts").map((item) => this.text(item))
  }

  /** One text or a list of them. */
  oneOrMore(node: Node): ReadonlyArray<Node> {
    return node.kind === "list" ? node.items : [node]
  }

  /** A command: a list of its words, or a text that is split into them as a shell would do. */
  command(node: Node): ReadonlyArray<string> {
    if (node.kind === "list") return this.texts(node)
    const parts = this.text(node, "text or a list").split(/(?<!\\)\$/)
    return this.at(node, () =>
      words(
        parts,
        Array.from({ length: parts.length - 1 }, () => "$")
      )
    )
  }

  /** A mapping, or a list of `NAME=VALUE`. A name alone has no value. */
  pairs(node: Node): ReadonlyArray<readonly [name: string, value: string | undefined, node: Node]> {
    if (node.kind === "map")
      return [...node.entries].map(([name, value]) => [
        name,
        isNull(value) ? undefined : this.word(value),
        value
      ])
    return this.list(node, "a mapping or a list").map((item) => {
      const text = this.text(item)
      const end = text.indexOf("=")
      if (end === 0) fail(item.at, "Invalid", `expected a name before =, found ${JSON.stringify(text)}`)
      return [end < 0 ? text : text.slice(0, end), end < 0 ? undefined : text.slice(end + 1), item]
    })
  }
}

/** What is filled key by key. */
export type Changeable<A> = { -readonly [Key in keyof A]: A[Key] }

/** Gives the readers of keys that set a field of `target` each. */
export const setter =
  <A extends object>(target: Changeable<A>) =>
  <Key extends keyof A>(key: Key, read: (value: Node) => A[Key]) =>
  (value: Node): void => {
    target[key] = read(value)
  }

export const mapping = (node: Node): MapNode => (node.kind === "map" ? node : wrong(node, "a mapping"))

/** The value of a key, unless it is missing or null. */
export const get = (node: MapNode, key: string): Node | undefined => {
  const value = node.entries.get(key)
  return isNull(value) ? undefined : value
}

/**
 * Reads each key of a mapping by the function of that name, in the order of the file; keys that begin with `x-` have no meaning.
 * `others` are further keys of the specification.
 */
export const readKeys = (
  node: MapNode,
  readers: Readonly<Record<string, (value: Node) => void>>,
  others: ReadonlyArray<string> | Readonly<Record<string, string | undefined>> = []
): void => {
  const hints = Array.isArray(others) ? {} : (others as Readonly<Record<string, string | undefined>>)
  const known = [...Object.keys(readers), ...(Array.isArray(others) ? others : Object.keys(others))]
  for (const [key, value] of node.entries) {
    if (key.startsWith("x-")) continue
    if (Object.hasOwn(readers, key)) {
      if (!isNull(value)) readers[key]!(value)
      continue
    }
    if (known.includes(key)) unsupported(keyOf(value), hints[key])
    fail(
      keyOf(value),
      "Invalid",
      `${JSON.stringify(key)} is no key of the Compose specification: did you mean ${nearest(key, known)}?`
    )
  }
}

/** Throws. */
export const unsupported = (at: Place, hint = "remove it"): never =>
  fail(at, "Unsupported", `it is not supported: ${hint}`)

/** Throws: Berth supports these values alone. */
export const only = (at: Place, values: string): never =>
  fail(at, "Unsupported", `only ${values} is supported`)
