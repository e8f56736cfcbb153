/** What the error of a connection says of the container: how it has ended, and what it has written last. */
import type { Container } from "../../Container.ts"
import { concat } from "../util/bytes.ts"
import { lastLines } from "../util/text.ts"

const LINES = 10
const BYTES = 4096

/** The newest bytes of both outputs that Berth has kept, in the order of their coming. An output that does not flow stays as it is. */
const lastBytes = ({ state }: Container): Uint8Array => {
  const newest = [state.stdout, state.stderr].flatMap((output) => output?.kept.slice(-BYTES) ?? [])
  const taken: Array<Uint8Array> = []
  let left = BYTES
  for (const { bytes } of newest.sort((a, b) => b.order - a.order)) {
    if (left <= 0) break
    taken.unshift(bytes.subarray(-left))
    left -= bytes.length
  }
  return concat(taken)
}

/** The last lines of the container's log, none for a container that has written nothing. */
export const lastLog = (container: Container): ReadonlyArray<string> => {
  const text = new TextDecoder().decode(lastBytes(container))
  return text.trim() === "" ? [] : lastLines(text, LINES)
}

/** `it has ended with exit code 1`. */
export const ended = (container: Container): string => {
  const { status } = container.toJSON() as { readonly status: string }
  return status.startsWith("ended")
    ? `it has ${status.replace(/^ended by/, "been ended by")}`
    : "it has ended"
}
