import { InvalidOption } from "../../BerthError.ts"

const refuse = (text: string, expected: string): InvalidOption =>
  new InvalidOption({ option: "$", value: JSON.stringify(text), expected })

const noShell = "words without operators of a shell: quote the operator, or pass the text to sh -c"

const carried = "text without NUL, a number, or an array of these"

/** A value as text; a value that an argument cannot hold unchanged is refused. */
const textOf = (value: unknown): string => {
  const text = typeof value === "number" ? String(value) : value
  // An unpaired surrogate has no UTF-8; Node and all other encoders put U+FFFD in its place.
  if (typeof text !== "string" || /[\0\p{Surrogate}]/u.test(text))
    throw new InvalidOption({ option: "$", value: JSON.stringify(value) ?? String(value), expected: carried })
  return text
}

/** Words as one line that a shell splits into the same words. */
export const printWords = (all: ReadonlyArray<string>): string =>
  all.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ")

/**
 * Splits a template into words, with a shell's quoting: white space separates, '…' is literal, "…" may have \", \\ and
 * \x stands for x. A value is never split; an array is one word for each element. Operators of a shell are refused
 * instead of being passed on as text.
 */
export const words = (
  texts: ReadonlyArray<string>,
  values: ReadonlyArray<string | number | ReadonlyArray<string | number>>
): ReadonlyArray<string> => {
  const done: Array<string> = []
  let word: string | undefined
  let quote = ""
  const append = (text: string): void => {
    word = (word ?? "") + text
  }
  const flush = (): void => {
    if (word !== undefined) done.push(word)
    word = undefined
  }
  texts.forEach((text, index) => {
    for (let at = 0; at < text.length; at++) {
      const character = text[at]!
      if (character === quote) quote = ""
      else if (quote === "'") append(character)
      else if (character === "\\") {
        const next = text[++at]
        if (next === undefined) throw refuse(text, "a character behind \\")
        append(quote === '"' && next !== '"' && next !== "\\" ? `\\${next}` : next)
      } else if (quote === '"') append(character)
      else if (character === "'" || character === '"') {
        quote = character
        append("")
      } else if (/\s/.test(character)) flush()
      else if (/[|&;<>()`$]/.test(character)) throw refuse(text, noShell)
      else append(character)
    }
    if (index >= values.length) return
    const value = values[index]!
    if (!Array.isArray(value)) return append(textOf(value))
    value.forEach((element, k) => {
      if (k > 0) flush()
      append(textOf(element))
    })
  })
  if (quote !== "") throw refuse(texts.join("…"), `the other ${quote}`)
  flush()
  return done
}
