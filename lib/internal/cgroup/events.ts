/**
 * Events of a cgroup as streams: a changed file is readable as EPOLLPRI (kernfs_notify()), the memory controller of version 1
 * writes to an eventfd (cgroup-v1/memory.rst, 9 and 10), and pressure has triggers (psi.rst).
 */
import * as fs from "node:fs"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, CgroupError } from "../../BerthError.ts"
import type {
  Cgroup,
  Folder,
  MemoryEvents,
  PidsEvents,
  Pressure,
  PressureOptions,
  Resource
} from "../../Cgroup.ts"
import { AT_FDCWD, EPOLLERR, EPOLLIN, EPOLLPRI, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { EINVAL } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { read } from "../util/readFile.ts"
import { invalid } from "../util/validate.ts"
import * as internal from "./cgroup.ts"
import { readMemoryEvents, readPidsEvents, readPressure, sourceOf } from "./stats.ts"

const utf8 = new TextDecoder()

/** Waits for a descriptor, and keeps the program alive meanwhile. */
const ready = (fd: number, events: number): Effect.Effect<number> =>
  Effect.async<number>((resume) => {
    Loop.retain()
    const cancel = Loop.watch(fd, events, (which) => {
      Loop.release()
      resume(Effect.succeed(which))
    })
    if (typeof cancel === "number") {
      Loop.release()
      return resume(Effect.succeed(EPOLLERR))
    }
    return Effect.sync(() => {
      Loop.release()
      cancel()
    })
  })

/** A source that can be read repeatedly, with waits for a change. */
interface Source<A> {
  /** Undefined once the source is gone. */
  readonly read: () => A | undefined
  readonly wait: Effect.Effect<unknown>
}

/** A file of a cgroup, opened anew for each read, because a descriptor reports the changes after its first read. */
const file = <A>(path: string, parse: (text: string) => A): Effect.Effect<Source<A>, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(Effect.succeed({ fd: -1 }), (open) =>
      Effect.sync(() => open.fd >= 0 && native().close(open.fd))
    ),
    (open) => ({
      read: () => {
        const buffer = new Uint8Array(4096)
        if (open.fd >= 0) native().close(open.fd)
        open.fd = native().openIn(AT_FDCWD, path, fs.constants.O_RDONLY, 0, 0)
        const n = open.fd < 0 ? -1 : native().read(open.fd, buffer)
        return n < 0 ? undefined : parse(utf8.decode(buffer.subarray(0, n)))
      },
      wait: Effect.suspend(() => ready(open.fd, EPOLLPRI))
    })
  )

const LOOK_EVERY = "100 millis"
const SETTLING_MS = 1000

/** Version 1 reports exhausted memory before the kill: for up to a second, the count of kills is read. */
const outOfMemory = (
  { path }: Folder,
  events: () => MemoryEvents
): Effect.Effect<Source<MemoryEvents>, BerthError, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      internal.filesOf("memory", `${path}/cgroup.event_control`, () => {
        const counter = native().eventfd()
        const control = native().openIn(AT_FDCWD, `${path}/memory.oom_control`, fs.constants.O_RDONLY, 0, 0)
        try {
          fs.writeFileSync(`${path}/cgroup.event_control`, `${counter} ${control}`)
          return counter
        } catch (error) {
          native().close(counter)
          throw error
        } finally {
          if (control >= 0) native().close(control)
        }
      }),
      (counter) => Effect.sync(() => native().close(counter))
    ),
    (counter) => {
      let told = 0
      return {
        read: () => {
          if (!fs.existsSync(path)) return undefined
          const now = events()
          told = now.oomKill ?? 0
          return now
        },
        wait: Effect.gen(function* () {
          yield* ready(counter, EPOLLIN)
          native().read(counter, new Uint8Array(8))
          for (let waited = 1; waited < SETTLING_MS && events().oomKill === told; waited *= 2)
            yield* Effect.sleep(waited)
        })
      }
    }
  )

/** Each new value, the first included, until the source is gone or cannot change any more. */
const changes = <A>(
  cgroup: Cgroup,
  make: Effect.Effect<Source<A>, BerthError, Scope.Scope>
): Stream.Stream<A, BerthError> =>
  Stream.unwrapScoped(
    Effect.map(make, (source) => {
      let last = ""
      let over = false
      const next: Effect.Effect<Chunk.Chunk<A>, Option.Option<BerthError>> = Effect.suspend(() => {
        const value = source.read()
        if (value === undefined)
          return last === "" ? Effect.fail(Option.some(internal.gone(cgroup))) : Effect.fail(Option.none())
        const text = JSON.stringify(value)
        if (text !== last) {
          last = text
          return Effect.succeed(Chunk.of(value))
        }
        if (over) return Effect.fail(Option.none())
        const end = Effect.map(internal.ended(cgroup), () => {
          over = true
        })
        return Effect.zipRight(Effect.race(source.wait, end), next)
      })
      return Stream.repeatEffectChunkOption(next)
    })
  )

const folderOf = (cgroup: Cgroup, controller: string): Folder | undefined =>
  cgroup.folders.find(({ controllers }) => controllers.includes(controller))

/** The folder that has a controller, made if the cgroup has none yet. */
const withFolder = (cgroup: Cgroup, controller: string): Effect.Effect<Folder, BerthError> =>
  Effect.flatMap(internal.extend(cgroup, [{ controller, option: controller }]), () => {
    const folder = folderOf(cgroup, controller)
    return folder === undefined ? Effect.fail(internal.gone(cgroup)) : Effect.succeed(folder)
  })

export const memoryEvents = (cgroup: Cgroup): Stream.Stream<MemoryEvents, BerthError> =>
  changes(
    cgroup,
    Effect.flatMap(withFolder(cgroup, "memory"), (folder) => {
      const events = () => readMemoryEvents(sourceOf(cgroup))
      return folder.version === 1 ? outOfMemory(folder, events) : file(`${folder.path}/memory.events`, events)
    })
  )

export const oomKills = (cgroup: Cgroup): Stream.Stream<number, BerthError> =>
  Stream.suspend(() => {
    let before = 0
    return Stream.filterMap(memoryEvents(cgroup), ({ oomKill = 0 }) => {
      if (oomKill <= before) return Option.none()
      before = oomKill
      return Option.some(oomKill)
    })
  })

export const pidsEvents = (cgroup: Cgroup): Stream.Stream<PidsEvents, BerthError> =>
  changes(
    cgroup,
    Effect.flatMap(withFolder(cgroup, "pids"), ({ path, version }) =>
      Effect.map(
        file(`${path}/pids.events`, () => ({ max: readPidsEvents(sourceOf(cgroup)) ?? 0 })),
        // The file with the counter of version 1 does not report changes.
        (source) => (version === 1 ? { ...source, wait: Effect.sleep(LOOK_EVERY) } : source)
      )
    )
  )

/** Waits until cgroup.events has this line. */
export const frozen = (path: string): Effect.Effect<void> =>
  Effect.scoped(
    Effect.flatMap(
      file(`${path}/cgroup.events`, (text) => /^frozen 1$/m.test(text)),
      ({ read, wait }) =>
        Effect.repeat(
          Effect.suspend(() => (read() === false ? Effect.as(wait, false) : Effect.succeed(true))),
          { until: (done) => done }
        )
    )
  )

const UNITS = { us: 1, ms: 1000, s: 1_000_000 } as const

const microsOf = (option: string, value: NonNullable<PressureOptions["window"]>): number => {
  const match = typeof value === "string" ? /^(\d+(?:\.\d+)?)(us|ms|s)$/.exec(value) : null
  const micros =
    match === null
      ? Option.match(Duration.decodeUnknown(value), {
          onNone: () => Number.NaN,
          onSome: (duration) => Duration.toMillis(duration) * 1000
        })
      : Number(match[1]) * UNITS[match[2] as keyof typeof UNITS]
  return Number.isFinite(micros) && micros > 0
    ? Math.round(micros)
    : invalid(option, value, 'a duration: "150ms", "1s" or as Effect has them')
}

const openTrigger = (path: string, trigger: string): number => {
  const fd = native().openIn(AT_FDCWD, path, fs.constants.O_RDWR, 0, 0)
  const n = fd < 0 ? fd : native().write(fd, new TextEncoder().encode(`${trigger}\0`), 0)
  if (n >= 0) return fd
  if (fd >= 0) native().close(fd)
  if (n === -EINVAL) {
    const detail = `the kernel refuses "${trigger}": without CAP_SYS_RESOURCE the window must be a multiple of 2s`
    throw new CgroupError({ reason: "Refused", controller: "pressure", path, errno: EINVAL, detail })
  }
  throw internal.failed("pressure", path, -n, "write")
}

const WINDOW_LEAST = 500_000
const WINDOW_MOST = 10_000_000

/** The text for a pressure file; throws `InvalidOption`. */
const triggerOf = ({ full, some, window = "2s" }: PressureOptions): string => {
  const kind = some === undefined ? "full" : "some"
  const threshold = some ?? full
  if (threshold === undefined || (some !== undefined && full !== undefined))
    return invalid("pressure", { some, full }, "either some or full")
  const micros = microsOf(`pressure.${kind}`, threshold)
  const over = microsOf("pressure.window", window)
  if (over < WINDOW_LEAST || over > WINDOW_MOST)
    invalid("pressure.window", window, "a window from 500ms to 10s")
  if (micros > over) invalid(`pressure.${kind}`, threshold, "no more than the window")
  return `${kind} ${micros} ${over}`
}

export const pressure = (
  cgroup: Cgroup,
  resource: Resource,
  options: PressureOptions
): Stream.Stream<Pressure, BerthError> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      const trigger = yield* attempt(() => {
        if (!["cpu", "memory", "io"].includes(resource))
          invalid("pressure", resource, '"cpu", "memory" or "io"')
        return triggerOf(options)
      })
      const folder = yield* withFolder(cgroup, "pressure")
      const path = `${folder.path}/${resource}.pressure`
      const fd = yield* Effect.acquireRelease(
        attempt(() => openTrigger(path, trigger)),
        (fd) => Effect.sync(() => native().close(fd))
      )
      const next: Effect.Effect<Pressure, Option.Option<BerthError>> = Effect.suspend(() =>
        Effect.flatMap(
          Effect.race(ready(fd, EPOLLPRI), Effect.as(internal.ended(cgroup), EPOLLERR)),
          (events) => {
            const value = (events & EPOLLERR) === 0 ? readPressure(read(path)) : undefined
            return value === undefined ? Effect.fail(Option.none()) : Effect.succeed(value)
          }
        )
      )
      return Stream.repeatEffectOption(next)
    })
  )
