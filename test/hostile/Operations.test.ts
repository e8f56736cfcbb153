import assert from "node:assert/strict"
import * as fs from "node:fs"
import { Command } from "@effect/platform"
import { CommandExecutor } from "@effect/platform/CommandExecutor"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Berth, Cgroup, Container, Image, WaitFor } from "../../lib/index.ts"
import { compile } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

type Operation = (
  box: Container.Container,
  folder: string
) => Effect.Effect<unknown, unknown, Berth.Berth | Scope.Scope>

/** What a program does with a container, each so small that it takes no time in one that attacks nobody. */
const operations: Readonly<Record<string, Operation>> = {
  exec: (box) => Container.exec(box, ["echo", "well"]),
  "exec as a user of its own files": (box) => Container.exec(box, ["true"], { user: "root" }),
  "exec with a terminal": (box) => Container.exec(box, ["true"], { terminal: true }),
  execStream: (box) =>
    Effect.flatMap(Container.execStream(box, ["cat"], { stdin: "pipe" }), (process) =>
      Effect.zipRight(Stream.run(Stream.make(new Uint8Array(1000)), process.stdin), process.exit)
    ),
  commandExecutor: (box) =>
    Effect.provideService(
      Command.string(Command.make("uname", "-n")),
      CommandExecutor,
      Container.commandExecutor(box)
    ),
  signal: (box) => Container.signal(box, "SIGURG"),
  top: (box) => Container.top(box),
  stats: (box) => Container.stats(box),
  "pause and resume": (box) => Effect.zipRight(Container.pause(box), Container.resume(box)),
  cgroup: (box) => Effect.flatMap(Container.cgroup(box), (cgroup) => Cgroup.update(cgroup, { pids: 100 })),
  logs: (box) => Stream.runCollect(Stream.take(Container.logs(box), 3)),
  copyIn: (box, folder) => Container.copyIn(box, `${folder}/source`, "/tmp/copied"),
  copyOut: (box, folder) => Container.copyOut(box, "/etc", `${folder}/out`),
  tarOut: (box) => Stream.runDrain(Container.tarOut(box, "/etc")),
  tarIn: (box) => Stream.run(Container.tarOut(box, "/etc"), Container.tarIn(box, "/tmp")),
  "fileSystem.writeFile": (box) => Container.fileSystem(box).writeFileString("/tmp/file", "text"),
  "fileSystem.readFile": (box) => Container.fileSystem(box).readFile("/etc/passwd"),
  "fileSystem.readDirectory": (box) => Container.fileSystem(box).readDirectory("/", { recursive: false }),
  "fileSystem.copy": (box) => Container.fileSystem(box).copy("/etc", "/tmp/etc", { overwrite: true }),
  "WaitFor.command": (box) => WaitFor.command(box, ["true"]),
  "WaitFor.log": (box) => WaitFor.log(box, /./),
  "a container in its namespaces": (box) =>
    Effect.flatMap(Image.host, (image) =>
      Container.run(image, { command: ["true"], namespaces: { pid: box, ipc: box, network: box } })
    ),
  commit: (box) => Container.commit(box)
}

const SECONDS_HELD = 3
const SECONDS_OTHERS = 30
const MEMORY_BYTES = 256 * 1024 ** 2

/** Each on a container: how it ended, of its own or at the limit. */
const each = (box: Container.Container, folder: string, seconds: number) =>
  Effect.forEach(Object.entries(operations), ([name, operation]) =>
    Effect.gen(function* () {
      fs.rmSync(`${folder}/out`, { recursive: true, force: true })
      const exit = yield* Effect.exit(Effect.scoped(Effect.timeout(operation(box, folder), seconds * 1000)))
      return [name, exit] as const
    })
  )

const failed = (ends: ReadonlyArray<readonly [string, Exit.Exit<unknown, unknown>]>): ReadonlyArray<string> =>
  ends.flatMap(([name, exit]) =>
    Exit.isFailure(exit) ? [`${name}: ${Cause.pretty(exit.cause).split("\n")[0]}`] : []
  )

suite("every operation on a container that attacks", (effect, folder) => {
  for (const { name, options } of modes) {
    effect(
      `${name}: each ends, by a result or by an error of its own, and works on an innocent container meanwhile`,
      function* () {
        const place = `${folder()}/operations-${name}`
        const root = `${place}/root`
        fs.mkdirSync(place, { recursive: true })
        compile(`${makeRoot(root)}/births`, "births.c")
        fs.writeFileSync(`${place}/source`, "source")
        const marker = `${place}/marker`
        fs.writeFileSync(marker, "unchanged")
        const image = yield* Image.import(root)
        const command = ["sh", "-c", "while :; do echo line; sleep 1; done"]
        const innocent = yield* Container.start(image, { ...options, command, limits: {} })
        // What cannot be done here at all (a cgroup without root, say) cannot be done under attack.
        const before = failed(yield* each(innocent, place, SECONDS_OTHERS)).map((text) => text.split(":")[0])
        const memory = process.memoryUsage().rss
        yield* Effect.scoped(
          Effect.gen(function* () {
            const attacker = yield* Container.start(image, { ...options, command: ["/births"], limits: {} })
            const attacked = yield* each(attacker, place, SECONDS_HELD)
            const defects = attacked.filter(([, exit]) => Exit.isFailure(exit) && Cause.isDie(exit.cause))
            assert.deepEqual(failed(defects), [])
            const others = failed(yield* each(innocent, place, SECONDS_OTHERS))
            assert.deepEqual(
              others.filter((text) => !before.includes(text.split(":")[0]!)),
              []
            )
          })
        ).pipe(Effect.timeout("4 minutes"))
        assert.ok(before.length <= 2, before.join("\n"))
        const grown = process.memoryUsage().rss - memory
        console.log("GROWN", grown / 1048576)
        assert.ok(grown < MEMORY_BYTES, `${grown} bytes more than before`)
        assert.equal(fs.readFileSync(marker, "utf8"), "unchanged")
      },
      { skip: whyNoBusybox }
    )
  }
})
