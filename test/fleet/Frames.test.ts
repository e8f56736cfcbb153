import assert from "node:assert/strict"
import { PassThrough } from "node:stream"
import { test } from "node:test"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import fc from "fast-check"
import { gathering, serialization } from "../../lib/internal/fleet/frames.ts"

const MOST = 4096

const bytes = fc.uint8Array({ maxLength: 300 }).map((made) => new Uint8Array(made))
const plain = { noNullPrototype: true }
const messages = fc.oneof(
  fc.record({ _tag: fc.constant("Chunk"), values: fc.array(bytes, { maxLength: 4 }) }, plain),
  fc.record(
    {
      _tag: fc.constant("Chunk"),
      values: fc.array(fc.oneof(fc.string(), fc.record({ text: fc.string() }, plain), bytes))
    },
    plain
  ),
  fc.record({ _tag: fc.constant("Exit"), value: fc.oneof(fc.integer(), fc.string(), bytes) }, plain)
)

/** What a socket sends of these messages. */
const sent = (all: ReadonlyArray<unknown>): Buffer => {
  const stream = new PassThrough()
  const parts: Array<Buffer> = []
  stream.on("data", (part) => parts.push(part))
  const socket = gathering(stream)
  const { encode } = serialization(MOST).unsafeMake()
  for (const message of all) socket.write(encode(message) as Uint8Array)
  return Buffer.concat(parts)
}

/** The same, with the bytes of each stream put together: how they are divided is not kept. */
const joined = (message: unknown): unknown => {
  const { values } = message as { readonly values?: ReadonlyArray<unknown> }
  if (values === undefined) return message
  const all: Array<unknown> = []
  for (const value of values) {
    const last = all.at(-1)
    if (!(value instanceof Uint8Array)) all.push(value)
    else if (last instanceof Uint8Array) all.splice(-1, 1, new Uint8Array(Buffer.concat([last, value])))
    else if (value.length > 0) all.push(new Uint8Array(value))
  }
  return { ...message!, values: all }
}

test("messages arrive as they were sent, whatever parts they come in", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(messages, { maxLength: 6 }),
      fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 }),
      async (all, sizes) => {
        const stream = sent(all)
        const { decode } = serialization(MOST).unsafeMake()
        const arrived: Array<unknown> = []
        for (let at = 0, k = 0; at < stream.length; k++) {
          const size = sizes[k % sizes.length]!
          arrived.push(...decode(stream.subarray(at, at + size)))
          at += size
        }
        assert.deepEqual(arrived.map(joined), all.map(joined))
      }
    )
  )
})

const frame = (message: unknown, following: Uint8Array, lengths?: readonly [number, number]): Uint8Array => {
  const body = RpcSerialization.msgPack.unsafeMake().encode(message) as Uint8Array
  const head = Buffer.alloc(8)
  head.writeUInt32BE(lengths?.[0] ?? body.length, 0)
  head.writeUInt32BE(lengths?.[1] ?? following.length, 4)
  return Buffer.concat([head, body, following])
}

const three = new Uint8Array(3)
const refused: ReadonlyArray<readonly [what: string, bytes: Uint8Array, says: RegExp]> = [
  ["no message", frame("", three, [0, 3]), /BufferSizeExceeded/],
  ["a message above the limit", frame("", three, [MOST + 1, 0]), /BufferSizeExceeded/],
  ["bytes above the limit", frame("", three, [1, 0xffff_ffff]), /BufferSizeExceeded/],
  ["bytes after a message without", frame({ _tag: "Exit" }, three), /bytes follow a message that has none/],
  ["fewer bytes than lengths", frame({ _tag: "Chunk", values: [2, 2] }, three), /fewer bytes follow/],
  ["more bytes than lengths", frame({ _tag: "Chunk", values: [2] }, three), /more bytes follow/],
  ["a length without end", frame({ _tag: "Chunk", values: [Infinity] }, three), /fewer bytes follow/]
]
for (const [what, bytes, says] of refused)
  test(`a frame with ${what} is refused`, () => {
    const { decode } = serialization(MOST).unsafeMake()
    assert.throws(
      () => decode(bytes),
      (error: Error) => says.test(`${error.message} ${JSON.stringify(error)}`)
    )
  })
