import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Berth, Container, Image } from "../../lib/index.ts"
import {
  bytesOf,
  firstLineOf,
  gone,
  readInBackground,
  repeatUntil,
  run,
  sh,
  sleeper,
  sleepsIn,
  start
} from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { isAlive } from "../support/leftovers.ts"
import { makeImage, whyNoBusybox, withConfig } from "../support/rootfs.ts"

/** Runs in the container until the shell gets a signal that it handles. */
const untilSignal = "while :; do sleep 0.02; done"

suite("Container", (effect) => {
  effect("Container.run gives the exit code and what was written to each stream", function* () {
    const { exitCode, signal, stderr, stdout } = yield* run("echo out; echo err >&2; exit 7")
    assert.deepEqual([exitCode, signal, stdout, stderr], [7, undefined, "out\n", "err\n"])
  })

  effect(
    "an exit status has the signal that ended the command and the exit code that a shell gives it",
    function* () {
      const alone = yield* run("kill -SEGV $$", { namespaces: { pid: "host" } })
      assert.deepEqual([alone.signal, alone.exitCode], ["SIGSEGV", 139])
      // An init passes on the exit code of its command.
      const belowInit = yield* run("kill -SEGV $$", { init: true })
      assert.deepEqual([belowInit.signal, belowInit.exitCode], [undefined, 139])
    }
  )

  effect("an exit status has the CPU time and the memory that the command used", function* () {
    const { maxRssBytes, systemMicros, userMicros } = yield* run(
      "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    )
    assert.ok(userMicros + systemMicros > 1000, `${userMicros} + ${systemMicros}`)
    assert.ok(maxRssBytes > 100_000 && maxRssBytes < 1e9, String(maxRssBytes))
  })

  effect("a command reads what is written to stdin, and its end", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["cat"], stdin: "pipe" })
    const big = new Uint8Array(300_000).fill(97)
    const [out] = yield* Effect.all(
      [
        bytesOf(container.stdout),
        Stream.run(Stream.make(big, new TextEncoder().encode("end")), container.stdin)
      ],
      { concurrency: 2 }
    )
    assert.equal(out.length, 300_003)
    assert.ok(out.toString().endsWith("aend"))
    assert.equal((yield* container.exit).exitCode, 0)
  })

  effect("a command without stdin reads the end at once", function* () {
    assert.equal((yield* run("cat; echo $?")).stdout, "0\n")
  })

  effect("writing to the stdin of a container that has ended succeeds", function* () {
    const container = yield* start("exit 3", { stdin: "pipe" })
    yield* container.exit
    yield* Stream.run(Stream.make(new Uint8Array(1 << 20)), container.stdin)
  })

  effect("a command whose streams are null has no output", function* () {
    const result = yield* run("echo a; echo b >&2", { stdout: "null", stderr: "null" })
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ["", "", 0])
  })

  effect("the output of a command that dies in its first millisecond is complete", function* () {
    const results = yield* Effect.forEach(
      Array.from({ length: 20 }, (_, k) => k),
      (k) => run(`echo ${k}; kill -KILL $$`, { namespaces: { pid: "host" } }),
      { concurrency: 4 }
    )
    for (const [k, { signal, stdout }] of results.entries())
      assert.deepEqual([signal, stdout], ["SIGKILL", `${k}\n`])
  })

  effect("an exec sees the processes, files and namespaces of its container", function* () {
    const container = yield* start("echo hello > /tmp/seen; echo ready; exec sleep 1000")
    yield* firstLineOf(container)
    const result = yield* Container.exec(container, sh("cat /tmp/seen; cat /proc/1/comm; hostname; exit 5"))
    assert.equal(result.stdout, `hello\nsleep\n${container.id}\n`)
    assert.equal(result.exitCode, 5)
    for (const kind of ["mnt", "pid", "uts", "ipc", "net", "cgroup"]) {
      const { stdout } = yield* Container.exec(container, ["readlink", `/proc/self/ns/${kind}`])
      assert.equal(stdout.trim(), fs.readlinkSync(`/proc/${container.pid}/ns/${kind}`))
      assert.notEqual(stdout.trim(), fs.readlinkSync(`/proc/self/ns/${kind}`))
    }
  })

  effect(
    "an exec has the container's user, environment and working folder unless it is given others",
    function* () {
      const container = yield* start("exec sleep 1000", { env: { A: "1", B: "2" }, cwd: "/tmp", user: "1:1" })
      const script = sh("echo $A $B $PWD $(id -u):$(id -g)")
      assert.equal((yield* Container.exec(container, script)).stdout, "1 2 /tmp 1:1\n")
      const other = { env: { B: "3" }, cwd: "/", user: "0" }
      assert.equal((yield* Container.exec(container, script, other)).stdout, "1 3 / 0:0\n")
    }
  )

  effect("an exec has the HOME that the container was given", function* () {
    const container = yield* start("exec sleep 1000", { env: { HOME: "/data" } })
    assert.equal((yield* Container.exec(container, sh("echo $HOME"))).stdout, "/data\n")
  })

  effect("an exec has the container's resource limits", function* () {
    const container = yield* start("exec sleep 1000", { rlimits: { nofile: 64 } })
    assert.equal((yield* Container.exec(container, sh("ulimit -n"))).stdout, "64\n")
  })

  effect("an exec ends with its own scope, and its container runs on", function* () {
    const container = yield* sleeper
    const pid = yield* Effect.scoped(
      Effect.gen(function* () {
        const process = yield* Container.execStream(container, ["sleep", "1000"])
        assert.ok(isAlive(process.pid))
        return process.pid
      })
    )
    yield* gone(pid)
    assert.ok(isAlive(container.pid))
  })

  effect("an exec in a container that has ended fails with NotRunning", function* () {
    const container = yield* start("exit 0")
    yield* container.exit
    const error = yield* failure("ContainerError", Container.exec(container, ["true"]))
    assert.equal(error.reason, "NotRunning")
  })

  effect("everyone who waits for a container gets its exit status, however late", function* () {
    const container = yield* start("exit 9")
    const codes = yield* Effect.all([container.exit, Container.wait(container), container.exit], {
      concurrency: 3
    })
    assert.deepEqual(
      [...codes.map((status) => status.exitCode), (yield* container.exit).exitCode],
      [9, 9, 9, 9]
    )
  })

  effect("Container.stop ends a container that handles SIGTERM", function* () {
    const container = yield* start(`trap 'echo bye; exit 3' TERM; echo ready; ${untilSignal}`)
    yield* firstLineOf(container)
    const [took, status] = yield* Effect.timed(Container.stop(container, { grace: "10 seconds" }))
    assert.equal(status.exitCode, 3)
    assert.ok(Duration.toMillis(took) < 5000)
  })

  effect("Container.stop kills a container that does not end within the grace period", function* () {
    const container = yield* start(`trap '' TERM; echo ready; ${untilSignal}`)
    yield* firstLineOf(container)
    const [took, status] = yield* Effect.timed(Container.stop(container, { grace: "150 millis" }))
    assert.deepEqual([status.signal, status.exitCode], ["SIGKILL", 137])
    assert.ok(Duration.toMillis(took) >= 150)
  })

  effect("Container.stop sends the stop signal of the image", function* () {
    const image = withConfig(yield* Image.host, { stopSignal: "SIGUSR1" })
    const container = yield* Container.start(image, {
      command: sh(`trap 'exit 4' USR1; trap '' TERM; echo ready; ${untilSignal}`)
    })
    yield* firstLineOf(container)
    assert.equal((yield* Container.stop(container)).exitCode, 4)
  })

  effect(
    "Container.signal takes names and numbers, and does nothing once the container has ended",
    function* () {
      for (const signal of ["SIGHUP", "hup", 1, "1"]) {
        const container = yield* start(`trap 'exit 5' HUP; echo ready; ${untilSignal}`)
        yield* firstLineOf(container)
        yield* Container.signal(container, signal)
        assert.equal((yield* container.exit).exitCode, 5)
        yield* container.pipe(Container.signal("KILL"))
      }
    }
  )

  effect("the handle of a container whose scope has closed reaches no other container", function* () {
    const stale = yield* Effect.scoped(sleeper)
    const others = yield* Effect.all([sleeper, sleeper, sleeper])
    for (const signal of ["KILL", "TERM"]) yield* Container.signal(stale, signal)
    for (const other of others) assert.equal((yield* Container.exec(other, ["true"])).exitCode, 0)
    assert.equal((yield* failure("ContainerError", Container.exec(stale, ["true"]))).reason, "NotRunning")
  })

  effect("a container is killed with all its processes when its scope closes", function* () {
    const scope = yield* Scope.make()
    const container = yield* Scope.extend(start("sleep 1000 & setsid sleep 1000 & echo ready; wait"), scope)
    yield* firstLineOf(container)
    yield* repeatUntil(
      "two processes sleep",
      Container.exec(container, sh("cat /proc/[0-9]*/comm")),
      ({ stdout }) => stdout.match(/^sleep$/gm)?.length === 2
    )
    const children = fs.readFileSync(`/proc/${container.pid}/task/${container.pid}/children`, "utf8")
    yield* Scope.close(scope, Exit.void)
    yield* gone(container.pid, ...children.trim().split(" ").map(Number))
  })

  effect(
    "a container in the host's pid namespace is killed with all its processes when its scope closes",
    function* () {
      const pids = yield* Effect.scoped(
        Effect.gen(function* () {
          const container = yield* start("setsid sleep 1000 & echo $!; exec sleep 1000", {
            namespaces: { pid: "host" }
          })
          return [container.pid, Number(yield* firstLineOf(container))]
        })
      )
      yield* gone(...pids)
    }
  )

  effect("a container that writes what nobody reads is killed when its scope closes", function* () {
    const pid = yield* Effect.scoped(
      Effect.gen(function* () {
        const container = yield* start("exec cat /dev/zero")
        yield* sleepsIn(container.pid, "cat")
        return container.pid
      })
    )
    yield* gone(pid)
  })

  effect("the reader of a container's output ends when the container is killed", function* () {
    const reader = yield* Effect.scoped(
      Effect.gen(function* () {
        const { stdout } = yield* start("exec cat /dev/zero")
        const { begun, reader } = yield* readInBackground(stdout)
        yield* begun
        return reader
      })
    )
    assert.ok(Exit.isSuccess(yield* Fiber.await(reader)))
  })

  effect("a start, a run or an exec that is interrupted at any moment leaves nothing", function* () {
    const container = yield* sleeper
    const programs = [
      Effect.scoped(Effect.zipRight(sleeper, Effect.never)),
      run("echo a; exec sleep 1000", { limits: { pids: 20 } }),
      Container.exec(container, ["sleep", "1000"])
    ]
    yield* Effect.forEach(
      Array.from({ length: 45 }, (_, k) => k),
      (k) =>
        Effect.gen(function* () {
          const fiber = yield* Effect.fork(programs[k % 3]!)
          // The moment is what is tested.
          yield* Effect.sleep(Duration.millis(k / 2))
          yield* Fiber.interrupt(fiber)
        }),
      { concurrency: 3 }
    )
    const { stdout } = yield* Container.exec(container, sh("ls -d /proc/[0-9]* | wc -l"))
    assert.ok(Number(stdout) <= 5, `${stdout.trim()} processes are left in the container`)
  })

  effect("an interrupted exec ends what it has started in the background", function* () {
    const container = yield* sleeper
    const fiber = yield* Effect.fork(
      Container.exec(container, sh("sleep 1234 & sleep 1234 & touch /tmp/there; wait"))
    )
    const files = Container.fileSystem(container)
    yield* repeatUntil("/tmp/there exists", files.exists("/tmp/there"), (there) => there)
    yield* Fiber.interrupt(fiber)
    // A process that has been killed ends when it is scheduled next.
    yield* repeatUntil(
      "the end of the exec's children",
      Container.top(container),
      (all) => !all.some(({ command }) => command.includes("1234"))
    )
  })

  effect("fifty containers start and run at once", function* () {
    const results = yield* Effect.forEach(
      Array.from({ length: 50 }, (_, k) => k),
      (k) => run(`echo ${k}; sleep 0.05; exit ${k}`),
      { concurrency: "unbounded" }
    )
    for (const [k, { exitCode, stdout }] of results.entries())
      assert.deepEqual([stdout, exitCode], [`${k}\n`, k])
  })

  effect("a start that fails leaves no descriptor open in the surrounding scope", function* () {
    const image = yield* Image.host
    const count = () => fs.readdirSync("/proc/self/fd").length
    const attempt = failure("CommandFailed", Container.start(image, { command: ["/no/such"], stdin: "pipe" }))
    yield* attempt
    const before = count()
    for (let k = 0; k < 20; k++) yield* attempt
    assert.ok(count() - before < 20, `${count() - before} more descriptors after 20 failures`)
  })

  effect("two Berths in one folder do not disturb each other's containers", function* () {
    const { folder } = yield* Berth.Berth
    const container = yield* sleeper
    const other = yield* Effect.provide(run("echo other; ls /proc | grep -c '^[0-9]'"), berthIn(folder))
    assert.equal(other.exitCode, 0)
    assert.ok(isAlive(container.pid))
    assert.equal((yield* run("echo still")).stdout, "still\n")
  })

  effect("the init of a container reaps orphans and passes signals on", function* () {
    const container = yield* start("(sleep 0.01 & echo $!); exec sleep 1000", { init: true })
    const orphan = yield* firstLineOf(container)
    yield* repeatUntil(
      "the orphan is reaped",
      Container.exec(container, ["test", "-e", `/proc/${orphan}`]),
      ({ exitCode }) => exitCode === 1
    )
    const status = yield* Container.stop(container, { grace: "5 seconds" })
    assert.equal(status.exitCode, 143)
  })

  effect(
    "a container runs its image's entrypoint and command as the image's configuration says",
    function* () {
      const { folder } = yield* Berth.Berth
      const image = yield* makeImage(`${folder}/busybox`, {
        entrypoint: ["/bin/sh", "-c", 'echo "$0,$*,$GREETING,$PWD,$(id -u)"'],
        command: ["one", "two"],
        environment: { PATH: "/bin", GREETING: "hello there" },
        workingDirectory: "/made/for/it",
        user: "app"
      })
      assert.equal((yield* Container.run(image)).stdout, "one,two,hello there,/made/for/it,1000\n")
      const args = yield* Container.run(image, {
        command: ["x"],
        env: { GREETING: "bye" },
        user: "0",
        cwd: "/tmp"
      })
      assert.equal(args.stdout, "x,,bye,/tmp,0\n")
      const other = yield* Container.run(image, { entrypoint: [], command: ["echo", "just", "this"] })
      assert.equal(other.stdout, "just this\n")
    },
    { skip: whyNoBusybox }
  )
})
