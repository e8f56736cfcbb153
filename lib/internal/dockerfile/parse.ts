/**
 * Reads the text of a Dockerfile: directives, comments, continued lines, flags, the JSON form and here-documents, each instruction with
 * its line. What the words of an instruction mean is read later, as variables are expanded in them.
 */

/** A here-document of an instruction. */
export interface Heredoc {
  readonly name: string
  /** Whether variables in it are expanded: its name was not quoted. */
  readonly expands: boolean
  readonly text: string
}

export interface Instruction {
  /** In capital letters. */
  readonly keyword: string
  readonly flags: ReadonlyArray<{ readonly name: string; readonly value: string | undefined }>
  /** The text after the flags, with continued lines joined. */
  readonly rest: string
  /** The strings of the JSON form; undefined for any other text. */
  readonly json: ReadonlyArray<string> | undefined
  readonly heredocs: ReadonlyArray<Heredoc>
  /** The number of its first line, from 1. */
  readonly line: number
}

export interface Dockerfile {
  /** The character that continues lines and takes away the meaning of the next one. */
  readonly escape: string
  readonly instructions: ReadonlyArray<Instruction>
}

/** The text cannot be read. */
export class SyntaxFailure extends Error {
  readonly line: number
  constructor(line: number, message: string) {
    super(message)
    this.line = line
  }
}

const DIRECTIVE = /^\s*#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$/
const known = new Set(["escape", "syntax", "check"])

/** The escape character, and the number of lines that are directives. */
const directivesOf = (lines: ReadonlyArray<string>): { readonly escape: string } => {
  const seen = new Set<string>()
  let escape = "\\"
  for (const [index, line] of lines.entries()) {
    const [, key = "", value = ""] = DIRECTIVE.exec(line) ?? []
    const name = key.toLowerCase()
    // The first line that is no directive ends them.
    if (!known.has(name)) break
    if (seen.has(name)) throw new SyntaxFailure(index + 1, `the directive ${name} is there twice`)
    seen.add(name)
    if (name !== "escape") continue
    if (value !== "\\" && value !== "`")
      throw new SyntaxFailure(index + 1, `the escape character is ${value}: it can be \\ or \``)
    escape = value
  }
  return { escape }
}

const FLAG = /^--([a-zA-Z][a-zA-Z-]*)(?:=(\S*))?(?:\s+|$)/

/** Flags with values in quotes are kept with their quotes, for the expansion. */
const flagsOf = (text: string) => {
  const flags: Array<Instruction["flags"][number]> = []
  let rest = text
  for (let found = FLAG.exec(rest); found !== null; found = FLAG.exec(rest)) {
    flags.push({ name: found[1]!, value: found[2] })
    rest = rest.slice(found[0].length)
  }
  return { flags, rest }
}

/** The strings of the JSON form; undefined for any other text. */
export const jsonOf = (text: string): ReadonlyArray<string> | undefined => {
  if (!text.startsWith("[")) return undefined
  try {
    const value: unknown = JSON.parse(text)
    return Array.isArray(value) && value.every((item) => typeof item === "string") ? value : undefined
  } catch {
    return undefined
  }
}

const withHeredocs = new Set(["RUN", "COPY", "ADD"])

/** The beginnings of here-documents in a line, outside of quotes. */
const heredocsIn = (
  text: string
): ReadonlyArray<{ readonly name: string; readonly strips: boolean; readonly expands: boolean }> => {
  const found = []
  const unquoted = text.replace(/\\.|'[^']*'|"(?:\\.|[^"\\])*"/g, (part, at: number) =>
    // A quoted name of a here-document stays.
    /<<-?$/.test(text.slice(0, at)) ? part : " ".repeat(part.length)
  )
  for (const [, strips, quote, name] of unquoted.matchAll(/(?<!<)<<(-?)(["']?)([a-zA-Z_][\w.-]*)\2/g))
    found.push({ name: name!, strips: strips === "-", expands: quote === "" })
  return found
}

const isComment = (line: string): boolean => /^\s*#/.test(line)

/** Throws `SyntaxFailure`. */
export const parse = (text: string): Dockerfile => {
  const lines = text.replace(/^\ufeff/, "").split(/\r?\n/)
  const { escape } = directivesOf(lines)
  const continued = new RegExp(`${escape === "\\" ? "\\\\" : "`"}[ \\t]*$`)
  const instructions: Array<Instruction> = []
  for (let at = 0; at < lines.length; ) {
    const start = at
    const first = lines[at]!
    if (first.trim() === "" || isComment(first)) {
      at++
      continue
    }
    let joined = ""
    for (let isFirst = true; at < lines.length; isFirst = false) {
      const line = lines[at++]!
      if (!isFirst && (isComment(line) || line.trim() === "")) continue
      if (!continued.test(line)) {
        joined += line
        break
      }
      joined += line.replace(continued, "")
    }
    const [, word = "", after = ""] = /^\s*(\S+)\s*(.*)$/s.exec(joined) ?? []
    const keyword = word.toUpperCase()
    const { flags, rest } = flagsOf(after.trimEnd())
    const heredocs = (withHeredocs.has(keyword) ? heredocsIn(rest) : []).map(({ expands, name, strips }) => {
      const body: Array<string> = []
      for (; ; at++) {
        if (at >= lines.length)
          throw new SyntaxFailure(
            start + 1,
            `the here-document ${name} has no end: a line with ${name} alone`
          )
        const line = strips ? lines[at]!.replace(/^\t+/, "") : lines[at]!
        if (line === name) break
        body.push(`${line}\n`)
      }
      at++
      return { name, expands, text: body.join("") }
    })
    if (rest === "" && flags.length === 0) throw new SyntaxFailure(start + 1, `${keyword} needs arguments`)
    instructions.push({ keyword, flags, rest, json: jsonOf(rest), heredocs, line: start + 1 })
  }
  return { escape, instructions }
}
