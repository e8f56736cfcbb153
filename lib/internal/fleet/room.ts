/** How much of a machine its runner gives away, and who has a part of it. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { FleetError } from "../../FleetError.ts"
import type { Request } from "./policy.ts"
import type { Room } from "./protocol.ts"

export type Rooms = SubscriptionRef.SubscriptionRef<Room>

export const make = (memoryBytes: number, cpus: number): Effect.Effect<Rooms> =>
  SubscriptionRef.make<Room>({
    serial: 0,
    memoryBytes,
    cpus,
    usedMemoryBytes: 0,
    usedCpus: 0,
    containers: 0,
    images: []
  })

/** What a request lacks in a room: in a full one, or in an empty one. */
export const missing = (room: Room, { cpus, memoryBytes }: Request, empty = false): string | undefined => {
  const memory = room.memoryBytes - (empty ? 0 : room.usedMemoryBytes)
  const free = room.cpus - (empty ? 0 : room.usedCpus)
  if (memoryBytes > memory) return `${memoryBytes} bytes of memory, of which it has ${memory}`
  if (cpus > free) return `${cpus} CPUs, of which it has ${Number(free.toFixed(2))}`
  return undefined
}

const add = (room: Room, { cpus, memoryBytes }: Request, sign: 1 | -1): Room => ({
  ...room,
  serial: room.serial + 1,
  usedMemoryBytes: room.usedMemoryBytes + sign * memoryBytes,
  usedCpus: room.usedCpus + sign * cpus,
  containers: room.containers + sign
})

/** Takes a part of the room until the scope closes. */
export const reserve = (
  rooms: Rooms,
  runner: string,
  request: Request
): Effect.Effect<void, FleetError, Scope.Scope> =>
  Effect.acquireRelease(
    SubscriptionRef.modifyEffect(rooms, (room) => {
      const lacking = missing(room, request)
      return lacking === undefined
        ? Effect.succeed([undefined, add(room, request, 1)] as const)
        : new FleetError({
            reason: "NoRoom",
            subject: `runner ${runner}`,
            detail: `it has no room for ${lacking}`
          })
    }),
    () => SubscriptionRef.update(rooms, (room) => add(room, request, -1))
  )

export const hasImage = (rooms: Rooms, digest: string): Effect.Effect<void> =>
  SubscriptionRef.update(rooms, (room) =>
    room.images.includes(digest)
      ? room
      : { ...room, serial: room.serial + 1, images: [...room.images, digest] }
  )
