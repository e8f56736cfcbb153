/**
 * The changes of a file or folder inside a root, by inotify(7) on a descriptor. The watch of node:fs goes by path, and
 * those of Deno and Bun by the path of the descriptor, which on the host is another file's.
 */
import type { PlatformError } from "@effect/platform/Error"
import { SystemError, type SystemErrorReason } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { EPOLLIN, native, O_PATH } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { EAGAIN, EINTR } from "../util/errno.ts"
import * as asRoot from "./namespaceRoot.ts"
import { platformError } from "./platformError.ts"
import * as inRoot from "./rooted.ts"

const IN_MODIFY = 0x002
const IN_ATTRIB = 0x004
// Moved away, moved here, created, deleted; the watched entry deleted or moved. The events that libuv uses.
const MASK = IN_MODIFY | IN_ATTRIB | 0x040 | 0x080 | 0x100 | 0x200 | 0x400 | 0x800
const IN_Q_OVERFLOW = 0x4000
const IN_IGNORED = 0x8000

// wd, mask, cookie, length: 32 bits each, then the name, padded with NULs.
const HEADER = 16
const utf8 = new TextDecoder()

interface Event {
  readonly mask: number
  readonly name: string
}

const decode = (bytes: Uint8Array): ReadonlyArray<Event> => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const events: Array<Event> = []
  for (let at = 0; at + HEADER <= bytes.length; ) {
    const length = view.getUint32(at + 12, true)
    const name = utf8.decode(bytes.subarray(at + HEADER, at + HEADER + length)).replace(/\0.*$/s, "")
    events.push({ mask: view.getUint32(at + 4, true), name })
    at += HEADER + length
  }
  return events
}

/**
 * The new events, at least one. They are read on demand: unread events wait in the kernel, which keeps a bounded number
 * (fs.inotify.max_queued_events) and then reports that some were lost.
 */
const next = (fd: number): Effect.Effect<ReadonlyArray<Event>, inRoot.Failure> =>
  Effect.async((resume) => {
    let cancel = (): void => {}
    const fail = (number: number, syscall: string): void =>
      resume(Effect.fail(new inRoot.Failure(number, syscall, "inotify")))
    const read = (): void => {
      const n = native().read(fd, buffer)
      if (n > 0) resume(Effect.succeed(decode(buffer.subarray(0, n))))
      else if (n === -EAGAIN || n === -EINTR) wait()
      else fail(-n, "read")
    }
    const wait = (): void => {
      const watching = Loop.watch(fd, EPOLLIN, () => {
        // Endless changes must let other work of the program run between two reads, above all its timers.
        const turn = setImmediate(read)
        cancel = () => clearImmediate(turn)
      })
      if (typeof watching === "number") fail(-watching, "epoll_ctl")
      else cancel = watching
    }
    wait()
    return Effect.sync(() => cancel())
  })

const buffer = new Uint8Array(16 * 1024)

const notRecursive = (path: string): SystemError =>
  new SystemError({
    module: "FileSystem",
    method: "watch",
    reason: "Unknown" satisfies SystemErrorReason,
    pathOrDescriptor: path,
    description: "folders below a container's folder cannot be watched with it: watch each one"
  })

/** An inotify, and the O_PATH descriptor of the watched entry. */
interface Watched {
  readonly inotify: number
  readonly target: number
}

const open = (root: number, path: string): Watched => {
  const target = inRoot.open(root, path, O_PATH, "watch")
  const inotify = asRoot.inotify(target, MASK)
  if (inotify >= 0) return { inotify, target }
  native().close(target)
  return inRoot.fail(-inotify, "watch", path)
}

const close = ({ inotify, target }: Watched): void => {
  native().close(inotify)
  native().close(target)
}

const eventOf = (target: number, path: string, { mask, name }: Event): FileSystem.WatchEvent => {
  // Events of the watched entry itself have no name, nor has the event that reports lost events.
  const at = name === "" ? inRoot.split(path).name : name
  if ((mask & (IN_MODIFY | IN_ATTRIB | IN_Q_OVERFLOW)) !== 0) return FileSystem.WatchEventUpdate({ path: at })
  return name !== "" && inRoot.statusOf(inRoot.place(target, name, name)) !== undefined
    ? FileSystem.WatchEventCreate({ path: at })
    : FileSystem.WatchEventRemove({ path: at })
}

export const watch = (
  root: number,
  path: string,
  recursive: boolean
): Stream.Stream<FileSystem.WatchEvent, PlatformError> => {
  if (recursive) return Stream.fail(notRecursive(path))
  const failed = platformError("watch", path, true)
  return Stream.unwrapScoped(
    Effect.gen(function* () {
      const watched = yield* Effect.acquireRelease(
        Effect.try({ try: () => open(root, path), catch: failed }),
        (opened) => Effect.sync(() => close(opened))
      )
      yield* Effect.acquireRelease(Effect.sync(Loop.retain), () => Effect.sync(Loop.release))
      const events = Effect.flatMap(Effect.mapError(next(watched.inotify), failed), (found) =>
        Effect.try({
          try: () =>
            Chunk.fromIterable(
              found
                .filter(({ mask }) => (mask & IN_IGNORED) === 0)
                .map((event) => eventOf(watched.target, path, event))
            ),
          catch: failed
        })
      )
      return Stream.repeatEffectChunk(events)
    })
  )
}
