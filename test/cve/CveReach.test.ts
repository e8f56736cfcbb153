import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Berth, Container, WaitFor } from "../../lib/index.ts"
import { attackImage, outcomes } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { commandOf, ended, firstLine, root } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = whyNoBusybox

const attack = (words: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.flatMap(attackImage, (image) =>
    Effect.map(Container.run(image, { ...options, command: ["attack", ...words] }), ({ stdout }) =>
      outcomes(stdout)
    )
  )

/** The path of the attacker's program on the host. */
const onHost = Effect.zipRight(
  attackImage,
  Effect.map(Berth.Berth, ({ folder }) => `${folder}/attack/bin/attack`)
)

/**
 * The outcomes of some attempts in a container whose starter has a terminal and a key in its session keyring. The kernel
 * passes the keyring on to all child processes.
 */
const inherited = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  const attacker = yield* onHost
  const words = ["key:berth-test", "add-key:berth-inside", "tiocsti", "tty"]
  const { command, args } = commandOf("inherits.ts", [folder, ...words])
  const line = [attacker, "in-session:berth-test", command, ...args].map((word) => `'${word}'`).join(" ")
  const done = yield* Effect.promise(() =>
    ended(
      spawn("script", ["-qfec", line, "/dev/null"], {
        cwd: root,
        env: { ...process.env, SHELL: "/bin/sh" },
        stdio: ["ignore", "pipe", "inherit"]
      })
    )
  )
  return { came: outcomes(done.stdout), said: done.stdout }
})

const whyNoScript = fs.existsSync("/usr/bin/script") ? false : "no script(1): apt-get install bsdutils"

suite("reach of a container", (effect, folder) => {
  effect(
    "CVE-2016-9962: a container cannot trace a process that joins it, nor write its memory",
    function* () {
      const capabilities = { add: ["SYS_PTRACE"] } as const
      const box = yield* Container.start(yield* attackImage, {
        command: ["attack", "ptrace-joiner"],
        capabilities
      })
      for (let k = 0; k < 40; k++)
        yield* Container.exec(box, ["true"], k % 4 === 0 ? { user: "1000", capabilities } : {})
      yield* Container.exec(box, ["touch", "/tmp/stop"])
      assert.equal((yield* box.exit).exitCode, 0)
      const lines = yield* Stream.runCollect(Container.logs(box))
      assert.deepEqual(
        Array.from(lines, ({ line }) => line),
        ["ptrace-joiner 0"]
      )
    },
    { skip }
  )

  effect(
    "a container cannot write to /sys, nor to /proc except files of processes",
    function* () {
      const before = fs.readFileSync("/proc/sys/kernel/core_pattern", "utf8")
      for (const options of [{}, { namespaces: { user: "new" } }] as const) {
        const { stdout } = yield* Container.run(yield* attackImage, {
          ...options,
          command: ["attack", "writable:/sys", "writable:/proc"]
        })
        const [sys, proc] = stdout.trim().split("\n")
        assert.equal(sys, "writable none")
        // Root can open mtrr, but changes it only with CAP_SYS_ADMIN; a write to pressure only registers a notification.
        assert.match(proc!, /^writable (none|((\/proc\/mtrr|\/proc\/pressure\/\w+),?)+)$/)
      }
      const names = [
        "kernel/core_pattern",
        "kernel/modprobe",
        "kernel/hotplug",
        "vm/panic_on_oom",
        "fs/binfmt_misc/register"
      ]
      const script = [
        ...names.map((name) => `/proc/sys/${name}`),
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper"
      ]
        .map((path) => `(echo x > ${path}) 2>/dev/null && echo ${path}`)
        .join("; ")
      const image = yield* attackImage
      for (const user of ["0", "1000"]) {
        const { stdout } = yield* Container.run(image, { command: ["sh", "-c", script], user })
        assert.equal(stdout, "")
      }
      assert.equal(fs.readFileSync("/proc/sys/kernel/core_pattern", "utf8"), before)
    },
    { skip }
  )

  effect(
    "a container cannot choose the program that core_pattern runs for a crash",
    function* () {
      const image = yield* attackImage
      const marker = `${folder()}/crashed`
      const script = `(echo '|/bin/touch ${marker}' > /proc/sys/kernel/core_pattern) 2>/dev/null && echo set; ulimit -c unlimited; sh -c 'kill -SEGV $$'; echo $?`
      const { stdout } = yield* Container.run(image, { command: ["sh", "-c", script] })
      assert.match(stdout, /^139\n$/)
      assert.ok(!fs.existsSync(marker))
    },
    { skip }
  )

  effect(
    "a container has no keys of another container or of an earlier exec in its keyrings",
    function* () {
      const program = yield* onHost
      const control = yield* Effect.promise(() =>
        ended(
          spawn(program, ["in-session:berth-test", program, "key:berth-test"], {
            stdio: ["ignore", "pipe", "pipe"]
          })
        )
      )
      assert.equal(control.stdout, "key ok\n", "the attempt itself works")
      const box = yield* Container.start(yield* attackImage, {
        command: ["sleep", "1000"],
        seccomp: "unconfined"
      })
      const first = yield* Container.exec(box, ["attack", "add-key:berth-first", "key:berth-first"])
      assert.equal(first.stdout, "add-key ok\nkey ok\n")
      assert.equal((yield* Container.exec(box, ["attack", "key:berth-first"])).stdout, "key ENOKEY\n")
      assert.deepEqual(yield* attack(["key:berth-first"], { seccomp: "unconfined" }), { key: "ENOKEY" })
      // The default seccomp policy refuses the system calls of keyrings.
      assert.deepEqual(yield* attack(["keyctl", "add_key", "request_key"]), {
        keyctl: "EPERM",
        add_key: "EPERM",
        request_key: "EPERM"
      })
    },
    { skip }
  )

  effect(
    "an abstract socket is reachable only from its own network namespace",
    function* () {
      const name = `berth-test-${process.pid}`
      const program = yield* onHost
      const listener = yield* killedAfter(() =>
        spawn(program, [`listen:${name}`], { stdio: ["ignore", "pipe", "inherit"] })
      )
      yield* Effect.promise(() => firstLine(listener))
      const words = [`abstract:${name}`]
      assert.deepEqual(yield* attack(words), { abstract: "ECONNREFUSED" })
      assert.deepEqual(yield* attack(words, { namespaces: { network: "host" } }), { abstract: "ok" })
      const image = yield* attackImage
      const box = yield* Container.start(image, { command: ["attack", `listen:${name}-inside`] })
      yield* WaitFor.log(box, "listening")
      const inside = [`abstract:${name}-inside`]
      assert.deepEqual(yield* attack(inside), { abstract: "ECONNREFUSED" })
      assert.deepEqual(yield* attack(inside, { namespaces: { network: "host" } }), {
        abstract: "ECONNREFUSED"
      })
      assert.deepEqual(yield* attack(inside, { namespaces: { network: box } }), { abstract: "ok" })
    },
    { skip }
  )

  effect(
    "netlink shows a container only its own loopback, and does not let it change the host's links",
    function* () {
      const words = ["links", "set-link"]
      const links = Object.keys(os.networkInterfaces())
      assert.deepEqual(yield* attack(words), { links: "1", "set-link": "EPERM" })
      assert.deepEqual(yield* attack(words, { namespaces: { user: "new" } }), {
        links: "1",
        "set-link": "EPERM"
      })
      // CAP_NET_ADMIN is enough for the container's own network namespace, and never for the host's.
      const administrator = yield* attack(words, { capabilities: { add: ["NET_ADMIN"] } })
      assert.deepEqual(administrator, { links: "1", "set-link": "ok" })
      const shared = yield* attack(["set-link"], { namespaces: { network: "host" } })
      assert.deepEqual(shared, { "set-link": "EPERM" })
      assert.deepEqual(Object.keys(os.networkInterfaces()), links)
    },
    { skip }
  )

  effect(
    "CVE-2017-5226: a container cannot type into its starter's terminal, nor read its starter's keys",
    function* () {
      const { came, said } = yield* inherited
      // The kernel answers EIO to every process if dev.tty.legacy_tiocsti is 0 (Linux 6.2).
      assert.match(String(came.tiocsti), /^(EPERM|EIO)$/, said)
      assert.equal(came.tty, "ENXIO")
      assert.deepEqual([came.key, came["add-key"]], ["ENOKEY", "ok"])
    },
    { skip: skip || whyNoScript }
  )

  effect(
    "CVE-2023-25809: a container sees no cgroup of the host, with and without a user namespace",
    function* () {
      const image = yield* attackImage
      const script =
        "grep -c cgroup /proc/self/mounts; for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name release_agent 2>/dev/null); do echo $f; done; (echo $$ > /sys/fs/cgroup/cgroup.procs) 2>/dev/null || echo refused"
      for (const options of [
        {},
        { limits: { memory: "64MiB" } },
        { namespaces: { user: "new" } },
        { capabilities: { add: ["ALL"] } }
      ] as const) {
        const { stdout } = yield* Container.run(image, { ...options, command: ["sh", "-c", script] })
        assert.equal(stdout, "0\nrefused\n")
      }
    },
    { skip }
  )
})
