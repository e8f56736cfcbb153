/** Variables in the values of a compose file: `12-interpolation.md` of the Compose specification. */

/** What is wrong with a text; the caller knows its place. */
export class Uninterpolable extends Error {}

/** The value of a variable, or undefined. */
export type Lookup = (name: string) => string | undefined

/** Told of a variable that has neither a value nor a default, and stands for an empty text. */
export type Missing = (name: string) => void

const NAME = /[_a-zA-Z][_a-zA-Z0-9]*/y

const nameAt = (text: string, at: number): string | undefined => {
  NAME.lastIndex = at
  return NAME.exec(text)?.[0]
}

/** The place of the brace that closes the one before `from`. */
const closing = (text: string, from: number): number => {
  let depth = 1
  for (let at = from; at < text.length; at++) {
    if (text[at] === "{") depth++
    else if (text[at] === "}" && --depth === 0) return at
  }
  throw new Uninterpolable(
    `${JSON.stringify(text.slice(from - 2, from + 100))} has no closing brace; $$ stands for a dollar sign`
  )
}

/** The value of `${...}`, of which this is the inner part. */
const braced = (inner: string, lookup: Lookup, missing: Missing, depth: number): string => {
  const name = nameAt(inner, 0)
  const rest = inner.slice(name?.length)
  const [operator, isStrict] = rest.startsWith(":") ? [rest[1], true] : [rest[0], false]
  if (name === undefined || !["?", "-", "+", rest === "" ? undefined : ""].includes(operator))
    throw new Uninterpolable(
      `\${${inner.slice(0, 100)}} is not a variable: write \${NAME}, or \${NAME:-default}, -, :?, ?, :+ or + behind the name; $$ stands for a dollar sign`
    )
  const value = lookup(name)
  if (operator === undefined && value === undefined) missing(name)
  if (operator === undefined) return value ?? ""
  const argument = () => interpolate(rest.slice(isStrict ? 2 : 1), lookup, missing, depth + 1)
  const isThere = value !== undefined && !(isStrict && value === "")
  switch (operator) {
    case "-":
      return isThere ? value : argument()
    case "+":
      return isThere ? argument() : (value ?? "")
    default: {
      if (isThere) return value
      const reason = argument()
      throw new Uninterpolable(
        `the variable ${name} is needed, and has no value${reason === "" ? "" : `: ${reason}`}`
      )
    }
  }
}

const DEPTH_MAX = 32

/** A text with the values of its variables. Throws `Uninterpolable`. */
export const interpolate = (text: string, lookup: Lookup, missing: Missing = () => {}, depth = 0): string => {
  if (depth > DEPTH_MAX)
    throw new Uninterpolable(`its variables are nested more than ${DEPTH_MAX} levels deep`)
  let done = ""
  let at = 0
  for (;;) {
    const dollar = text.indexOf("$", at)
    if (dollar < 0) return done + text.slice(at)
    done += text.slice(at, dollar)
    const next = text[dollar + 1]
    const name = nameAt(text, dollar + 1)
    if (next === "{") {
      const end = closing(text, dollar + 2)
      done += braced(text.slice(dollar + 2, end), lookup, missing, depth)
      at = end + 1
    } else if (name !== undefined) {
      const value = lookup(name)
      if (value === undefined) missing(name)
      done += value ?? ""
      at = dollar + 1 + name.length
    } else {
      done += "$"
      at = dollar + (next === "$" ? 2 : 1)
    }
  }
}
