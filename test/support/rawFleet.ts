/** A client of a runner that sends whatever it is given: messages of @effect/rpc, written by hand. */
import assert from "node:assert/strict"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { RUNNER_BYTES_MAX, serialization } from "../../lib/internal/fleet/frames.ts"
import { VERSION } from "../../lib/internal/fleet/protocol.ts"
import { token } from "./fleets.ts"

interface Answer {
  readonly _tag: string
  readonly requestId?: string
  readonly [field: string]: unknown
}

export interface RawClient {
  /** Sends a request, and gives the first answer to it: a part of a stream, or how it ended. */
  readonly ask: (tag: string, payload: unknown) => Effect.Effect<Answer>
  /** What the runner has told of the session so far. */
  readonly told: ReadonlyArray<unknown>
  /** Sends bytes as they are. */
  readonly send: (bytes: Uint8Array) => void
  readonly closed: Effect.Effect<void>
}

/** The id of the request that begins a session: it is the first one. What the runner tells by it is taken. */
const SESSION = "1"

/** Connects to a runner, and begins a session unless told otherwise. */
export const rawClient = (address: string, session = true) =>
  Effect.gen(function* () {
    const { hostname, port } = new URL(address)
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => net.connect({ host: hostname, port: Number(port) })),
      (made) => Effect.sync(() => made.destroy())
    )
    const parser = serialization(RUNNER_BYTES_MAX).unsafeMake()
    const told: Array<unknown> = []
    const waiting = new Map<string, (answer: Answer) => void>()
    const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()))
    socket.on("error", () => {})
    let welcomed = false
    socket.on("data", (bytes) => {
      let rest: Uint8Array = bytes
      if (!welcomed) {
        welcomed = true
        assert.equal(String(bytes.subarray(0, 8)), "WELCOME\n")
        rest = bytes.subarray(8)
      }
      for (const answer of parser.decode(rest) as ReadonlyArray<Answer>) {
        if (session && answer._tag === "Chunk" && answer.requestId === SESSION) {
          told.push(...(answer.values as ReadonlyArray<unknown>))
          socket.write(parser.encode({ _tag: "Ack", requestId: SESSION }) as Uint8Array)
        }
        if (answer._tag === "Defect") for (const take of waiting.values()) take(answer)
        else if (answer.requestId !== undefined) waiting.get(answer.requestId)?.(answer)
      }
    })
    socket.write(`BERTH-FLEET ${Redacted.value(token)}\n`)
    let last = 0
    const ask = (tag: string, payload: unknown): Effect.Effect<Answer> =>
      Effect.promise(async () => {
        const id = String(++last)
        const answered = new Promise<Answer>((resolve) => waiting.set(id, resolve))
        socket.write(parser.encode({ _tag: "Request", id, tag, payload, headers: [] }) as Uint8Array)
        return Promise.race([answered, closed.then((): Answer => ({ _tag: "Closed" }))])
      }).pipe(Effect.timeout("15 seconds"), Effect.orDie)
    const client: RawClient = {
      ask,
      told,
      send: (bytes) => void socket.write(bytes),
      closed: Effect.promise(() => closed)
    }
    if (session) {
      const hello = yield* ask("session", { version: VERSION, clockMillis: Date.now(), client: "raw" })
      assert.equal(hello._tag, "Chunk", JSON.stringify(hello))
    }
    return client
  })
