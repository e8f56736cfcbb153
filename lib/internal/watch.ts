/**
 * The changes of a file or folder inside a root, by inotify(7) on a descriptor: the watch of node:fs goes by path, and
 * those of Deno and Bun by the path that the descriptor has, which on the host is another file's.
 */
import type { PlatformError } from "@effect/platform/Error"
import { SystemError, type SystemErrorReason } from "@effect/platform/Error"
import * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as asRoot from "./asRoot.ts"
import { EAGAIN, EINTR } from "./errno.ts"
import * as inRoot from "./inRoot.ts"
import * as Loop from "./loop.ts"
import { EPOLLIN, native, O_PATH } from "./native.ts"
import { platformError } from "./platformError.ts"

const IN_MODIFY = 0x002
const IN_ATTRIB = 0x004
// Moved away, moved here, made, deleted; deleted or moved itself. What libuv asks for.
const MASK = IN_MODIFY | IN_ATTRIB | 0x040 | 0x080 | 0x100 | 0x200 | 0x400 | 0x800
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

/** Calls `take` with what comes until the returned function is called. */
const follow = (fd: number, take: (event: Event) => void, end: (error?: unknown) => void): (() => void) => {
  const buffer = new Uint8Array(16 * 1024)
  let cancel: (() => void) | number = 0
  const wait = (): void => {
    cancel = Loop.watch(fd, EPOLLIN, () => {
      const n = native().read(fd, buffer)
      if (n < 0 && n !== -EAGAIN && n !== -EINTR) return end(new inRoot.Failure(-n, "read", "inotify"))
      for (const event of n > 0 ? decode(buffer.subarray(0, n)) : []) take(event)
      wait()
    })
    if (typeof cancel === "number") end(new inRoot.Failure(-cancel, "epoll_ctl", "inotify"))
  }
  Loop.retain()
  wait()
  return () => {
    if (typeof cancel !== "number") cancel()
    Loop.release()
    native().close(fd)
  }
}

const notRecursive = (path: string): SystemError =>
  new SystemError({
    module: "FileSystem",
    method: "watch",
    reason: "Unknown" satisfies SystemErrorReason,
    pathOrDescriptor: path,
    description: "folders below a container's folder cannot be watched with it: watch each one"
  })

export const watch = (
  root: number,
  path: string,
  recursive: boolean
): Stream.Stream<FileSystem.WatchEvent, PlatformError> =>
  recursive
    ? Stream.fail(notRecursive(path))
    : Stream.asyncScoped<FileSystem.WatchEvent, PlatformError>((emit) =>
        Effect.acquireRelease(
          Effect.try({
            try: () => {
              const target = inRoot.open(root, path, O_PATH, "watch")
              const inotify = asRoot.inotify(target, MASK)
              if (inotify < 0) {
                native().close(target)
                return inRoot.fail(-inotify, "watch", path)
              }
              const exists = (name: string): boolean =>
                inRoot.statusOf(inRoot.place(target, name, name)) !== undefined
              const stop = follow(
                inotify,
                ({ mask, name }) => {
                  if ((mask & IN_IGNORED) !== 0) return
                  // Of the file or folder itself there is no name.
                  const at = name === "" ? inRoot.split(path).name : name
                  if ((mask & (IN_MODIFY | IN_ATTRIB)) !== 0)
                    emit.single(FileSystem.WatchEventUpdate({ path: at }))
                  else if (name !== "" && exists(name)) emit.single(FileSystem.WatchEventCreate({ path: at }))
                  else emit.single(FileSystem.WatchEventRemove({ path: at }))
                },
                (error) => emit.fail(platformError("watch", path, true)(error))
              )
              return { stop, target }
            },
            catch: platformError("watch", path, true)
          }),
          ({ stop, target }) =>
            Effect.sync(() => {
              stop()
              native().close(target)
            })
        )
      )
