/**
 * A program whose container attacks it by its files: `attackedFiles.ts FOLDER ATTACK OPTIONS`, the last as JSON. It prints
 * a line of JSON: what came of it, how late its timers were at worst, and by how many bytes it grew. Then it exits.
 */
import * as fs from "node:fs"
import type { PlatformError } from "@effect/platform/Error"
import type * as FileSystem from "@effect/platform/FileSystem"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Berth, type BerthError, Container, WaitFor } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"
import { makeImage } from "./rootfs.ts"

const [folder, attack, json] = process.argv.slice(2) as [string, string, string]
const options = JSON.parse(json) as Container.StartOptions

type Body<A> = Effect.Effect<A, BerthError.BerthError | PlatformError, Berth.Berth | Scope.Scope>

const image = Effect.suspend(() => makeImage(`${folder}/root`))

const start = (script: string, more: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    const command = ["/bin/sh", "-c", `${script}\necho ready; exec sleep 1000`]
    const box = yield* Container.start(yield* image, { ...options, ...more, command })
    yield* WaitFor.log(box, "ready")
    return box
  })

const kindOf = (result: Either.Either<unknown, BerthError.BerthError | PlatformError>): string =>
  Either.match(result, {
    onLeft: (error) => `${error._tag} ${"reason" in error ? error.reason : ""}`.trim(),
    onRight: (value) =>
      value instanceof Uint8Array
        ? `${value.length} bytes`
        : typeof value === "object" && value !== null && "exitCode" in value
          ? `exit code ${value.exitCode}`
          : "done"
  })

const outcome = <R>(effect: Effect.Effect<unknown, BerthError.BerthError | PlatformError, R>) =>
  effect.pipe(
    Effect.either,
    Effect.map(kindOf),
    Effect.timeoutTo({ duration: "10 seconds", onSuccess: (kind) => kind, onTimeout: () => "waits" })
  )

/** What comes of executing as users by name and by number, and of listing the processes. */
const users = (script: string): Body<ReadonlyArray<string>> =>
  Effect.gen(function* () {
    const box = yield* start(script)
    return yield* Effect.forEach(
      [
        Container.exec(box, ["true"], { user: "app" }),
        Container.exec(box, ["true"], { user: "0" }),
        Container.top(box)
      ],
      outcome
    )
  })

const place = (path: string): string => `rm -f /etc/passwd; ln -s ${path} /etc/passwd`

const passwd = (): Body<unknown> =>
  Effect.all({
    fifo: users("rm /etc/passwd; mkfifo /etc/passwd"),
    loop: users(place("/etc/passwd")),
    zero: users(place("/dev/zero")),
    kmsg: users(place("/proc/kmsg")),
    pagemap: users(place("/proc/1/pagemap")),
    self: users(place("/proc/self/environ")),
    huge: users("truncate -s 8G /etc/passwd"),
    groups: users("truncate -s 1025K /etc/group"),
    lines: users("for f in passwd group; do yes '' | head -c 1048576 >/etc/$f; done"),
    short: users("for f in passwd group; do yes a | head -c 1048576 >/etc/$f; done"),
    commas: users("echo app:x:7:8 >/etc/passwd; yes , | tr -d '\\n' | head -c 1000000 >>/etc/group")
  })

/** All ways to open one path; then whether threads are left to read another. */
const ways = (fs: FileSystem.FileSystem, path: string) =>
  Effect.gen(function* () {
    const bytes = new Uint8Array([120])
    const found = yield* Effect.forEach(
      [
        fs.readFile(path),
        fs.writeFile(path, bytes),
        fs.writeFile(path, bytes, { flag: "a" }),
        fs.truncate(path),
        Effect.scoped(fs.open(path)),
        Effect.scoped(fs.open(path, { flag: "r+" })),
        Stream.runDrain(fs.stream(path)),
        Stream.run(Stream.make(bytes), fs.sink(path))
      ],
      outcome,
      { concurrency: "unbounded" }
    )
    yield* fs.writeFileString("/tmp/other", "other")
    return [...new Set(found), yield* outcome(fs.readFile("/tmp/other"))]
  })

const fifos = (): Body<unknown> =>
  Effect.gen(function* () {
    const fs = Container.fileSystem(yield* start("mkfifo -m 666 /tmp/fifo; ln -s fifo /tmp/link"))
    return { fifo: yield* ways(fs, "/tmp/fifo"), link: yield* ways(fs, "/tmp/link") }
  })

const kernel = (): Body<unknown> =>
  Effect.gen(function* () {
    const targets = [
      ...[
        "/dev/tty",
        "/dev/zero",
        "/dev/random",
        "/dev/ptmx",
        "/proc/kmsg",
        "/proc/1/pagemap",
        "/proc/1/environ"
      ],
      ...["/proc/uptime"]
    ]
    const own = [
      "/proc/self/environ",
      "/proc/self/mem",
      "/proc/thread-self/environ",
      "/proc/self/oom_score_adj"
    ]
    const links = "for f in $LINKS; do ln -s $f /tmp/link$(echo $f | tr / -); done"
    const link = (path: string): string => `/tmp/link${path.replaceAll("/", "-")}`
    const env = { LINKS: [...targets, ...own].join(" ") }
    const apart = Container.fileSystem(yield* start(links, { env }))
    const beside = Container.fileSystem(yield* start(links, { env, namespaces: { pid: "host" } }))
    const all: Record<string, unknown> = {}
    for (const path of targets) all[path] = yield* ways(apart, link(path))
    // Where the container has the host's pids, these lead to this program.
    for (const path of own) all[path] = yield* ways(beside, link(path))
    const others = [
      beside.copyFile("/proc/self/environ", "/tmp/got"),
      beside.copy("/proc/self/environ", "/tmp/got"),
      beside.readLink("/proc/self/cwd"),
      beside.copy("/proc/self/cwd", "/tmp/got")
    ]
    return { ...all, others: yield* Effect.forEach(others, outcome), left: yield* beside.exists("/tmp/got") }
  })

const flood = `mkdir /tmp/w; cd /tmp/w
  for k in 1 2; do (while :; do echo >$k-a; echo >$k-b; echo >$k-c; done) & done`

/** A reader that stands still while more is changed than the kernel has room for; gives what it is told of that. */
const missed = (box: Container.Container) =>
  Effect.gen(function* () {
    const files = Container.fileSystem(box)
    const room = Number(fs.readFileSync("/proc/sys/fs/inotify/max_queued_events", "utf8"))
    const loop = `i=0; while [ $i -lt ${room} ]; do echo >/tmp/v/a; echo >/tmp/v/b; i=$((i+1)); done`
    let isFirst = true
    const overflow = files.watch("/tmp/v").pipe(
      Stream.tap(() => {
        if (!isFirst) return Effect.void
        isFirst = false
        return Container.exec(box, ["/bin/sh", "-c", loop])
      }),
      Stream.filter(({ path }) => path === "v"),
      Stream.runHead
    )
    // Something has to happen once it is watched.
    const begin = Effect.repeat(files.writeFileString("/tmp/v/first", ""), Schedule.spaced("50 millis"))
    return yield* Effect.raceFirst(
      Effect.map(overflow, Option.getOrNull),
      Effect.zipRight(begin, Effect.never)
    )
  })

const watched = (): Body<unknown> =>
  Effect.gen(function* () {
    const box = yield* start("mkdir /tmp/v")
    const lost = yield* missed(box)
    const files = Container.fileSystem(yield* start(flood))
    let events = 0
    const counted = Stream.runForEach(files.watch("/tmp/w"), () => Effect.sync(() => void events++))
    const before = performance.now()
    yield* Effect.timeoutOption(counted, "2 seconds")
    return { took: performance.now() - before, events, missed: lost }
  })

const attacks: Readonly<Record<string, () => Body<unknown>>> = { passwd, fifos, kernel, watched }

let late = 0
let due = performance.now() + 10
const timer = setInterval(() => {
  const now = performance.now()
  late = Math.max(late, now - due)
  due = now + 10
}, 10)
const rss = (): number => process.memoryUsage().rss

const found = await Effect.runPromise(
  Effect.scoped(
    Effect.gen(function* () {
      // What is loaded once is not counted.
      yield* Container.exec(yield* start(""), ["true"], { user: "app" })
      yield* Effect.sleep("100 millis")
      late = 0
      due = performance.now() + 10
      const before = rss()
      let most = before
      const sampled = setInterval(() => {
        most = Math.max(most, rss())
      }, 50)
      const result = yield* attacks[attack]!()
      clearInterval(sampled)
      return { result, late, grown: Math.max(most, rss()) - before }
    })
  ).pipe(Effect.provide(berthIn(`${folder}/berth`)))
)
clearInterval(timer)
fs.writeSync(1, `${JSON.stringify(found)}\n`)
process.exit(0)
