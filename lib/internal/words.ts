import { InvalidOption } from "../BerthError.ts"

const refuse = (text: string, expected: string): InvalidOption =>
  new InvalidOption({ option: "$", value: JSON.stringify(text), expected })

const noShell = "words: there is no shell here, so quote it, or run sh -c with it as an argument"

/**
 * Splits a template into words: white space between, '…' as it is, "…" with \" and \\, and \x for x. A value is never
 * split, an array is one word for each element. What a shell would act upon is refused rather than passed on as text.
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
    if (typeof value !== "object") return append(String(value))
    value.forEach((element, k) => {
      if (k > 0) flush()
      append(String(element))
    })
  })
  if (quote !== "") throw refuse(texts.join("…"), `the other ${quote}`)
  flush()
  return done
}
