import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Network } from "../../lib/index.ts"
import { whyNotNobody } from "../support/asNobody.ts"
import { berthIn, failure, makeTemporaryFolder, remove, suite, whyNotRoot } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { eventually } from "../support/leftovers.ts"
import { commandOf, ended, firstLine } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const whyNoPasta = spawnSync("pasta", ["--version"]).status === 0 ? false : "no pasta: apt-get install passt"

const whyNoMachine =
  whyNotRoot || whyNoBusybox || whyNoPasta || (fs.existsSync("/sbin/ip") ? false : "needs iproute2")

/** A script of test/support in network and mount namespaces of its own. */
const onItsOwn = (script: string, parameters: ReadonlyArray<string>) => {
  const { args, command } = commandOf(script, parameters)
  return spawn("unshare", ["--net", "--mount", command, ...args], { stdio: ["pipe", "pipe", "inherit"] })
}

const isThere = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) Z/s.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

/** Runs an effect while programs are looked for in one folder alone. */
const withPath = <A, E, R>(path: string, effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const before = process.env.PATH
      process.env.PATH = path
      return before
    }),
    () => effect,
    (before) => Effect.sync(() => (process.env.PATH = before))
  )

/** A folder that other users reach, until the scope closes. */
const place = Effect.acquireRelease(
  Effect.sync(() => {
    const made = makeTemporaryFolder()
    fs.chmodSync(made, 0o755)
    return made
  }),
  (made) => Effect.sync(() => remove(made))
)

suite("outbound by pasta", (effect) => {
  for (const ids of ["host", "auto", "nobody"])
    effect(
      `with the ids of ${ids}: UDP, ICMP, TCP and names lead outside, and nothing to this machine or other networks, and so by a second pasta after the end of the first, which has no capability over the machine`,
      function* () {
        const child = onItsOwn("pasta.ts", [yield* place, ids])
        const { code, stdout } = yield* Effect.promise(() => ended(child))
        assert.equal(code, 0, stdout)
        const both = ["10.99.0.1, hello", "fd99::1, hello"]
        assert.deepEqual(JSON.parse(stdout), {
          // It is an unprivileged user of the machine, and has rights over the namespaces of its own user namespace alone.
          confined: {
            ids: ["65534"],
            maps: ["0 65534 1", "0 65534 1"],
            more: [],
            noNewPrivileges: "1",
            filtered: "2",
            otherNamespaces: ["user", "mnt", "ipc", "uts"]
          },
          connected: {
            "10.99.0.2 80": "10.99.0.2 80, hello",
            "fd99::2 80": "fd99::2 80, hello",
            "mirror.test 81": "fd99::2 81, hello",
            "no.test 80": "no such name"
          },
          sent: [both, both, both],
          large: both.map((text) => String(60_000 + text.length - "hello".length)),
          pinged: [true, true],
          again: [both[0], both[0]],
          warned: [
            "pasta, by which UDP and ICMP leave networks, has ended (status 9 of wait(2)); it starts again"
          ],
          stranger: "stranger",
          refused: [],
          heard: [],
          pastas: 1,
          code: 0,
          stderr: ""
        })
      },
      { skip: whyNoMachine || (ids === "nobody" && whyNotNobody) }
    )

  for (const killed of ["program", "supervisor", "none"] as const)
    effect(
      killed === "none" ? "pasta ends with its Berth" : `pasta ends when its ${killed} is killed`,
      function* () {
        const berth = `${yield* place}/berth`
        const child = yield* killedAfter(() => onItsOwn("pastaVictim.ts", [berth]))
        const pids = JSON.parse(yield* Effect.promise(() => firstLine(child)))
        assert.ok(isThere(pids.pasta))
        const gone = ended(child)
        if (killed !== "none") process.kill(pids[killed], "SIGKILL")
        child.stdin!.end()
        yield* Effect.promise(() => gone)
        for (const name of ["pasta", "supervisor"])
          assert.ok(yield* Effect.promise(() => eventually(() => !isThere(pids[name]))), name)
      },
      { skip: whyNoMachine }
    )

  effect(
    "without /dev/net/tun the error says so, and no file is made in its place",
    function* () {
      const child = onItsOwn("pastaWithoutDevice.ts", [`${yield* place}/berth`])
      const { stdout } = yield* Effect.promise(() => ended(child))
      assert.match(stdout, /^Unsupported: .*this machine has no \/dev\/net\/tun: \w+.*\n\n$/)
    },
    { skip: whyNoMachine }
  )

  effect("without pasta, or with one that is too old, the error names the package", function* () {
    const made = yield* place
    const make = Effect.scoped(Network.make({ outbound: "pasta" }))
    const missing = yield* failure("Unsupported", withPath(made, make))
    assert.match(missing.message, /outbound: "pasta": pasta is not installed.*apt-get install passt/)
    const script = "#!/bin/sh\necho \"pasta: unrecognized option '--no-map-gw'\" >&2\nexit 1\n"
    fs.writeFileSync(`${made}/pasta`, script, { mode: 0o755 })
    const old = yield* failure("Unsupported", withPath(made, make))
    assert.match(old.message, /unrecognized option '--no-map-gw'.*apt-get install passt/)
  })

  effect("a network that waits for pasta fails when the Berth closes", function* () {
    const made = yield* place
    const seconds = `1000.${process.pid}`
    fs.writeFileSync(`${made}/pasta`, `#!/bin/sh\nexec /bin/sleep ${seconds}\n`, { mode: 0o755 })
    const isWaiting = () => spawnSync("/usr/bin/pgrep", ["-fx", `/bin/sleep ${seconds}`]).status === 0
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(berthIn(`${made}/berth`), scope)
    const make = Network.make({ outbound: "pasta" }).pipe(Effect.scoped, Effect.provide(context))
    const making = yield* withPath(
      made,
      Effect.zipLeft(
        Effect.forkDaemon(make),
        Effect.promise(async () => assert.ok(await eventually(isWaiting)))
      )
    )
    yield* Scope.close(scope, Exit.void)
    const exit = yield* Effect.timeoutOption(Fiber.await(making), "15 seconds")
    assert.ok(Option.isSome(exit) && Exit.isFailure(exit.value), String(exit))
    assert.ok(!isWaiting())
  })

  effect("a list is refused beside it", function* () {
    const outbound = { allow: ["registry.example.com"], pasta: true }
    const { message } = yield* failure("InvalidOption", Effect.scoped(Network.make({ outbound })))
    assert.match(message, /outbound: .*pasta.*no list/)
  })
})
