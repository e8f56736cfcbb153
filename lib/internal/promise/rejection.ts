/** The errors that promises reject with: plain ones, whose stack begins at the program's call. */
import * as Cause from "effect/Cause"
import { NodeInspectSymbol } from "effect/Inspectable"
import * as Stream from "effect/Stream"
import { type BerthError, isBerthError } from "../../BerthError.ts"

/** Where a program called Berth. The stack is turned into text only when it is read. */
export interface Site {
  readonly stack?: string
}

/** The site of the call that led to `below`, a function that is on the stack now. */
export const siteOf = (below: (...parameters: Array<never>) => unknown): Site => {
  const site: Site = {}
  Error.captureStackTrace(site, below)
  return site
}

const framesOf = ({ stack = "" }: { readonly stack?: string | undefined }): string => {
  const first = stack.search(/^\s+at /m)
  return first < 0 ? "" : `\n${stack.slice(first).trimEnd()}`
}

const property = (value: unknown): PropertyDescriptor => ({
  value,
  enumerable: false,
  writable: true,
  configurable: true
})

/**
 * A copy of an error of Berth, as the same error can reject several promises. Its message is a property of its own, because
 * `structuredClone` and the runtimes read it there.
 */
const copyOf = (error: BerthError, frames: string): BerthError => {
  const { cause, message } = error
  const copy: BerthError = Object.assign(new Error(message) as never, error)
  Object.setPrototypeOf(copy, Object.getPrototypeOf(error))
  if (cause !== undefined) Object.assign(copy, { cause: rejectionOf(cause) })
  const print = Object.getPrototypeOf(error)[NodeInspectSymbol]
  Object.defineProperties(copy, {
    message: property(message),
    stack: property(`${error.name}: ${message}${frames}`),
    [NodeInspectSymbol]: property(function (this: BerthError, ...rest: ReadonlyArray<unknown>): string {
      // The line of the error, its frames, and then its causes.
      const text: string = print.apply(this, rest)
      const line = String(this)
      return `${line}${frames}${text.slice(line.length)}`
    })
  })
  return copy
}

/**
 * The plain error for a failure; without a site, it keeps its own frames. Other errors than Berth's, such as those of a program's own
 * input, stay as they are.
 */
export const rejectionOf = (failure: unknown, site?: Site): unknown => {
  const original = Cause.originalError(failure)
  return isBerthError(original) ? copyOf(original, framesOf(site ?? original)) : original
}

/** A stream as an async iterable that throws plain errors. */
export const iterableOf = <A>(
  stream: Stream.Stream<A, BerthError>,
  site: Site | undefined = undefined
): AsyncIterable<A> => ({
  [Symbol.asyncIterator]: function iterate() {
    const at = site ?? siteOf(iterate)
    const iterator = Stream.toAsyncIterable(stream)[Symbol.asyncIterator]()
    const settle = async <B>(result: Promise<B>): Promise<B> => {
      try {
        return await result
      } catch (error) {
        throw rejectionOf(error, at)
      }
    }
    return {
      next: () => settle(iterator.next()),
      return: async () => {
        await settle(Promise.resolve(iterator.return?.()))
        return { done: true, value: undefined }
      }
    }
  }
})
