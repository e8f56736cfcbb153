import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Berth, type BerthError, Container, Image, type Security, WaitFor } from "../../lib/index.ts"
import { suite } from "../support/effect.ts"
import { descendants, eventually } from "../support/leftovers.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const limitOf = (pid: number): readonly [soft: string, hard: string] => {
  const [, soft, hard] = /^Max open files +(\S+) +(\S+)/m.exec(
    fs.readFileSync(`/proc/${pid}/limits`, "utf8")
  )!
  return [soft!, hard!]
}

const setLimit = (pid: number, soft: string | number): void => {
  execFileSync("prlimit", [`--pid=${pid}`, `--nofile=${soft}:${limitOf(pid)[1]}`])
}

const highest = (pid: number): number => Math.max(...fs.readdirSync(`/proc/${pid}/fd`).map(Number))

/** Runs `body` while this program can open only `free` more files. */
const withFree = <A, E, R>(free: number, body: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const [before] = limitOf(process.pid)
      const opened: Array<number> = []
      setLimit(process.pid, highest(process.pid) + 20)
      try {
        for (;;) opened.push(fs.openSync("/dev/null", "r"))
      } catch (error) {
        assert.match(String(error), /EMFILE/)
      }
      for (const fd of opened.splice(0, free)) fs.closeSync(fd)
      return { before, opened }
    }),
    () => body,
    ({ before, opened }) =>
      Effect.sync(() => {
        for (const fd of opened) fs.closeSync(fd)
        setLimit(process.pid, before)
      })
  )

/** Asserts that the error names the limit of open files. */
const isOfLimit = (error: BerthError.BerthError): void =>
  assert.match(error.message, /too many open files|limit of open files/i, `${error._tag}: ${error.message}`)

const asking: Security.SeccompProfile = {
  defaultAction: "SCMP_ACT_ALLOW",
  syscalls: [{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_NOTIFY" }]
}

// More descriptors than any of the calls below needs.
const FREE_MAX = 24

/**
 * Tries with no free descriptor, then with one, and so on, until it succeeds. Each try before that fails, and disturbs
 * nothing else.
 */
const withEver = (
  witness: Container.Container,
  attempt: Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>
) =>
  Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    const before = descendants(supervisor.pid).length
    for (let free = 0; free <= FREE_MAX; free++) {
      const done = yield* withFree(free, Effect.either(Effect.scoped(attempt)))
      if (done._tag === "Right") {
        assert.ok(free > 0, "it should need a descriptor")
        assert.equal((yield* Container.exec(witness, ["echo", "here"])).stdout, "here\n")
        const back = yield* Effect.promise(() =>
          eventually(() => descendants(supervisor.pid).length === before)
        )
        assert.ok(back, "the supervisor should have given back what could not be used")
        return
      }
      isOfLimit(done.left)
    }
    assert.fail("it should succeed in the end")
  })

for (const { name, options } of modes) {
  suite(`too few free descriptors (${name})`, (effect, folder) => {
    const start = (more: Container.StartOptions = {}) =>
      Effect.flatMap(Image.host, (image) =>
        Container.start(image, { command: ["sleep", "1000"], ...options, ...more })
      )

    const cases = {
      "a start": () => start(),
      "a start with a terminal": () => start({ terminal: { rows: 20, columns: 80 } }),
      "a start whose plan is large": () =>
        start({ env: { LARGE: "x".repeat(100_000), MORE: "x".repeat(100_000) } }),
      "a start with a seccomp policy that notifies": () =>
        start({
          command: ["sh", "-c", "mkdir /tmp/made && exec sleep 1000"],
          seccomp: asking,
          onSystemCall: () => Effect.succeed("continue")
        }),
      "a run": () =>
        Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"], ...options }))
    }
    for (const [title, attempt] of Object.entries(cases)) {
      effect(`${title} fails with the limit's name, and disturbs no running container`, function* () {
        yield* Effect.flatMap(start(), (witness) => withEver(witness, attempt()))
      })
    }

    effect(
      "an exec with pipes or a terminal fails with the limit's name, and disturbs no running container",
      function* () {
        const witness = yield* start()
        yield* withEver(witness, Container.exec(witness, ["true"]))
        yield* withEver(witness, Container.execStream(witness, ["sleep", "1000"], { terminal: true }))
      }
    )

    effect(
      "WaitFor.http fails with the limit's name, and disturbs no running container",
      function* () {
        const image = yield* makeImage(`${folder()}-root`)
        const script = "mkdir /www; echo ready > /www/ready; exec httpd -f -p 127.0.0.1:8080 -h /www"
        const server = yield* Container.start(image, { command: ["sh", "-c", script], ...options })
        const asked = WaitFor.http(server, { port: 8080, path: "/ready" })
        yield* asked
        yield* withEver(server, asked)
      },
      { skip: whyNoBusybox }
    )

    effect.asRoot(
      "a supervisor that can open no more files fails a start, and keeps its running containers",
      function* () {
        const { supervisor } = yield* Berth.Berth
        const witness = yield* start()
        const [before] = limitOf(supervisor.pid)
        for (let free = 0; ; free++) {
          assert.ok(free <= FREE_MAX, "it should succeed in the end")
          setLimit(supervisor.pid, highest(supervisor.pid) + 1 + free)
          const done = yield* Effect.either(Effect.scoped(start()))
          setLimit(supervisor.pid, before)
          if (done._tag === "Right") break
          isOfLimit(done.left)
        }
        assert.equal((yield* Container.exec(witness, ["echo", "here"])).stdout, "here\n")
      }
    )
  })
}
