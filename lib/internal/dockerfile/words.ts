/** The words of an instruction: quotes, escapes, and variables in all forms that Dockerfiles have. */

export interface Lexer {
  readonly escape: string
  /** The value of a variable, undefined if it is not set. */
  readonly get: (name: string) => string | undefined
}

/** A word cannot be read, or a variable is required and not set. */
export class WordFailure extends Error {}

/** A character of a pattern of a shell; undefined stands for any one, and `many` for any number of any. */
interface Part {
  readonly character: string | undefined
  readonly many: boolean
}

const partsOf = (pattern: string): ReadonlyArray<Part> =>
  [...pattern.matchAll(/\\([\s\S])|[\s\S]/g)].map(([all, escaped]) =>
    escaped === undefined && (all === "*" || all === "?")
      ? { character: undefined, many: all === "*" }
      : { character: escaped ?? all, many: false }
  )

/** The ends of all matches that begin at a place, in their order; in time proportional to both lengths, which an expression is not. */
const endsFrom = (parts: ReadonlyArray<Part>, value: string, start: number): ReadonlyArray<number> => {
  const enter = (states: Set<number>, state: number): void => {
    states.add(state)
    if (parts[state]?.many === true) enter(states, state + 1)
  }
  let states = new Set<number>()
  enter(states, 0)
  const ends: Array<number> = []
  for (let at = start; states.size > 0; at++) {
    if (states.has(parts.length)) ends.push(at)
    if (at === value.length) break
    const next = new Set<number>()
    for (const state of states) {
      const part = parts[state]
      if (part === undefined || (part.character !== undefined && part.character !== value[at])) continue
      enter(next, part.many ? state : state + 1)
    }
    states = next
  }
  return ends
}

const withoutStart = (value: string, pattern: string, isShort: boolean): string => {
  const ends = endsFrom(partsOf(pattern), value, 0)
  return value.slice((isShort ? ends[0] : ends.at(-1)) ?? 0)
}

const withoutEnd = (value: string, pattern: string, isShort: boolean): string => {
  const parts = partsOf(pattern)
  const starts = Array.from({ length: value.length + 1 }, (_, k) => (isShort ? value.length - k : k))
  const start = starts.find((at) => endsFrom(parts, value, at).at(-1) === value.length)
  return value.slice(0, start)
}

/** Replaces the first match, or all of them, each as long as it can be. */
const replaced = (value: string, pattern: string, replacement: string, isAll: boolean): string => {
  const parts = partsOf(pattern)
  let result = ""
  for (let at = 0; at < value.length; ) {
    const end = endsFrom(parts, value, at).at(-1) ?? at
    if (end === at) result += value[at++]
    else {
      result += replacement
      at = end
      if (!isAll) return result + value.slice(at)
    }
  }
  return result
}

class Reader {
  at = 0
  private readonly text: string
  private readonly lexer: Lexer
  /** Whether quotes stay in the result, as in here-documents. */
  private readonly keepsQuotes: boolean

  constructor(text: string, lexer: Lexer, keepsQuotes: boolean) {
    this.text = text
    this.lexer = lexer
    this.keepsQuotes = keepsQuotes
  }

  /** The text up to one of the characters in `ends`, outside of quotes. */
  until(ends: string): string {
    let result = ""
    while (this.at < this.text.length && !ends.includes(this.text[this.at]!)) result += this.next()
    return result
  }

  private next(): string {
    const { keepsQuotes, lexer, text } = this
    const character = text[this.at]!
    if (character === "$") return this.variable()
    if (character === "'" && !keepsQuotes) {
      const end = text.indexOf("'", this.at + 1)
      if (end < 0) throw new WordFailure("a single quote has no end")
      const quoted = text.slice(this.at + 1, end)
      this.at = end + 1
      return quoted
    }
    if (character === '"' && !keepsQuotes) return this.quoted()
    this.at++
    if (character !== lexer.escape || this.at >= text.length) return character
    const next = text[this.at++]!
    return keepsQuotes && next !== "$" ? `${character}${next}` : next
  }

  private quoted(): string {
    const { lexer, text } = this
    let result = ""
    for (this.at++; ; ) {
      const character = text[this.at]
      if (character === undefined) throw new WordFailure("a double quote has no end")
      if (character === "$") {
        result += this.variable()
        continue
      }
      this.at++
      if (character === '"') return result
      const next = text[this.at]
      // Within quotes the escape character stays, except before these.
      if (character === lexer.escape && next !== undefined && ['"', "$", lexer.escape].includes(next)) {
        result += next
        this.at++
      } else result += character
    }
  }

  private variable(): string {
    const { lexer, text } = this
    this.at++
    if (text[this.at] !== "{") {
      const name = /^(?:[A-Za-z_]\w*|[0-9@*#?!$-])/.exec(text.slice(this.at))?.[0]
      if (name === undefined) return "$"
      this.at += name.length
      return lexer.get(name) ?? ""
    }
    this.at++
    const name = /^(?:[A-Za-z_]\w*|[0-9@*#?!$-])/.exec(text.slice(this.at))?.[0]
    if (name === undefined) throw new WordFailure(`\${ is not followed by the name of a variable`)
    this.at += name.length
    const value = lexer.get(name)
    const result = this.modified(name, value)
    if (text[this.at] !== "}") throw new WordFailure(`\${${name} has no closing brace`)
    this.at++
    return result
  }

  private modified(name: string, value: string | undefined): string {
    const { text } = this
    const operator = /^(?:\}|:[-+?]|[-+?]|##?|%%?|\/\/?)/.exec(text.slice(this.at))?.[0]
    if (operator === undefined)
      throw new WordFailure(`\${${name}${text.slice(this.at, this.at + 2)} is no form that is known`)
    if (operator === "}") return value ?? ""
    this.at += operator.length
    if (operator.startsWith("/")) {
      const pattern = this.raw("/}")
      if (text[this.at] === "/") this.at++
      const replacement = this.until("}")
      return value === undefined ? "" : replaced(value, pattern, replacement, operator === "//")
    }
    if (/^[#%]/.test(operator)) {
      const pattern = this.raw("}")
      if (value === undefined) return ""
      const isShort = operator.length === 1
      return operator.startsWith("#")
        ? withoutStart(value, pattern, isShort)
        : withoutEnd(value, pattern, isShort)
    }
    const word = this.until("}")
    const isSet = operator.startsWith(":") ? value !== undefined && value !== "" : value !== undefined
    switch (operator.at(-1)) {
      case "-":
        return isSet ? value! : word
      case "+":
        return isSet ? word : ""
      default:
        if (!isSet) throw new WordFailure(`${name}: ${word === "" ? "is not set" : word}`)
        return value!
    }
  }

  /** A pattern in which a backslash escapes, whatever the escape character is, with variables expanded. */
  private raw(ends: string): string {
    let result = ""
    while (this.at < this.text.length && !ends.includes(this.text[this.at]!)) {
      if (this.text[this.at] === this.lexer.escape) {
        result += `\\${this.text.slice(this.at + 1, this.at + 2)}`
        this.at += 2
      } else if (this.text[this.at] === "\\") {
        result += "\\\\"
        this.at++
      } else result += this.next()
    }
    return result
  }
}

/** The text with its variables expanded and without its quotes, as one word. Throws `WordFailure`. */
export const expand = (text: string, lexer: Lexer): string => new Reader(text, lexer, false).until("")

/** The text of a here-document with its variables expanded. */
export const expandText = (text: string, lexer: Lexer): string => new Reader(text, lexer, true).until("")

/** The words of a text, each with its quotes and variables as they are. */
export const split = (text: string, escape: string): ReadonlyArray<string> => {
  const words: Array<string> = []
  let word = ""
  let quote = ""
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!
    if (quote === "" && /\s/.test(character)) {
      if (word !== "") words.push(word)
      word = ""
      continue
    }
    word += character
    if (character === escape && quote !== "'" && at + 1 < text.length) word += text[++at]
    else if (quote === "" && (character === '"' || character === "'")) quote = character
    else if (character === quote) quote = ""
  }
  if (quote !== "") throw new WordFailure(`the quote ${quote} has no end`)
  return word === "" ? words : [...words, word]
}
