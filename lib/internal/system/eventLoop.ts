/** The JavaScript side of the epoll thread: it maps each descriptor to the function that waits for it. */

import * as Turn from "../util/turn.ts"
import { native } from "./addon.ts"

// The addon has one epoll thread for each JavaScript thread, so all Berths on a thread share this state. A token
// belongs to one watch.
const waiting = new Map<number, (events: number) => void>()
let nextToken = 1
let holds = 0
let started = false

/** Events that arrived after the end of the turn. */
let late: Array<readonly [token: number, events: number]> = []

const tell = (token: number, events: number): void => {
  const resume = waiting.get(token)
  if (resume === undefined) return
  waiting.delete(token)
  resume(events)
}

const catchUp = (): void => {
  const came = late
  let at = 0
  late = []
  try {
    do tell(...came[at++]!)
    while (at < came.length && !Turn.isOver())
  } finally {
    late = [...came.slice(at), ...late]
    if (late.length > 0) Turn.next(catchUp)
  }
}

// A runtime calls this repeatedly, without running its own loop, while a descriptor is ready: a container that writes
// without end would block everything else.
const ready = (token: number, events: number): void => {
  if (late.length === 0 && !Turn.isOver()) return tell(token, events)
  if (late.push([token, events]) === 1) Turn.next(catchUp)
}

/**
 * Calls `resume` once, when the descriptor is ready for `events` (EPOLL*) or has failed. Returns a function that cancels the
 * watch, or -errno. A descriptor has one watch at a time: a second one replaces the first.
 */
export const watch = (
  fd: number,
  events: number,
  resume: (events: number) => void
): (() => void) | number => {
  const addon = native()
  if (!started) {
    const error = addon.startLoop(ready)
    if (error < 0) return error
    started = true
    if (holds > 0) addon.keepAlive(true)
  }
  const token = nextToken++
  waiting.set(token, resume)
  const error = addon.watch(fd, events, token)
  if (error < 0) {
    waiting.delete(token)
    return error
  }
  return () => {
    waiting.delete(token)
  }
}

/** Keeps the process alive until `release` has been called as many times: a caller waits for a descriptor. */
export const retain = (): void => {
  if (++holds === 1 && started) native().keepAlive(true)
}

export const release = (): void => {
  if (--holds === 0 && started) native().keepAlive(false)
}
