import assert from "node:assert/strict"
import * as fs from "node:fs"
import { createServer } from "node:net"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image, Namespace, RootFs, WaitFor } from "../../lib/index.ts"
import { limits } from "../../lib/internal/supervisor/connection.ts"
import { joiningImage } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { eventually } from "../support/leftovers.ts"
import { ended, firstLine, program } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

const skip = whyNoBusybox

const SIGKILL = 9
const SIGSTOP = 19

const listening = Effect.acquireRelease(
  Effect.async<ReturnType<typeof createServer>>((resume) => {
    const server = createServer().listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.sync(() => server.close())
)

/** Stops the attacker, and gives the lines that it has printed. */
const reportOf = (attacker: Container.Container) =>
  Effect.gen(function* () {
    yield* Effect.promise(() => fs.promises.writeFile(`/proc/${attacker.pid}/root/tmp/stop`, ""))
    yield* attacker.exit
    const lines = yield* Stream.runCollect(Container.logs(attacker))
    return Array.from(lines, ({ line }) => line)
  })

/** A script that prints what a container can read of the first process of its pid namespace. */
const LOOK = `
  for file in root/etc/shadow root/etc/hostname environ maps mem auxv fd/0 cwd/. exe; do
    (head -c 1 /proc/1/$file) >/dev/null 2>&1 && echo "read $file"
  done
  (: >/proc/1/root/tmp/written) 2>/dev/null && echo "wrote"
  ls -A /proc/1/root/ 2>/dev/null | sed 's/^/root has /'
  ls -A /proc/1/fd/ 2>/dev/null | sed 's/^/descriptor /'
  readlink /proc/1/cwd
  readlink /proc/1/exe
  sed 's/^/mount /' /proc/1/mountinfo
  sed 1d /proc/1/net/tcp | sed 's/^/socket /'
  echo looked`

// Root owns the folder of descriptors, and so can list it.
const standardStreams = /^descriptor [012]$/

suite("processes that join a container", (effect, folder) => {
  for (const { name, options } of modes) {
    for (const kinds of [["pid"], ["pid", "mount", "network"]] as const) {
      for (const add of [[], ["SYS_PTRACE"]] as const) {
        const who = add.length === 0 ? "" : " with CAP_SYS_PTRACE"
        effect(
          `${name}: a container${who} sees nothing of the host through the holder of its ${kinds.join(", ")} namespaces`,
          function* () {
            fs.rmSync("/tmp/written", { force: true })
            yield* listening
            const holder = yield* Namespace.make(kinds)
            const { stdout } = yield* Container.run(yield* joiningImage, {
              ...options,
              namespaces: { pid: holder },
              command: ["sh", "-c", LOOK],
              capabilities: { add }
            })
            const lines = stdout.trim().split("\n")
            const mounts = lines.filter((line) => line.startsWith("mount "))
            assert.ok(mounts.length <= 2, stdout)
            for (const mount of mounts) assert.match(mount, / \/ \/ .* - (tmpfs|proc) /)
            const rest = lines.filter((line) => !mounts.includes(line))
            // With CAP_SYS_PTRACE the container can read these files, which hold nothing of the host.
            const traced =
              /^(read (environ|maps|mem|auxv|exe|fd\/0|cwd\/\.)|\/(.*\/empty)?|\/berth-supervisor)$/
            assert.deepEqual(
              rest.filter((line) => !standardStreams.test(line) && (add.length === 0 || !traced.test(line))),
              ["looked"]
            )
            assert.ok(!fs.existsSync("/tmp/written"))
          },
          { skip }
        )
      }
    }

    effect(
      `${name}: a process spawned into shared namespaces sees nothing of the host through their holder`,
      function* () {
        const kinds = ["pid", "mount", "uts", "ipc", "network", "cgroup"] as const
        const namespaces =
          options.userns === undefined
            ? yield* Namespace.make(kinds)
            : yield* Namespace.make([...kinds, "user"], { ids: "auto" })
        const userns = options.userns === undefined ? undefined : namespaces
        const rootfs = yield* RootFs.overlay(yield* joiningImage, { userns })
        for (let k = 0; k < 2; k++) {
          const process = yield* Container.spawn({ rootfs, namespaces, command: ["sh", "-c", LOOK] })
          yield* process.exit
          const lines = Array.from(yield* Stream.runCollect(Container.logs(process)), ({ line }) => line)
          assert.deepEqual(
            lines.filter(
              (line) => !/^mount .* \/ \/ .* - (tmpfs|proc) /.test(line) && !standardStreams.test(line)
            ),
            ["looked"]
          )
        }
      },
      { skip }
    )

    for (const add of [[], ["SYS_PTRACE"]] as const) {
      const who = add.length === 0 ? "" : " with CAP_SYS_PTRACE"
      effect(
        `${name}: a container${who} finds nothing of the host and no further privileges in an exec in it`,
        function* () {
          const server = yield* listening
          const { port } = server.address() as { readonly port: number }
          const marker = `${folder()}/marker-${name}-${add.length}`
          fs.writeFileSync(marker, "unchanged")
          fs.chmodSync(marker, 0o666)
          const hexadecimal = `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`
          const attacker = yield* Container.start(yield* joiningImage, {
            ...options,
            command: ["joining", "watch", marker, hexadecimal],
            capabilities: { add }
          })
          yield* WaitFor.log(attacker, "ready")
          // The container can trace an exec in it, and so delay it.
          for (let k = 0; k < 60; k++) yield* Container.exec(attacker, ["true"])
          const own = yield* Container.exec(attacker, [
            "sh",
            "-c",
            "awk '/^(CapEff|CapPrm|NoNewPrivs|Seccomp):/ { print $2 }' /proc/self/status"
          ])
          const [permitted, effective, ...others] = own.stdout.trim().split("\n")
          const report = yield* reportOf(attacker)
          assert.deepEqual(report, [
            "ready",
            "seen some",
            "roots 0",
            "mounts 0",
            "sockets 0",
            `credentials ${[effective, permitted, ...others].join(" ")}`
          ])
          assert.equal(fs.readFileSync(marker, "utf8"), "unchanged")
        },
        { skip }
      )
    }

    for (const number of [SIGSTOP, SIGKILL])
      effect(
        `${name}: a container that ${number === SIGSTOP ? "stops" : "kills"} every exec in it does not delay other containers`,
        function* () {
          const image = yield* joiningImage
          const innocent = yield* Container.start(image, { ...options, command: ["sleep", "1000"] })
          yield* Effect.scoped(
            Effect.gen(function* () {
              const command = ["joining", "signal", String(number)]
              const attacker = yield* Container.start(image, { ...options, command })
              yield* WaitFor.log(attacker, "ready")
              for (let k = 0; k < 15; k++) {
                // The exec may hang (and is interrupted), fail or succeed.
                const held = Effect.exit(
                  Container.exec(attacker, ["true"]).pipe(Effect.timeout("200 millis"))
                )
                const other = Container.exec(innocent, ["echo", "well"]).pipe(Effect.timeout("10 seconds"))
                const [, { stdout }] = yield* Effect.all([held, other], { concurrency: "unbounded" })
                assert.equal(stdout, "well\n")
              }
            })
          ).pipe(Effect.timeout("60 seconds"))
        },
        { skip }
      )

    effect(
      `${name}: a killed program leaves nothing, though a container stops every exec in it`,
      function* () {
        const place = `${folder()}/killed-${name}`
        const child = program("joiningVictim.ts", [place, name])
        yield* Effect.promise(() => firstLine(child))
        child.kill("SIGKILL")
        yield* Effect.promise(() => ended(child))
        const processes = () =>
          fs
            .readdirSync("/proc")
            .filter((pid) => /^\d+$/.test(pid))
            .filter((pid) => {
              try {
                const text = fs.readFileSync(`/proc/${pid}/cmdline`, "latin1")
                return text.includes(`${place}/`) || text.startsWith("joining\0")
              } catch {
                return false
              }
            })
        assert.ok(yield* Effect.promise(() => eventually(() => processes().length === 0)))
        assert.deepEqual(fs.readdirSync(`${place}/run`), [])
      },
      { skip }
    )
  }

  effect(
    "a start in the pid namespace of a container that stops it can be interrupted, and leaves nothing",
    function* () {
      const image = yield* joiningImage
      const attacker = yield* Container.start(image, { command: ["joining", "signal", String(SIGSTOP)] })
      yield* WaitFor.log(attacker, "ready")
      const before = fs.readdirSync(`/proc/${process.pid}/fd`).length
      for (let k = 0; k < 5; k++) {
        const started = Container.run(image, { command: ["true"], namespaces: { pid: attacker } })
        yield* Effect.exit(Effect.timeout(started, "200 millis"))
      }
      const opened = () => fs.readdirSync(`/proc/${process.pid}/fd`).length - before
      // The last descriptor of a mount is closed by another thread, a little later.
      assert.ok(yield* Effect.promise(() => eventually(() => opened() <= 1)), `${opened()} are left open`)
      assert.equal((yield* Container.run(image, { command: ["echo", "on"] })).stdout, "on\n")
    },
    { skip }
  )

  effect(
    "an exec that a container stops fails with a time-out",
    function* () {
      const attacker = yield* Container.start(yield* joiningImage, {
        command: ["joining", "signal", String(SIGSTOP)]
      })
      yield* WaitFor.log(attacker, "ready")
      const before = limits.start
      limits.start = 500
      yield* Effect.addFinalizer(() => Effect.sync(() => (limits.start = before)))
      // At least one of the execs is stopped before it executes its command.
      const one = Effect.flip(Effect.timeout(Container.exec(attacker, ["true"]), "5 seconds"))
      const error = yield* Effect.repeat(Effect.either(one), {
        until: (result) => result._tag === "Right" && result.right._tag === "OperationFailed",
        times: 50
      })
      assert.ok(error._tag === "Right" && error.right._tag === "OperationFailed")
      assert.equal(error.right.code, "ETIMEDOUT")
      assert.match(error.right.message, /did not execute its command within 0.5 seconds/)
    },
    { skip }
  )

  effect("a container sees the root of the first process of a shared pid namespace", function* () {
    const first = yield* Container.start(yield* Image.host, { command: ["sleep", "1000"] })
    const { stdout } = yield* Container.run(yield* Image.host, {
      command: [
        "sh",
        "-c",
        "cat /proc/1/comm; grep -c . /proc/self/mountinfo >/dev/null && ls /proc/1/cwd/ | wc -l"
      ],
      namespaces: { pid: first, user: "new" }
    })
    assert.match(stdout, /^sleep\n/)
  })
})
