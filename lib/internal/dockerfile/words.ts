/** The words of an instruction: quotes, escapes, and variables in all forms that Dockerfiles have. */

export interface Lexer {
  readonly escape: string
  /** The value of a variable, undefined if it is not set. */
  readonly get: (name: string) => string | undefined
}

/** A word cannot be read, or a variable is required and not set. */
export class WordFailure extends Error {}

/** An expression for a pattern of a shell: `*` and `?`, the shortest match if `isShort`. */
const patternOf = (pattern: string, isShort: boolean): string =>
  pattern.replace(/\\(.)|[\s\S]/g, (all, escaped: string | undefined) => {
    if (escaped !== undefined) return escaped.replace(/[^\w]/g, "\\$&")
    if (all === "*") return isShort ? "[\\s\\S]*?" : "[\\s\\S]*"
    return all === "?" ? "[\\s\\S]" : all.replace(/[^\w]/g, "\\$&")
  })

/** Removes what a pattern matches at the end: from the end, as an expression matches from the left. */
const withoutEnd = (value: string, pattern: string, isShort: boolean): string => {
  const expression = new RegExp(`^${patternOf(pattern, false)}$`)
  const cuts = Array.from({ length: value.length + 1 }, (_, k) => (isShort ? value.length - k : k))
  const cut = cuts.find((at) => expression.test(value.slice(at)))
  return cut === undefined ? value : value.slice(0, cut)
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
      if (value === undefined) return ""
      const expression = new RegExp(patternOf(pattern, false), operator === "//" ? "g" : "")
      return pattern === "" ? value : value.replace(expression, () => replacement)
    }
    if (/^[#%]/.test(operator)) {
      const pattern = this.raw("}")
      if (value === undefined) return ""
      const isShort = operator.length === 1
      return operator.startsWith("#")
        ? value.replace(new RegExp(`^${patternOf(pattern, isShort)}`), "")
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

  /** A pattern with its escapes, and with variables expanded. */
  private raw(ends: string): string {
    let result = ""
    while (this.at < this.text.length && !ends.includes(this.text[this.at]!)) {
      if (this.text[this.at] === "\\") {
        result += this.text.slice(this.at, this.at + 2)
        this.at += 2
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
