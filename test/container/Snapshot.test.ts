import assert from "node:assert/strict"
import { type ChildProcess, execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { postgres } from "../../lib/fixtures.ts"
import { Berth, Container, Image, WaitFor } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { waitUntil } from "../support/containers.ts"
import { catchCopy, caught, manyFiles } from "../support/copying.ts"
import { allowTime, berthIn, failure, remove, suite, whyNotRoot } from "../support/effect.ts"
import { cgroupsOf, isAlive, until } from "../support/leftovers.ts"
import { firstLine, program } from "../support/program.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { service } from "../support/services.ts"

const debian = await service("postgres")

allowTime(120_000)

const tree = detect()
const skip: string | false =
  whyNoBusybox || (tree.controllers.freezer === undefined ? `no freezer: ${tree.missing("freezer")}` : false)

const changes = `
mkdir /srv; echo new > /srv/f; chown 5:6 /srv/f; chmod 4711 /srv/f; ln /srv/f /srv/g; ln /srv/f /h
touch -d @1000000000 /srv/old; ln -s /nowhere /srv/l; mkfifo /srv/p; chmod 2750 /srv
rm -r /home; rm /etc/group
rm -r /root; mkdir /root; echo here > /root/x
dd if=/dev/zero of=/sparse bs=1 count=1 seek=1G 2>/dev/null; echo end >> /sparse
`
const shown = `
cat /srv/f /root/x; stat -c %a:%u:%g:%h /srv/f /h; stat -c %Y /srv/old; readlink /srv/l; stat -c %F /srv/p; stat -c %a /srv
ls -d /home /etc/group 2>/dev/null; ls /root; stat -c %s /sparse; tail -c 4 /sparse; du /sparse | cut -f 1
`
const expected =
  "new\nhere\n4711:5:6:3\n4711:5:6:3\n1000000000\n/nowhere\nfifo\n2750\nx\n1073741829\nend\n4\n"

suite("Container.snapshot", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const keptFolder = () => `${berthFolder()}/layers/kept`
  const keptNames = () => (fs.existsSync(keptFolder()) ? fs.readdirSync(keptFolder()) : [])

  /** A container that has run the script, and goes on. */
  const after = (from: Image.Image, script: string, options: Container.StartOptions = {}) =>
    Effect.gen(function* () {
      const command = ["/bin/sh", "-c", `${script}\ntouch /ready; while :; do sleep 1; done`]
      const box = yield* Container.start(from, { command, ...options })
      yield* waitUntil("the script has ended", () => fs.existsSync(`/proc/${box.pid}/root/ready`))
      return box
    })

  const out = (from: Image.Image, script: string, options: Container.StartOptions = {}) =>
    Effect.map(
      Container.run(from, { command: ["/bin/sh", "-c", script], ...options }),
      ({ stdout }) => stdout
    )

  for (const upperSize of [undefined, "64MiB"]) {
    effect(
      `a container of a snapshot has all files of one that runs, with upperSize ${upperSize}`,
      function* () {
        const from = yield* image
        const box = yield* after(from, changes, { upperSize })
        const made = yield* Container.snapshot(box)
        assert.deepEqual(made.layers.slice(0, -1), from.layers)
        assert.equal(yield* out(made, shown), expected)
        // The container goes on, and the snapshot stays.
        yield* Container.exec(box, ["/bin/rm", "-r", "/srv"])
        assert.equal(yield* out(made, shown), expected)
      },
      { skip: skip || (upperSize !== undefined && whyNotRoot) }
    )
  }

  effect.asRoot(
    "a snapshot of a container with userns has the ids that its files have inside",
    function* () {
      const box = yield* after(yield* image, changes, { userns: "auto" })
      const made = yield* Container.snapshot(box)
      const { uid } = fs.statSync(`${made.layers.at(-1)}/srv/f`)
      assert.equal(uid, 5)
      assert.equal(yield* out(made, shown), expected)
      assert.equal(yield* out(made, shown, { userns: "auto" }), expected)
    },
    { skip }
  )

  effect(
    "the first layer of a key stays, and two snapshots of a key make one",
    function* () {
      const from = yield* image
      const [one, two] = yield* Effect.all([after(from, "echo 1 > /n"), after(from, "echo 2 > /n")])
      const before = keptNames().length
      const made = yield* Effect.all(
        [one!, two!].map((box) => Container.snapshot(box, { key: "n" })),
        { concurrency: 2 }
      )
      assert.deepEqual(made[1]!.layers, made[0]!.layers)
      assert.equal(keptNames().length, before + 1)
      const found = yield* Effect.provide(Image.kept(from, "n"), berthIn(berthFolder()))
      assert.deepEqual(Option.getOrThrow(found).layers, made[0]!.layers)
      const n = yield* out(made[0]!, "cat /n")
      yield* Container.exec(one!, ["/bin/sh", "-c", "echo 3 > /n"])
      assert.equal(yield* out(yield* Container.snapshot(one!, { key: "n" }), "cat /n"), n)
    },
    { skip }
  )

  effect(
    "a snapshot has the files of one moment",
    function* () {
      // Each file is whole, and the first is at most one ahead of the second.
      const writing =
        "i=0; while :; do i=$((i+1)); for f in a b; do echo $i > /$f.new; mv /$f.new /$f; done; touch /ready; done"
      const box = yield* Container.start(yield* image, { command: ["/bin/sh", "-c", writing] })
      yield* waitUntil("both files are there", () => fs.existsSync(`/proc/${box.pid}/root/ready`))
      let last = 0
      for (let round = 0; round < 5; round++) {
        const made = yield* Container.snapshot(box)
        const [a, b] = (yield* out(made, "cat /a /b")).split("\n").map(Number)
        assert.ok(a! - b! === 0 || a! - b! === 1, `${a} and ${b}`)
        assert.ok(a! >= last)
        last = a!
        yield* waitUntil(
          "the container goes on",
          () => Number(fs.readFileSync(`/proc/${box.pid}/root/a`, "utf8")) > last
        )
      }
    },
    { skip }
  )

  effect(
    "commands, pauses and resumes wait for a snapshot",
    function* () {
      const box = yield* after(yield* image, manyFiles)
      const isPaused = () => /paused/.test(String(box))
      const during = <A, E>(use: Effect.Effect<A, E>) =>
        Effect.gen(function* () {
          const copying = yield* Effect.fork(Container.snapshot(box))
          const pid = yield* caught
          const using = yield* Effect.fork(use)
          assert.ok(isPaused())
          process.kill(pid, "SIGCONT")
          yield* Fiber.join(copying)
          return yield* Fiber.join(using)
        })
      assert.equal((yield* during(Container.exec(box, ["/bin/true"]))).exitCode, 0)
      assert.ok(!isPaused())
      yield* during(Container.pause(box))
      assert.ok(isPaused())
      yield* Container.snapshot(box)
      assert.ok(isPaused())
      yield* during(Container.resume(box))
      assert.ok(!isPaused())
      const both = [Container.snapshot(box), Container.snapshot(box)]
      const [one, two] = yield* Effect.all(both, { concurrency: 2 })
      assert.notDeepEqual(one!.layers, two!.layers)
      assert.ok(!isPaused())
    },
    { skip }
  )

  effect(
    "a snapshot that is interrupted, or whose container is stopped or closed, leaves nothing",
    function* () {
      const { supervisor } = yield* Berth.Berth
      const before = keptNames()
      const left = () => fs.readdirSync(supervisor.folder).filter((name) => name.startsWith("copy-"))
      const scope = yield* Scope.make()
      const box = yield* Scope.extend(after(yield* image, manyFiles), scope)
      const interrupted = yield* Effect.fork(Container.snapshot(box, { key: "interrupted" }))
      yield* caught
      yield* Fiber.interrupt(interrupted)
      assert.deepEqual([left(), keptNames()], [[], before])
      assert.equal((yield* Container.exec(box, ["/bin/true"])).exitCode, 0)

      const stopped = yield* Effect.fork(failure("ContainerError", Container.snapshot(box)))
      const pid = yield* caught
      const stopping = yield* Effect.fork(Container.stop(box, { grace: "1 second" }))
      yield* box.exit
      process.kill(pid, "SIGCONT")
      assert.equal((yield* Fiber.join(stopped)).reason, "NotRunning")
      yield* Fiber.join(stopping)
      assert.deepEqual([left(), keptNames()], [[], before])

      const ended = yield* failure("ContainerError", Container.snapshot(box))
      assert.match(ended.message, /Container\.keep/)
      yield* Scope.close(scope, Exit.void)

      const other = yield* Scope.make()
      const closed = yield* Scope.extend(after(yield* image, manyFiles), other)
      const copying = yield* Effect.fork(Effect.either(Container.snapshot(closed)))
      const copier = yield* caught
      yield* Scope.close(other, Exit.void)
      process.kill(copier, "SIGCONT")
      assert.equal((yield* Fiber.join(copying))._tag, "Left")
      assert.deepEqual([left(), keptNames()], [[], before])
    },
    { skip }
  )

  for (const [how, end] of [
    ["the program", (child: ChildProcess) => child.kill("SIGKILL")],
    ["the supervisor", (_: ChildProcess, supervisor: number) => process.kill(supervisor, "SIGKILL")]
  ] as const)
    effect(
      `a snapshot leaves nothing when ${how} is killed meanwhile`,
      function* () {
        yield* Effect.promise(async () => {
          const at = `${berthFolder()}-${how.replace("the ", "")}`
          fs.mkdirSync(at, { recursive: true })
          const child = program("snapshotting.ts", [at], { stdio: ["ignore", "pipe", "inherit"] })
          const { folder, pid, supervisor } = JSON.parse(await firstLine(child)) as {
            folder: string
            pid: number
            supervisor: number
          }
          const copier = await catchCopy(folder)
          end(child, supervisor)
          await until("the end of the copy", () => !isAlive(copier))
          if (how === "the supervisor") child.kill("SIGKILL")
          // The next Berth in that folder releases what is left.
          const next = program("snapshotting.ts", [at, "end"], { stdio: ["ignore", "pipe", "inherit"] })
          await new Promise((resolve) => next.once("exit", resolve))
          await until("the end of the frozen process", () => !isAlive(pid))
          await until("the state folder is gone", () => fs.readdirSync(`${at}/run`).length === 0)
          await until("no cgroup is left", () => cgroupsOf([child.pid!]).length === 0)
          assert.ok(!fs.existsSync(`${at}/layers/kept`) || fs.readdirSync(`${at}/layers/kept`).length === 0)
          remove(at)
        })
      },
      { skip }
    )

  effect.asRoot(
    "a snapshot on a full disk fails with the reason, and leaves nothing",
    function* () {
      const mounted = `${berthFolder()}-small`
      fs.mkdirSync(mounted)
      yield* Effect.acquireRelease(
        Effect.sync(() => execFileSync("mount", ["-t", "tmpfs", "-o", "size=48m", "tmpfs", mounted])),
        () => Effect.sync(() => execFileSync("umount", [mounted]))
      )
      const from = yield* image
      const full = Effect.gen(function* () {
        const box = yield* after(from, "dd if=/dev/urandom of=/large bs=1M count=30 2>/dev/null")
        for (const key of [undefined, "full"]) {
          const error = yield* failure("ImageError", Container.snapshot(box, { key }))
          assert.equal(error.reason, "Storage")
          assert.match(error.message, /the disk is full \(ENOSPC\): make room on the filesystem of /)
        }
        const { folder } = yield* Berth.Berth
        assert.deepEqual(fs.readdirSync(`${folder}/layers/kept`), [])
        const more = "dd if=/dev/urandom of=/more bs=1M count=10 2>/dev/null"
        assert.equal((yield* Container.exec(box, ["/bin/sh", "-c", more])).exitCode, 0)
        yield* Container.exec(box, ["/bin/rm", "/large"])
        yield* Container.snapshot(box, { key: "full" })
      })
      yield* Effect.provide(Effect.scoped(full), berthIn(`${mounted}/berth`))
    },
    { skip }
  )

  effect(
    "what cannot be copied is refused",
    function* () {
      const from = yield* image
      const memory = yield* after(from, "", { upper: "memory" })
      assert.match((yield* failure("InvalidOption", Container.snapshot(memory))).message, /upper: "disk"/)
      const shared = yield* after(from, "", { namespaces: { pid: "host" } })
      assert.match((yield* failure("InvalidOption", Container.snapshot(shared))).message, /pid namespace/)
      const box = yield* after(from, "dd if=/dev/zero of=/large bs=1k count=100 2>/dev/null")
      for (const key of ["", "k".repeat(1025)])
        assert.equal((yield* failure("InvalidOption", Container.snapshot(box, { key }))).option, "key")
      const large = yield* failure("ImageError", Container.snapshot(box, { maxBytes: "64KiB" }))
      assert.equal(large.reason, "TooLarge")
      assert.match(large.message, /large: .*maxBytes/)
      assert.equal(
        (yield* failure("InvalidOption", Container.snapshot(box, { maxBytes: -1 }))).option,
        "maxBytes"
      )
      yield* Container.snapshot(box, { maxBytes: "200KiB" })
    },
    { skip }
  )
})

suite("Container.fork", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const kept = () => {
    const folder = `${berthFolder()}/layers/kept`
    return fs.existsSync(folder) ? fs.readdirSync(folder) : []
  }

  for (const [name, options] of [
    ["", {}],
    [" with userns", { userns: "auto" }]
  ] as ReadonlyArray<readonly [string, Container.StartOptions]>)
    effect(
      `forks of a container${name} have its options and its files, and change their own`,
      function* () {
        const serve = "[ -e /n ] || echo 0 > /n; echo $NAME; exec cat"
        const box = yield* Container.start(yield* image, {
          ...options,
          command: ["/bin/sh", "-c", serve],
          env: { NAME: "given" },
          stdin: "pipe"
        })
        yield* WaitFor.log(box, "given")
        yield* Container.exec(box, ["/bin/sh", "-c", "echo 1 > /n; chown 5:6 /n"])
        const scope = yield* Scope.make()
        const forks = yield* Scope.extend(Container.fork(box, { count: 3 }), scope)
        assert.equal(forks.length, 3)
        for (const [index, fork] of forks.entries()) {
          yield* WaitFor.log(fork, "given")
          const { stdout } = yield* Container.exec(fork, [
            "/bin/sh",
            "-c",
            `cat /n; stat -c %u:%g /n; echo fork ${index} > /n`
          ])
          assert.equal(stdout, "1\n5:6\n")
        }
        for (const [index, fork] of forks.entries())
          assert.equal((yield* Container.exec(fork, ["/bin/cat", "/n"])).stdout, `fork ${index}\n`)
        assert.equal((yield* Container.exec(box, ["/bin/cat", "/n"])).stdout, "1\n")
        assert.equal(kept().length, 1)
        const again = yield* Scope.extend(Container.fork(forks[0]!, { env: { NAME: "other" } }), scope)
        yield* WaitFor.log(again[0]!, "other")
        yield* Scope.close(scope, Exit.void)
        assert.deepEqual(kept(), [])
      },
      { skip: skip || (name !== "" && whyNotRoot) }
    )

  effect(
    "a fork that cannot start leaves no other",
    function* () {
      const box = yield* Container.start(yield* image, { command: ["/bin/cat"], stdin: "pipe" })
      yield* failure("CommandFailed", Container.fork(box, { count: 3, command: ["/nowhere"] }))
      for (const count of [0, -1, 1.5, 1001])
        assert.equal((yield* failure("InvalidOption", Container.fork(box, { count }))).option, "count")
      assert.deepEqual(kept(), [])
    },
    { skip }
  )

  effect(
    "a layer that a key needs stays when the forks are gone",
    function* () {
      const from = yield* image
      const box = yield* Container.start(from, { command: ["/bin/cat"], stdin: "pipe" })
      const made = yield* Effect.scoped(
        Effect.gen(function* () {
          const [fork] = yield* Container.fork(box)
          return yield* Container.snapshot(fork!, { key: "of a fork" })
        })
      )
      const { exitCode } = yield* Container.run(made, { command: ["/bin/true"] })
      assert.equal(exitCode, 0)
      assert.equal(kept().length, 2)
    },
    { skip }
  )

  effect(
    "forks of a PostgreSQL that runs recover what it has committed",
    function* () {
      const source = yield* postgres({ version: "15", image: debian.image }).open
      const { container } = yield* source.fork()
      const query = (box: Container.Container, sql: string) =>
        Effect.map(
          Container.exec(box, ["psql", "-X", "-t", "-A", "-c", sql]),
          ({ exitCode, stderr, stdout }) => {
            assert.equal(exitCode, 0, stderr)
            return stdout.trim()
          }
        )
      yield* query(container, "create table t as select n from generate_series(1, 1000) n")
      const forks = yield* Container.fork(container, { count: 5 })
      for (const [index, fork] of forks.entries()) {
        yield* WaitFor.log(fork, "database system is ready to accept connections")
        yield* query(fork, `insert into t values (${index})`)
      }
      yield* query(container, "insert into t values (1000000)")
      for (const [index, fork] of forks.entries())
        assert.equal(yield* query(fork, "select sum(n), count(*) from t"), `${500500 + index}|1001`)
      assert.equal(yield* query(container, "select sum(n) from t"), "1500500")
    },
    { skip: skip || debian.missing }
  )
})
