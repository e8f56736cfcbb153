/** Files at HTTP addresses: fetched with a limit of redirects and of bytes, into a folder of this program's. */
import { createHash, randomBytes } from "node:crypto"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { Remote } from "../../BuildStep.ts"
import { fetch } from "../registry/proxy.ts"
import { diskDetail } from "./failure.ts"

const REDIRECTS_MAX = 5
const BYTES_MAX = 16 * 1024 ** 3
/** The time for an answer, and without any byte of it. */
const SILENCE_MILLIS = 60_000

/** A file cannot be had, or is not the one of its checksum. */
export class Unavailable extends Error {}

/** The last part of an address, which is the name of the file; undefined if it has none. */
export const nameOf = (url: string): string | undefined => {
  try {
    const name = decodeURIComponent(new URL(url).pathname).split("/").at(-1)!
    return name === "" || name === "." || name === ".." || name.includes("\0") ? undefined : name
  } catch {
    return undefined
  }
}

const answerOf = async (start: string, signal: AbortSignal): Promise<Response> => {
  let url = new URL(start)
  for (let hops = 0; ; hops++) {
    const response = await fetch(url, {
      signal,
      redirect: "manual",
      headers: { "user-agent": "berth", "accept-encoding": "identity" }
    })
    const location = response.headers.get("location")
    if (![301, 302, 303, 307, 308].includes(response.status) || location === null) {
      if (response.ok) return response
      await response.body?.cancel()
      throw new Unavailable(`${url.host} answers with the status ${response.status}`)
    }
    await response.body?.cancel()
    const next = URL.canParse(location, url.href) ? new URL(location, url) : undefined
    if (next === undefined || !/^https?:$/.test(next.protocol))
      throw new Unavailable(`${url.host} redirects to a place that is no HTTP address`)
    if (url.protocol === "https:" && next.protocol !== "https:")
      throw new Unavailable(`${url.host} redirects from https to ${next.protocol.slice(0, -1)}`)
    if (hops === REDIRECTS_MAX) throw new Unavailable(`it redirects more than ${REDIRECTS_MAX} times`)
    url = next
  }
}

const download = async (
  { checksum, url }: Remote,
  path: string,
  bytesMax: number,
  outer: AbortSignal
): Promise<void> => {
  const silence = new AbortController()
  const late = () => silence.abort(new Unavailable(`nothing has come for ${SILENCE_MILLIS / 1000} s`))
  let timer = setTimeout(late, SILENCE_MILLIS)
  const hash = createHash("sha256")
  const file = await fs.open(path, "wx", 0o600)
  try {
    const response = await answerOf(url, AbortSignal.any([outer, silence.signal]))
    const said = response.headers.get("content-length")
    const tooLarge = () => new Unavailable(`it is larger than ${bytesMax} bytes, the limit for one file`)
    if (said !== null && Number(said) > bytesMax) {
      await response.body?.cancel()
      throw tooLarge()
    }
    let length = 0
    for await (const part of response.body ?? []) {
      clearTimeout(timer)
      timer = setTimeout(late, SILENCE_MILLIS)
      length += part.length
      if (length > bytesMax) throw tooLarge()
      hash.update(part)
      await file.writeFile(part)
    }
    if (said !== null && Number(said) !== length)
      throw new Unavailable(`it ends after ${length} of ${said} bytes`)
  } finally {
    clearTimeout(timer)
    await file.close()
  }
  const digest = `sha256:${hash.digest("hex")}`
  if (checksum !== undefined && digest !== checksum)
    throw new Unavailable(`its checksum is ${digest}, and not ${checksum}`)
}

/** Fetches a file; gives the folder that has it under its name, until the scope closes. */
export const fetched = (
  berth: Berth,
  remote: Remote,
  name: string,
  bytesMax: number = BYTES_MAX
): Effect.Effect<string, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    // A sweep removes it with the state of a killed program.
    const folder = `${berth.supervisor.folder}/remote-${randomBytes(8).toString("hex")}`
    yield* Effect.acquireRelease(
      Effect.tryPromise({ try: () => fs.mkdir(folder, { mode: 0o700 }), catch: (error) => error }),
      () => Effect.promise(() => fs.rm(folder, { recursive: true, force: true }))
    )
    yield* Effect.tryPromise({
      try: (signal) => download(remote, `${folder}/${name}`, bytesMax, signal),
      catch: (error) => {
        if (error instanceof Unavailable || diskDetail(error, folder) !== undefined) return error
        const { cause, message } = error as Error & { cause?: { message?: string; code?: string } }
        return new Unavailable(cause?.message || cause?.code || message, { cause: error })
      }
    })
    return folder
  })
