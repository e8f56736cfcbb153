import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Container, Image, Security } from "../../lib/index.ts"
import { maskOf } from "../../lib/internal/security/capabilities.ts"
import { attackImage } from "../support/attack.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = whyNoBusybox

const run = (options: Container.StartOptions) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, options))

const sets = (options: Container.StartOptions) =>
  Effect.map(
    run({ ...options, command: ["grep", "^Cap", "/proc/self/status"] }),
    ({ stdout }): Readonly<Record<string, bigint>> =>
      Object.fromEntries(
        [...stdout.matchAll(/^Cap(\w+):\s*(\w+)$/gm)].map(([, name, hex]) => [name, BigInt(`0x${hex}`)])
      )
  )

/** The result of an effect, and the warnings that it logged. */
const withWarnings = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const warnings: Array<string> = []
    const logger = Logger.make(({ logLevel, message, annotations }) => {
      if (logLevel._tag === "Warning" && HashMap.isEmpty(annotations)) warnings.push(String(message))
    })
    return Effect.map(
      Effect.provide(effect, Layer.merge(Logger.replace(Logger.defaultLogger, logger), Layer.empty)),
      (result) => ({ result, warnings })
    )
  })

const mayRaise =
  ((BigInt(
    `0x${/^CapEff:\s*(\w+)$/m.exec(process.platform === "linux" ? fs.readFileSync("/proc/self/status", "utf8") : "CapEff: 0")![1]}`
  ) >>
    24n) &
    1n) ===
  1n

suite("Security", (effect) => {
  effect("a container has the capabilities that remain after drop and then add", function* () {
    const usual = maskOf(Security.defaultCapabilities)
    const plain = yield* sets({})
    assert.deepEqual(plain, { Inh: 0n, Prm: usual, Eff: usual, Bnd: usual, Amb: 0n })
    const two = maskOf(["NET_BIND_SERVICE", "KILL"])
    const few = yield* sets({
      capabilities: { drop: ["ALL"], add: ["NET_BIND_SERVICE", "CAP_KILL" as never] }
    })
    assert.deepEqual(few, { Inh: 0n, Prm: two, Eff: two, Bnd: two, Amb: 0n })
    const none = yield* sets({ capabilities: { drop: ["ALL"] } })
    assert.deepEqual(none, { Inh: 0n, Prm: 0n, Eff: 0n, Bnd: 0n, Amb: 0n })
  })

  effect("ambient capabilities reach a non-root command, in a start and in an exec", function* () {
    const one = maskOf(["NET_BIND_SERVICE"])
    const capabilities = { drop: ["ALL"], ambient: ["NET_BIND_SERVICE"] } as const
    const expected = { Inh: one, Prm: one, Eff: one, Bnd: one, Amb: one }
    assert.deepEqual(yield* sets({ user: "1000", capabilities }), expected)
    const without = yield* sets({
      user: "1000",
      capabilities: { drop: ["ALL"], add: ["NET_BIND_SERVICE"] }
    })
    assert.deepEqual(without, { Inh: 0n, Prm: 0n, Eff: 0n, Bnd: one, Amb: 0n })
    const box = yield* Container.start(yield* Image.host, {
      command: ["sleep", "1000"],
      user: "1000",
      capabilities
    })
    const read = ["sh", "-c", "grep CapEff /proc/self/status"]
    const hex = one.toString(16).padStart(16, "0")
    assert.equal((yield* Container.exec(box, read)).stdout, `CapEff:\t${hex}\n`)
    const other = yield* Container.exec(box, read, { capabilities: { drop: ["ALL"] } })
    assert.equal(other.stdout, "CapEff:\t0000000000000000\n")
    const wrong = yield* failure("InvalidOption", sets({ capabilities: { ambient: ["ALL" as never] } }))
    assert.equal(wrong.option, "capabilities.ambient")
  })

  effect(
    "a resource limit above the hard limit is raised if allowed, and otherwise reduced with a warning",
    function* () {
      const limits = ["sh", "-c", "ulimit -Sn; ulimit -Hn"]
      const hard = (yield* run({ command: ["sh", "-c", "ulimit -Hn"] })).stdout.trim()
      const asked = Math.min(Number(hard) + 1000, 1 << 20)
      const { result, warnings } = yield* withWarnings(run({ command: limits, rlimits: { nofile: asked } }))
      const now = mayRaise ? String(asked) : hard
      assert.equal(result.stdout, `${now}\n${now}\n`)
      if (mayRaise) assert.deepEqual(warnings, [])
      else assert.match(warnings.join(), new RegExp(`rlimits.nofile: ${asked} is above .* it is ${hard}$`))
      // No capability of a new user namespace allows a process to raise it.
      const inside = yield* withWarnings(
        run({ command: limits, rlimits: { nofile: asked }, namespaces: { user: "new" } })
      )
      assert.equal(inside.result.stdout, `${hard}\n${hard}\n`)
      assert.equal(inside.warnings.length, 1)
      const box = yield* Container.start(yield* Image.host, { command: ["sleep", "1000"] })
      const executed = yield* withWarnings(
        Container.exec(box, limits, { rlimits: { nofile: { soft: 100, hard: asked } } })
      )
      assert.equal(executed.result.stdout, `100\n${now}\n`)
      assert.equal(executed.warnings.length, mayRaise ? 0 : 1)
      const fine = yield* withWarnings(run({ command: limits, rlimits: { nofile: 64, core: 0 } }))
      assert.deepEqual([fine.result.stdout, fine.warnings], ["64\n64\n", []])
    }
  )

  effect(
    "hidepid hides the processes of other users",
    function* () {
      const image = yield* attackImage
      const seen = (hidepid: Container.StartOptions["hidepid"]) =>
        Effect.scoped(
          Effect.gen(function* () {
            const box = yield* Container.start(image, { command: ["sleep", "1000"], hidepid })
            const script =
              "[ -d /proc/1 ] && echo there; cat /proc/1/cmdline >/dev/null 2>&1 && echo readable"
            return (yield* Container.exec(box, ["sh", "-c", script], { user: "1000" })).stdout
          })
        )
      assert.equal(yield* seen(undefined), "there\nreadable\n")
      assert.equal(yield* seen("off"), "there\nreadable\n")
      assert.equal(yield* seen("noaccess"), "there\n")
      assert.equal(yield* seen("invisible"), "")
      assert.equal(yield* seen("ptraceable"), "")
      const wrong = yield* failure("InvalidOption", run({ command: ["true"], hidepid: "yes" as never }))
      assert.equal(wrong.option, "hidepid")
    },
    { skip }
  )

  effect(
    "kernel parameters are set in the container's own namespaces, and all others are refused",
    function* () {
      const name = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
      const before = fs.readFileSync(name, "utf8")
      const sysctls = {
        "net.ipv4.ip_unprivileged_port_start": "7",
        "kernel.msgmax": "4097",
        "fs.mqueue.msg_max": "11",
        "kernel.domainname": "example.test"
      }
      const paths = Object.keys(sysctls).map((key) => `/proc/sys/${key.replaceAll(".", "/")}`)
      const { stdout } = yield* run({ command: ["cat", ...paths], sysctls })
      assert.deepEqual(stdout.trim().split("\n"), Object.values(sysctls))
      assert.equal(fs.readFileSync(name, "utf8"), before)
      for (const key of [
        "kernel.core_pattern",
        "kernel.panic",
        "kernel.modprobe",
        "vm.overcommit_memory",
        "fs.file-max",
        "kernel.shmall2",
        "kernel.pid_max",
        "user.max_user_namespaces",
        "dev.tty.legacy_tiocsti"
      ]) {
        const error = yield* failure("InvalidOption", run({ command: ["true"], sysctls: { [key]: "1" } }))
        assert.match(error.message, /parameter of a namespace/, key)
      }
      const shared = yield* failure(
        "InvalidOption",
        run({ command: ["true"], namespaces: { network: "host" }, sysctls: { "net.ipv4.ip_forward": "1" } })
      )
      assert.match(shared.message, /a network namespace of its own/)
    }
  )

  effect("maskedPaths, readonlyPaths and readOnly take effect as given", function* () {
    const script =
      "cat /etc/passwd | wc -c; ls /usr/share | wc -l; (echo x > /etc/x) 2>/dev/null || echo refused; (echo x > /opt/x) 2>/dev/null && echo written"
    const { stdout } = yield* run({
      command: ["sh", "-c", script],
      maskedPaths: ["/etc/passwd", "/usr/share", "/no/such"],
      readonlyPaths: ["/etc", "/no/such"]
    })
    // Without root, the host's folders are always read-only.
    assert.equal(stdout, `0\n0\nrefused\n${process.getuid?.() === 0 ? "written\n" : ""}`)
    const root = yield* run({
      command: ["sh", "-c", "(echo x > /opt/x) 2>/dev/null || echo refused"],
      readOnly: true
    })
    assert.equal(root.stdout, "refused\n")
  })
})
