/** The printed form of Berth's values: one line for people, and JSON with an `_id`. */
import { NodeInspectSymbol } from "effect/Inspectable"
import * as Pipeable from "effect/Pipeable"

interface Prints<A> {
  /** `berth/Image`: the `_id` in JSON; the printed line begins with the last part. */
  readonly id: `berth/${string}`
  /** The fields that identify a value; they contain no secrets. */
  readonly json: (self: A) => Readonly<Record<string, unknown>>
  /** The text between the brackets of `Image(...)`. */
  readonly line: (self: A) => string
  /** The text of the value. Default: the printed line. */
  readonly text?: (self: A) => string
}

/** The printing methods, for the prototype of a value. */
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
