/** The patterns of a .dockerignore: Go's filepath.Match with `**`, exceptions with `!`, the last match decides. */

type Test = (character: string) => boolean

/** A part of a pattern. Parts that repeat are left and entered without a character. */
interface Part {
  readonly kind: "one" | "many" | "segments" | "inside"
  readonly test: Test
}

const any: Test = () => true
const inName: Test = (character) => character !== "/"

/** A class of characters from `[`; undefined if it has no end. */
const classAt = (text: string, start: number): { readonly test: Test; readonly next: number } | undefined => {
  let at = start + 1
  const isNegated = text[at] === "^" || text[at] === "!"
  if (isNegated) at++
  const one = (): string => {
    if (text[at] === "\\") at++
    return text[at++] ?? ""
  }
  const ranges: Array<readonly [first: string, last: string]> = []
  while (at < text.length && (text[at] !== "]" || ranges.length === 0)) {
    const first = one()
    const isRange = text[at] === "-" && at + 1 < text.length && text[at + 1] !== "]"
    if (isRange) at++
    ranges.push([first, isRange ? one() : first])
  }
  if (text[at] !== "]") return undefined
  const test: Test = (character) =>
    character !== "/" && ranges.some(([first, last]) => first <= character && character <= last) !== isNegated
  return { test, next: at + 1 }
}

const partsOf = (pattern: string): ReadonlyArray<Part> => {
  const parts: Array<Part> = []
  for (let at = 0; at < pattern.length; ) {
    const character = pattern[at]!
    if (pattern.startsWith("**", at)) {
      const isSegment = (at === 0 || pattern[at - 1] === "/") && pattern[at + 2] === "/"
      if (isSegment) parts.push({ kind: "segments", test: any }, { kind: "inside", test: any })
      else parts.push({ kind: "many", test: any })
      at += isSegment ? 3 : 2
    } else if (character === "*") {
      parts.push({ kind: "many", test: inName })
      at++
    } else if (character === "?") {
      parts.push({ kind: "one", test: inName })
      at++
    } else if (character === "[") {
      const found = classAt(pattern, at)
      if (found === undefined) throw new SyntaxError(`the class of characters in ${pattern} has no end`)
      parts.push({ kind: "one", test: found.test })
      at = found.next
    } else {
      if (character === "\\" && at + 1 < pattern.length) at++
      const literal = pattern[at]!
      parts.push({ kind: "one", test: (found) => found === literal })
      at++
    }
  }
  return parts
}

/**
 * Whether a path without a slash at either end matches a pattern or, with `below`, is below a folder that does. It takes time in
 * proportion to both lengths, whatever the pattern is, which an expression does not. Throws `SyntaxError`.
 */
export const matcherOf = (pattern: string, below = false): ((path: string) => boolean) => {
  if (!/[*?[\\]/.test(pattern)) return (path) => path === pattern || (below && path.startsWith(`${pattern}/`))
  const parts = partsOf(pattern)
  const enter = (states: Set<number>, state: number): void => {
    states.add(state)
    if (parts[state]?.kind === "many") enter(states, state + 1)
    if (parts[state]?.kind === "segments") enter(states, state + 2)
  }
  return (path) => {
    let states = new Set<number>()
    enter(states, 0)
    for (let at = 0; at < path.length; at++) {
      const character = path[at]!
      if (below && character === "/" && states.has(parts.length)) return true
      const next = new Set<number>()
      for (const state of states) {
        const part = parts[state]
        if (part?.test(character) !== true) continue
        if (part.kind === "one") enter(next, state + 1)
        else if (part.kind === "many") enter(next, state)
        else {
          const inside = part.kind === "segments" ? state + 1 : state
          next.add(inside)
          if (character === "/") enter(next, inside + 1)
        }
      }
      if (next.size === 0) return false
      states = next
    }
    return states.has(parts.length)
  }
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

interface Pattern {
  readonly isException: boolean
  readonly matches: (path: string) => boolean
}

const patternOf = (line: string): Pattern | undefined => {
  const isException = line.startsWith("!")
  const pattern = cleaned(isException ? line.slice(1).trim() : line)
  if (pattern === "") return undefined
  // A pattern that matches a folder matches all that is in it.
  return { isException, matches: matcherOf(pattern, true) }
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
      for (const { isException, matches } of patterns)
        if (ignored === isException && matches(path)) ignored = !isException
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
