/** A YAML file as a tree in which each value knows its place: aliases and merge keys are resolved, nothing is interpreted. */
import {
  CST,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  type ParsedNode,
  parseDocument,
  type Scalar
} from "yaml"
import { ComposeError } from "../../BerthError.ts"

/** Where a value stands, and the keys that lead to it: `services.db.ports[0]`. */
export interface Place {
  readonly file: string
  readonly line: number
  readonly column: number
  readonly path: string
}

interface Common {
  readonly at: Place
  /** The place of its key, in a mapping. */
  readonly key?: Place
}

export interface TextNode extends Common {
  readonly kind: "scalar"
  readonly value: string | number | boolean | null
  /** As it is written, for a value that is not text. */
  readonly source: string
}

export interface ListNode extends Common {
  readonly kind: "list"
  readonly items: ReadonlyArray<Node>
}

export interface MapNode extends Common {
  readonly kind: "map"
  /** A map, so that no key has a meaning of its own in JavaScript. */
  readonly entries: ReadonlyMap<string, Node>
}

export type Node = TextNode | ListNode | MapNode

/** Where a value begins with its key. */
export const keyOf = ({ at, key = at }: Node): Place => key

/** Throws. */
export const fail = (at: Place, reason: ComposeError["reason"], detail: string, cause?: unknown): never => {
  throw new ComposeError({ ...at, reason, detail, ...(cause === undefined ? {} : { cause }) })
}

/** The most values of a file, after its aliases are resolved: an alias of aliases grows without end. */
const NODES_MAX = 100_000
const DEPTH_MAX = 64
const TOO_DEEP = `it is nested more than ${DEPTH_MAX} levels deep`

const below = (path: string, key: string | number): string =>
  typeof key === "number"
    ? `${path}[${key}]`
    : /^[\w-]+$/.test(key)
      ? `${path === "" ? "" : `${path}.`}${key}`
      : `${path}[${JSON.stringify(key)}]`

/** Columns before the first text of a line, each of which can be a level. */
const INDENT_MAX = 256

/**
 * The offset at which a text is nested too deeply, by its tokens. The parser calls itself for each level, and a runtime that has hardly
 * any stack left may end the program instead of throwing an error.
 */
const tooDeep = (text: string): number | undefined => {
  let offset = 0
  let flow = 0
  let onLine = 0
  let isLineStart = true
  let isScalar = false
  for (const token of new Lexer().lex(text)) {
    const isText = isScalar
    isScalar = token === CST.SCALAR
    if (isScalar || token === CST.DOCUMENT || token === CST.FLOW_END) continue
    if (!isText) {
      if (isLineStart && /^ /.test(token) && token.length > INDENT_MAX) return offset
      if (token === "[" || token === "{") flow++
      else if (token === "]" || token === "}") flow = Math.max(0, flow - 1)
      else if (flow === 0 && /^(?:[-?:]$|[&!])/.test(token)) onLine++
      if (flow > DEPTH_MAX || onLine > DEPTH_MAX) return offset
    }
    isLineStart = token.endsWith("\n")
    if (isLineStart) onLine = 0
    offset += token.length
  }
  return undefined
}

/** Throws. */
export const parse = (text: string, file: string): Node => {
  const counter = new LineCounter()
  const start: Place = { file, line: 1, column: 1, path: "" }
  const placeOf = (offset: number, path: string): Place => {
    const { col, line } = counter.linePos(offset)
    return { file, line: Math.max(1, line), column: Math.max(1, col), path }
  }
  const read = () => {
    try {
      return parseDocument(text, {
        lineCounter: counter,
        prettyErrors: false,
        logLevel: "error",
        uniqueKeys: false
      })
    } catch (cause) {
      return fail(start, "Syntax", `it cannot be parsed as YAML: ${(cause as Error).message}`, cause)
    }
  }
  const deep = tooDeep(text)
  if (deep !== undefined) {
    const lines = text.slice(0, deep).split("\n")
    return fail({ ...start, line: lines.length, column: lines.at(-1)!.length + 1 }, "Syntax", TOO_DEEP)
  }
  const document = read()
  const problem = document.errors[0] ?? document.warnings[0]
  if (problem !== undefined) {
    const detail =
      problem.code === "MULTIPLE_DOCS"
        ? "a file has one document: write those behind --- into files of their own"
        : problem.message
    fail(placeOf(problem.pos[0], ""), "Syntax", detail, problem)
  }

  let count = 0
  const convert = (node: ParsedNode | null, parent: Place, path: string, depth: number): Node => {
    const at = node?.range == null ? { ...parent, path } : placeOf(node.range[0], path)
    if (++count > NODES_MAX)
      return fail(
        at,
        "Syntax",
        `the file has more than ${NODES_MAX} values, those of aliases counted each time`
      )
    if (depth > DEPTH_MAX) return fail(at, "Syntax", TOO_DEEP)
    if (isAlias(node)) {
      const target = node.resolve(document)
      if (target === undefined) return fail(at, "Syntax", `there is no anchor with the name ${node.source}`)
      return convert(target as ParsedNode, at, path, depth + 1)
    }
    if (isSeq(node)) {
      const items = node.items.map((item, k) => convert(item as ParsedNode, at, below(path, k), depth + 1))
      return { kind: "list", at, items }
    }
    if (isMap(node)) return { kind: "map", at, entries: entriesOf(node.items as never, at, depth) }
    const { source = "", value } = (node ?? { value: null }) as Scalar
    if (value !== null && !["string", "number", "boolean"].includes(typeof value))
      return fail(at, "Syntax", "it is neither text, a number, true, false, nor null")
    return { kind: "scalar", at, value: value as TextNode["value"], source }
  }

  /** The entries of a mapping, and those that the key `<<` adds: the mapping's own come first, then those of the first of a list. */
  const entriesOf = (
    pairs: ReadonlyArray<{ readonly key: ParsedNode; readonly value: ParsedNode | null }>,
    at: Place,
    depth: number
  ): ReadonlyMap<string, Node> => {
    const entries = new Map<string, Node>()
    const merged: Array<Node> = []
    for (const { key, value } of pairs) {
      if (!isScalar(key)) return fail(placeOf(key.range[0], at.path), "Syntax", "a key has to be text")
      const name = typeof key.value === "string" ? key.value : (key.source ?? String(key.value))
      const place = placeOf(key.range[0], below(at.path, name))
      const node = { ...convert(value, place, place.path, depth + 1), key: place }
      if (name === "<<" && key.type === "PLAIN") merged.push(node)
      else if (entries.has(name)) return fail(place, "Syntax", "this key is there twice")
      else entries.set(name, node)
    }
    for (const node of merged.flatMap((one) => (one.kind === "list" ? one.items : [one]))) {
      if (node.kind !== "map") return fail(node.at, "Syntax", "<< takes a mapping, or a list of mappings")
      for (const [name, value] of node.entries)
        if (!entries.has(name)) entries.set(name, moved(value, node.at.path, at.path))
    }
    return entries
  }
  return convert(document.contents as ParsedNode | null, start, "", 0)
}

/** A value under the path of the mapping that merges it. */
const moved = (node: Node, from: string, to: string): Node => {
  const below = (place: Place): Place => ({ ...place, path: `${to}${place.path.slice(from.length)}` })
  const at = below(node.at)
  const key = node.key === undefined ? {} : { key: below(node.key) }
  switch (node.kind) {
    case "scalar":
      return { ...node, ...key, at }
    case "list":
      return { ...node, ...key, at, items: node.items.map((item) => moved(item, from, to)) }
    default:
      return {
        ...node,
        ...key,
        at,
        entries: new Map([...node.entries].map(([name, value]) => [name, moved(value, from, to)]))
      }
  }
}
