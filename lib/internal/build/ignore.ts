/** The patterns of a .dockerignore: Go's filepath.Match with `**`, exceptions with `!`, the last match decides. */

interface Pattern {
  readonly isException: boolean
  readonly expression: RegExp
}

const special = /[.+^${}()|\\/]/

/** A class of characters from `[`, as an expression; undefined if it has no end. */
const classAt = (
  text: string,
  start: number
): { readonly source: string; readonly next: number } | undefined => {
  let at = start + 1
  let source = "["
  if (text[at] === "^" || text[at] === "!") {
    source += "^"
    at++
  }
  for (let isFirst = true; at < text.length; isFirst = false) {
    if (text[at] === "]" && !isFirst) return { source: `${source}]`, next: at + 1 }
    if (text[at] === "\\" && at + 1 < text.length) at++
    source += /[\]\\^[]/.test(text[at]!) ? `\\${text[at]}` : text[at]
    at++
  }
  return undefined
}

/** An expression for a pattern of whole paths without a slash at either end; throws `SyntaxError`. */
export const expressionOf = (pattern: string): string => {
  let source = ""
  for (let at = 0; at < pattern.length; ) {
    const character = pattern[at]!
    if (pattern.startsWith("**", at)) {
      const isSegment = (at === 0 || pattern[at - 1] === "/") && pattern[at + 2] === "/"
      source += isSegment ? "(?:.*/)?" : ".*"
      at += isSegment ? 3 : 2
    } else if (character === "*" || character === "?") {
      source += character === "*" ? "[^/]*" : "[^/]"
      at++
    } else if (character === "[") {
      const found = classAt(pattern, at)
      if (found === undefined) throw new SyntaxError(`the class of characters in ${pattern} has no end`)
      source += found.source
      at = found.next
    } else {
      if (character === "\\" && at + 1 < pattern.length) at++
      source +=
        special.test(pattern[at]!) || pattern[at] === "*" || pattern[at] === "?" || pattern[at] === "["
          ? `\\${pattern[at]}`
          : pattern[at]
      at++
    }
  }
  return source
}

/** A path without empty parts, `.` and a slash at an end; `..` takes away the part before it. */
export const cleaned = (path: string): string => {
  const parts: Array<string> = []
  for (const part of path.split("/")) {
    if (part === "..") parts.pop()
    else if (part !== "" && part !== ".") parts.push(part)
  }
  return parts.join("/")
}

const patternOf = (line: string): Pattern | undefined => {
  const isException = line.startsWith("!")
  const pattern = cleaned(isException ? line.slice(1).trim() : line)
  if (pattern === "") return undefined
  // A pattern that matches a folder matches all that is in it.
  return { isException, expression: new RegExp(`^${expressionOf(pattern)}(?:/.*)?$`, "su") }
}

export interface Ignore {
  /** Whether a path is left out. */
  readonly isIgnored: (path: string) => boolean
  /** Whether a path below a folder that is left out may be an exception. */
  readonly hasExceptions: boolean
}

/** Throws `SyntaxError` for a pattern that cannot be parsed. */
export const compile = (lines: ReadonlyArray<string>): Ignore => {
  const patterns = lines.flatMap((line) => {
    const text = line.trim()
    return text === "" ? [] : (patternOf(text) ?? [])
  })
  return {
    isIgnored: (path) => {
      let ignored = false
      for (const { expression, isException } of patterns)
        if (ignored === isException && expression.test(path)) ignored = !isException
      return ignored
    },
    hasExceptions: patterns.some(({ isException }) => isException)
  }
}

/** The patterns of the text of a .dockerignore. */
export const linesOf = (text: string): ReadonlyArray<string> =>
  text
    .replace(/^\ufeff/, "")
    .split(/\r?\n/)
    .filter((line) => !line.startsWith("#"))
