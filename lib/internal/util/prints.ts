/** How values of Berth print: as one line for people, and as JSON with an `_id`. */
import { NodeInspectSymbol } from "effect/Inspectable"
import * as Pipeable from "effect/Pipeable"

interface Prints<A> {
  /** `berth/Image`: what JSON has as `_id`, and the line begins with the last part of. */
  readonly id: `berth/${string}`
  /** The fields that tell one value from another; no secrets. */
  readonly json: (self: A) => Readonly<Record<string, unknown>>
  /** What is between the brackets of `Image(...)`. */
  readonly line: (self: A) => string
  /** The text of the value, where that is not the line. */
  readonly text?: (self: A) => string
}

/** The methods of a value that prints well, for its prototype. */
export const prints = <A>({ id, json, line, text }: Prints<A>) => {
  const printed = (self: A): string => `${id.slice("berth/".length)}(${line(self)})`
  return {
    ...Pipeable.Prototype,
    toJSON(this: A): unknown {
      return { _id: id, ...json(this) }
    },
    toString(this: A): string {
      return text === undefined ? printed(this) : text(this)
    },
    [NodeInspectSymbol](this: A): unknown {
      return printed(this)
    }
  }
}
