/** Values of options that the parser of the command line leaves as texts. */
import process from "node:process"
import { InvalidOption } from "../BerthError.ts"

export const invalid = (option: string, value: string, expected: string): never => {
  throw new InvalidOption({ option, value: JSON.stringify(value), expected })
}

/** `KEY=VALUE`, or `KEY` with the value of this program's own environment, for each use of an option. */
export const environment = (option: string, texts: ReadonlyArray<string>): Readonly<Record<string, string>> =>
  Object.fromEntries(
    texts.flatMap((text) => {
      const [, key, value] = /^([^=]+)(?:=(.*))?$/s.exec(text) ?? invalid(option, text, "KEY=VALUE or KEY")
      const found = value ?? process.env[key!]
      return found === undefined ? [] : [[key!, found]]
    })
  )
