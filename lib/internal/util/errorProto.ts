/** The common parts of Berth's errors: the symbol that marks them, and their printed form. */
import { NodeInspectSymbol } from "effect/Inspectable"
import type { BerthErrorTypeId } from "../../BerthError.ts"

export const TypeId: BerthErrorTypeId = Symbol.for("berth/BerthError") as BerthErrorTypeId

/** The fields of an error from which its printed line is made. */
interface Printed extends Error {
  readonly _tag: string
  readonly reason?: string
}

// A cause may quote a registry or an archive.
const CAUSE_CHARACTERS_MAX = 300

const indented = (text: string): string => text.replaceAll("\n", "\n  ")

const lineOfCause = (cause: unknown): string => {
  const line = String(cause).split("\n", 1)[0]!
  return line.length > CAUSE_CHARACTERS_MAX ? `${line.slice(0, CAUSE_CHARACTERS_MAX)}...` : line
}

const printed = (error: unknown, depth: number): string => {
  const cause = depth > 0 ? (error as { readonly cause?: unknown } | undefined)?.cause : undefined
  const line = error instanceof Error && "_tag" in error ? String(error) : lineOfCause(error)
  return cause === undefined ? line : `${line}\n  [cause]: ${indented(printed(cause, depth - 1))}`
}

const DEPTH = 4

/** The methods of every error's prototype. */
export const printing = {
  /** `ImageError (NotFound): app:1: it is not in the store` */
  toString(this: Printed): string {
    const reason = this.reason === undefined ? "" : ` (${this.reason})`
    return `${this._tag}${reason}: ${this.message}`
  },
  /** The same line, followed by one for each cause; their stacks are in `cause.stack`. */
  [NodeInspectSymbol](this: Printed): string {
    return printed(this, DEPTH)
  },
  toJSON(this: Printed): unknown {
    const { _tag, cause, ...fields } = this as Printed & { readonly cause?: unknown }
    const inner = cause instanceof Error && !("toJSON" in cause) ? lineOfCause(cause) : cause
    return {
      _id: "berth/BerthError",
      _tag,
      ...fields,
      message: this.message,
      ...(cause === undefined ? {} : { cause: inner })
    }
  }
}
