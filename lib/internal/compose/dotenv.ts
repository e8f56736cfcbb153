/** Files of variables: `.env`, and `env_file` of a service ("Env_file format" of the Compose specification). */
import { interpolate, type Lookup, Uninterpolable } from "./interpolate.ts"

/** What is wrong in a line. */
export class Unreadable extends Error {
  readonly line: number
  constructor(line: number, message: string) {
    super(message)
    this.line = line
  }
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", "\\": "\\", '"': '"', $: "$$" }

/** A value in quotes, which begins at `from`, and where it ends. */
const quoted = (text: string, from: number): readonly [value: string, end: number] | undefined => {
  const quote = text[from]!
  let value = ""
  for (let at = from + 1; at < text.length; at++) {
    const character = text[at]!
    if (character === quote) return [value, at + 1]
    const next = text[at + 1]
    if (character !== "\\" || next === undefined) value += character
    else {
      at++
      value += next === quote ? quote : ((quote === '"' ? escapes[next] : undefined) ?? `\\${next}`)
    }
  }
  return undefined
}

/** The rest of a line without a variable. */
const BLANK = /[ \t\r]*(?:#[^\n]*)?(?:\n|$)/y
const STATEMENT = /[ \t]*(?:export[ \t]+)?([\w.[\]-]+)[ \t]*(?:[=:][ \t]*|(?=\r?\n|$))/y

/** The variables of a file, in its order. A name without `=` has the value of the environment, or none. Throws `Unreadable`. */
export const parseDotenv = (source: string, lookup: Lookup): ReadonlyMap<string, string> => {
  const text = source.replace(/^\uFEFF/, "")
  const variables = new Map<string, string>()
  // A variable of the environment comes before one of the file.
  const find: Lookup = (name) => lookup(name) ?? variables.get(name)
  const lineAt = (at: number): number => text.slice(0, at).split("\n").length
  const expand = (value: string, at: number): string => {
    try {
      return interpolate(value, find)
    } catch (error) {
      if (error instanceof Uninterpolable) throw new Unreadable(lineAt(at), error.message)
      throw error
    }
  }
  for (let at = 0; at < text.length; ) {
    BLANK.lastIndex = at
    if (BLANK.test(text)) {
      at = Math.max(BLANK.lastIndex, at + 1)
      continue
    }
    STATEMENT.lastIndex = at
    const [all, name] = STATEMENT.exec(text) ?? []
    if (all === undefined || name === undefined)
      throw new Unreadable(lineAt(at), "a line has to be NAME=VALUE, NAME, or a comment that begins with #")
    const from = at + all.length
    if (!/[=:][ \t]*$/.test(all)) {
      const value = lookup(name)
      if (value !== undefined) variables.set(name, value)
      at = from
    } else if (text[from] === '"' || text[from] === "'") {
      const [value, end] = quoted(text, from) ?? []
      if (value === undefined || end === undefined)
        throw new Unreadable(lineAt(at), `the value of ${name} has no closing ${text[from]}`)
      variables.set(name, text[from] === '"' ? expand(value, at) : value)
      at = end
      BLANK.lastIndex = at
      if (!BLANK.test(text))
        throw new Unreadable(lineAt(at), `nothing but a comment can follow the value of ${name}`)
    } else {
      const end = text.indexOf("\n", from)
      const line = text.slice(from, end < 0 ? undefined : end)
      const value = line.replace(/(?:^|[ \t])#.*$/, "").trimEnd()
      variables.set(name, expand(value, at))
      at = end < 0 ? text.length : end + 1
    }
  }
  return variables
}

/** The lines of a file with `format: raw`: nothing in a value has a meaning. Throws `Unreadable`. */
export const parseRaw = (text: string, lookup: Lookup): ReadonlyMap<string, string> => {
  const variables = new Map<string, string>()
  text.split(/\r?\n/).forEach((line, k) => {
    if (/^\s*(#|$)/.test(line)) return
    const [, name, assigned, value] = /^\s*([^\s=]+)(=?)(.*)$/.exec(line) ?? []
    if (name === undefined) throw new Unreadable(k + 1, "a line has to be NAME=VALUE or NAME")
    const found = assigned === "=" ? value : lookup(name)
    if (found !== undefined) variables.set(name, found)
  })
  return variables
}
