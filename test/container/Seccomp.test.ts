import assert from "node:assert/strict"
import * as fs from "node:fs"
import { describe, test } from "node:test"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import fc from "fast-check"
import { Berth, Container, Image, Security } from "../../lib/index.ts"
import * as Bpf from "../../lib/internal/security/bpfSearch.ts"
import { maskOf } from "../../lib/internal/security/capabilities.ts"
import { assemble, kept } from "../../lib/internal/security/seccomp.ts"
import { native } from "../../lib/internal/system/addon.ts"
import { attackImage, outcomes } from "../support/attack.ts"
import { allowTime, failure, suite, whyNoContainers } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = whyNoBusybox

/** The outcome of each of these attempts in a container with these options. */
const attack = (words: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.flatMap(attackImage, (image) =>
    Effect.map(Container.run(image, { ...options, command: ["attack", ...words] }), ({ stdout }) =>
      outcomes(stdout)
    )
  )

const denied = [
  "mount",
  "umount",
  "unshare",
  "setns",
  "pivot_root",
  "keyctl",
  "add_key",
  "request_key",
  "bpf",
  "perf_event_open",
  "io_uring_setup",
  "userfaultfd",
  "kexec_load",
  "init_module",
  "reboot",
  "clock_settime",
  "swapon",
  "open_by_handle_at",
  "fsopen",
  "clone-user",
  "alg",
  "vsock",
  "no-randomization"
]

const allowed = ["unix", "inet", "fork", "personality", "getpid", "getcpu", "mkdir", "traceme"]

const expected = {
  ...Object.fromEntries(denied.map((word) => [word, "EPERM"])),
  ...Object.fromEntries(allowed.map((word) => [word, "ok"])),
  // glibc falls back for this error alone.
  clone3: "ENOSYS",
  future: "ENOSYS"
}

const everything = Object.keys(expected)

const profile = (
  syscalls: ReadonlyArray<Security.SeccompRule>,
  rest: Partial<Security.SeccompProfile> = {}
): Security.SeccompProfile => ({ defaultAction: "SCMP_ACT_ALLOW", syscalls, ...rest })

const modeOf = (stdout: string): string => /Seccomp:\s*(\d)/.exec(stdout)![1]!

suite("Seccomp", (effect) => {
  effect(
    "the default policy denies and allows the same system calls as Docker's",
    function* () {
      yield* Effect.map(attack(everything), (came) => assert.deepEqual(came, expected))
    },
    { skip }
  )

  effect(
    "the default policy holds for every user, with an init, new privileges, a user namespace or a terminal",
    function* () {
      for (const options of [
        { user: "1000" },
        { noNewPrivileges: false },
        { noNewPrivileges: false, user: "1000" },
        { namespaces: { user: "new" } },
        { namespaces: { user: "new" }, noNewPrivileges: false },
        { terminal: true },
        ...(process.env.BERTH_NATIVE?.includes("sanitize") === true ? [] : [{ init: true }])
      ] satisfies ReadonlyArray<Container.StartOptions>)
        assert.deepEqual(yield* attack(everything, options), expected, JSON.stringify(options))
    },
    { skip }
  )

  effect(
    "an exec has its container's policy unless it is given its own",
    function* () {
      const image = yield* attackImage
      const box = yield* Container.start(image, { command: ["sleep", "1000"] })
      const words = (command: ReadonlyArray<string>, options?: Container.ExecOptions) =>
        Effect.map(Container.exec(box, command, options), ({ stdout }) => outcomes(stdout))
      assert.deepEqual(yield* words(["attack", ...everything]), expected)
      assert.deepEqual(yield* words(["attack", ...everything], { user: "1000" }), expected)
      const uname = profile([{ names: ["uname"], action: "SCMP_ACT_ERRNO", errnoRet: 99 }])
      const own = yield* words(["attack", "uname", "clone3"], { seccomp: uname })
      assert.deepEqual(own, { uname: "EADDRNOTAVAIL", clone3: "EINVAL" })
      const named = yield* Container.start(image, { command: ["sleep", "1000"], seccomp: uname })
      const { stdout } = yield* Container.exec(named, ["attack", "uname"])
      assert.deepEqual(outcomes(stdout), { uname: "EADDRNOTAVAIL" })
      const open = yield* Container.start(image, { command: ["sleep", "1000"], seccomp: "unconfined" })
      const status = yield* Container.exec(open, ["cat", "/proc/self/status"])
      assert.equal(modeOf(status.stdout), "0")
    },
    { skip }
  )

  effect("a container has one filter, and an unconfined one has none", function* () {
    const image = yield* Image.host
    const command = ["grep", "Seccomp", "/proc/self/status"]
    const confined = yield* Container.run(image, { command })
    assert.match(confined.stdout, /^Seccomp:\s*2\nSeccomp_filters:\s*1\n$/)
    const { stdout } = yield* Container.run(image, { command, seccomp: "unconfined" })
    assert.equal(modeOf(stdout), "0")
  })

  effect(
    "an unconfined container gets the kernel's own answers",
    function* () {
      yield* Effect.map(
        attack(["clone3", "personality", "keyctl", "fork"], { seccomp: "unconfined" }),
        (came) => assert.deepEqual(came, { clone3: "EINVAL", personality: "ok", keyctl: "ok", fork: "ok" })
      )
    },
    { skip }
  )

  effect(
    "a capability allows its system calls, which the kernel may still refuse",
    function* () {
      const came = yield* attack(["unshare", "setns", "clone3", "bpf"], {
        capabilities: { add: ["SYS_ADMIN"] }
      })
      assert.deepEqual(came, { unshare: "ok", setns: "EBADF", clone3: "EINVAL", bpf: came.bpf })
      const without = yield* Container.run(yield* attackImage, {
        command: ["chroot", "/", "true"],
        capabilities: { drop: ["SYS_CHROOT"] }
      })
      assert.notEqual(without.exitCode, 0)
    },
    { skip }
  )

  effect(
    "Security.strict runs a plain program and allows less than the default",
    function* () {
      const image = yield* attackImage
      const script =
        "id -u; grep -E '^(CapPrm|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; echo x > /x; cat /proc/kallsyms | wc -c; ulimit -c"
      const { stdout } = yield* Container.run(image, { ...Security.strict, command: ["sh", "-c", script] })
      assert.equal(
        stdout,
        "0\nCapPrm:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n0\n0\n"
      )
      const came = yield* attack([...everything, "packet"], Security.strict)
      assert.deepEqual(came, { ...expected, traceme: "EPERM", mkdir: "EROFS", packet: "EPERM" })
      const host = yield* Container.run(yield* Image.host, {
        ...Security.strict,
        command: ["bash", "-c", "for k in 1 2 3; do (sleep 0 & wait); done; ls / | sort | tail -n 1"]
      })
      assert.equal(host.exitCode, 0, host.stderr)
    },
    { skip }
  )

  effect(
    "each action of a profile has its effect",
    function* () {
      const run = (action: Security.SeccompAction, rest: Partial<Security.SeccompRule> = {}) =>
        Effect.map(
          attack(["uname"], { seccomp: profile([{ names: ["uname"], action, ...rest }]) }),
          ({ uname }) => uname
        )
      // A call that reaches the kernel fails with EFAULT, because its argument is a null pointer.
      assert.equal(yield* run("SCMP_ACT_ALLOW"), "EFAULT")
      assert.equal(yield* run("SCMP_ACT_LOG"), "EFAULT")
      assert.equal(yield* run("SCMP_ACT_ERRNO"), "EPERM")
      assert.equal(yield* run("SCMP_ACT_ERRNO", { errnoRet: 38 }), "ENOSYS")
      assert.equal(yield* run("SCMP_ACT_TRACE"), "ENOSYS")
      for (const action of [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_TRAP"
      ] as const)
        assert.equal(yield* run(action), "killed by 31: ok", action)
    },
    { skip }
  )

  effect(
    "a rule can depend on arguments, capabilities, architectures and kernel versions",
    function* () {
      const refuse = (rest: Partial<Security.SeccompRule>) =>
        Effect.map(
          attack(["unix", "inet"], {
            seccomp: profile([{ names: ["socket"], action: "SCMP_ACT_ERRNO", errnoRet: 13, ...rest }])
          }),
          (came) =>
            Object.keys(came)
              .filter((word) => came[word] === "EACCES")
              .join()
        )
      assert.equal(yield* refuse({}), "unix,inet")
      assert.equal(yield* refuse({ args: [{ index: 0, value: 2, op: "SCMP_CMP_EQ" }] }), "inet")
      assert.equal(yield* refuse({ args: [{ index: 0, value: 2, op: "SCMP_CMP_NE" }] }), "unix")
      assert.equal(yield* refuse({ args: [{ index: 0, value: 2, op: "SCMP_CMP_LT" }] }), "unix")
      assert.equal(
        yield* refuse({ args: [{ index: 0, value: 3, valueTwo: 2, op: "SCMP_CMP_MASKED_EQ" }] }),
        "inet"
      )
      // Of several conditions on one argument, one is enough.
      const both = [1, 2].map((value) => ({ index: 0, value, op: "SCMP_CMP_EQ" }) as const)
      assert.equal(yield* refuse({ args: both }), "unix,inet")
      assert.equal(yield* refuse({ includes: { caps: ["CAP_CHOWN"] } }), "unix,inet")
      assert.equal(yield* refuse({ includes: { caps: ["CAP_SYS_ADMIN"] } }), "")
      assert.equal(yield* refuse({ excludes: { caps: ["CAP_CHOWN"] } }), "")
      assert.equal(yield* refuse({ includes: { arches: ["s390"] } }), "")
      assert.equal(yield* refuse({ includes: { minKernel: "4.8" } }), "unix,inet")
      assert.equal(yield* refuse({ includes: { minKernel: "4000.1" } }), "")
    },
    { skip }
  )

  effect(
    "onSystemCall answers with an error, a value or continue, in a start and in an exec",
    function* () {
      const image = yield* attackImage
      // Not every architecture has mkdir(2).
      const names = ["uname", "mkdir", "mkdirat", "getcpu", "execve"]
      const seccomp = profile([{ names, action: "SCMP_ACT_NOTIFY" }])
      const calls: Array<string> = []
      const onSystemCall = (call: Security.SystemCall): Effect.Effect<Security.SystemCallAnswer> => {
        calls.push(call.name)
        if (call.name === "uname") return Effect.as(Effect.sleep("20 millis"), { value: 7 })
        if (call.name.startsWith("mkdir")) return Effect.succeed({ errno: 28 })
        return call.name === "getcpu" ? Effect.die("a mistake") : Effect.succeed("continue")
      }
      const command = ["attack", "uname", "mkdir", "getcpu"]
      const expected = { uname: "ok", mkdir: "ENOSPC", getcpu: "ENOSYS" }
      const { stdout } = yield* Container.run(image, { command, seccomp, onSystemCall })
      assert.deepEqual(outcomes(stdout), expected)
      assert.deepEqual(
        calls.filter((name) => name !== "execve").map((name) => name.replace(/at$/, "")),
        ["uname", "mkdir", "getcpu"]
      )
      assert.ok(calls.includes("execve"))
      const box = yield* Container.start(image, { command: ["sleep", "1000"], seccomp, onSystemCall })
      assert.deepEqual(outcomes((yield* Container.exec(box, command)).stdout), expected)
      const missing = yield* failure("InvalidOption", Container.run(image, { command, seccomp }))
      assert.equal(missing.option, "onSystemCall")
      const stuck = profile([{ names: ["sendmsg"], action: "SCMP_ACT_NOTIFY" }])
      const refused = yield* failure(
        "InvalidOption",
        Container.run(image, { command, seccomp: stuck, onSystemCall })
      )
      assert.match(refused.message, /sendmsg/)
      // A container that waits for an answer ends with its scope.
      const asked = yield* Deferred.make<void>()
      const never = () => Effect.zipRight(Deferred.succeed(asked, undefined), Effect.never)
      const held = Effect.scoped(
        Effect.gen(function* () {
          const waiting = profile([{ names: ["mkdir", "mkdirat"], action: "SCMP_ACT_NOTIFY" }])
          yield* Container.start(image, { command: ["mkdir", "/x"], seccomp: waiting, onSystemCall: never })
          yield* Deferred.await(asked)
        })
      )
      assert.ok(Option.isSome(yield* Effect.timeoutOption(held, "20 seconds")))
    },
    { skip }
  )

  effect("a profile that denies execve fails the start or kills the command", function* () {
    const image = yield* Image.host
    const denying = (action: Security.SeccompAction) =>
      Container.run(image, { command: ["true"], seccomp: profile([{ names: ["execve"], action }]) })
    yield* failure("CommandFailed", denying("SCMP_ACT_ERRNO"))
    assert.equal((yield* denying("SCMP_ACT_KILL")).signal, "SIGSYS")
    // The supervisor works as before.
    const { exitCode } = yield* Container.run(image, { command: ["true"] })
    assert.equal(exitCode, 0)
  })

  effect("the compiled default policy is kept in Berth's folder and replaced if it is damaged", function* () {
    const { folder } = yield* Berth.Berth
    const set = maskOf(Security.defaultCapabilities)
    const load = () => kept(`${folder}/kept`, Security.defaultSeccomp, set)
    const first = load()
    const [name, ...others] = fs.readdirSync(`${folder}/kept/seccomp`)
    assert.deepEqual(others, [])
    const path = `${folder}/kept/seccomp/${name}`
    assert.equal(fs.statSync(path).mode & 0o777, 0o600)
    const whole = fs.readFileSync(path)
    for (const damaged of [
      whole.subarray(0, 100),
      Buffer.alloc(0),
      Buffer.from(whole).fill(6, whole.length - 8)
    ]) {
      fs.writeFileSync(path, damaged)
      assert.deepEqual(load(), first)
      assert.deepEqual(fs.readFileSync(path), whole)
    }
  })
})

suite("Seccomp: invalid input", (effect) => {
  const refused = (seccomp: unknown) =>
    Effect.flatMap(Image.host, (image) =>
      failure("InvalidOption", Container.run(image, { command: ["true"], seccomp: seccomp as never }))
    )

  effect("an unknown name is refused with the nearest known name", function* () {
    const call = yield* refused(profile([{ names: ["mkdirr"], action: "SCMP_ACT_ERRNO" }]))
    assert.equal(call.option, "seccomp.syscalls")
    assert.match(call.message, /"mkdirr".*nearest is mkdir\b/)
    const arch = yield* refused(profile([], { architectures: ["SCMP_ARCH_X86_46"] }))
    assert.match(arch.message, /nearest is SCMP_ARCH_X86_64/)
    const cap = yield* refused(
      profile([{ names: ["read"], action: "SCMP_ACT_ERRNO", includes: { caps: ["CAP_SYS_ADMINN"] } }])
    )
    assert.match(cap.message, /nearest is CAP_SYS_ADMIN\b/)
  })

  effect("a malformed profile is refused with the path of the wrong field", function* () {
    for (const [seccomp, option] of [
      ["confined", "seccomp"],
      [null, "seccomp"],
      [{}, "seccomp.defaultAction"],
      [{ defaultAction: "SCMP_ACT_ALOW" }, "seccomp.defaultAction"],
      [profile([{ names: ["read"], action: "deny" as never }]), "seccomp.syscalls[0].action"],
      [profile([{ names: ["read\n"], action: "SCMP_ACT_ERRNO" }]), "seccomp.syscalls[0].names[0]"],
      [profile([{ names: ["x".repeat(64)], action: "SCMP_ACT_ERRNO" }]), "seccomp.syscalls[0].names[0]"],
      [
        profile([{ names: ["read"], action: "SCMP_ACT_ERRNO", errnoRet: 4096 }]),
        "seccomp.syscalls[0].errnoRet"
      ],
      [profile([{ names: ["read"], action: "SCMP_ACT_ERRNO", arg: [] } as never]), "seccomp.syscalls[0].arg"],
      [{ ...profile([]), listenerPath: "/x" }, "seccomp.listenerPath"],
      [profile([], { flags: ["SECCOMP_FILTER_FLAG_NEW_LISTENER" as never] }), "seccomp.flags[0]"],
      [
        profile([
          { names: ["read"], action: "SCMP_ACT_ERRNO", args: [{ index: 6, value: 0, op: "SCMP_CMP_EQ" }] }
        ]),
        "seccomp.syscalls[0].args[0].index"
      ],
      [
        profile([
          {
            names: ["read"],
            action: "SCMP_ACT_ERRNO",
            args: [{ index: 0, value: 2 ** 64, op: "SCMP_CMP_EQ" }]
          }
        ]),
        "seccomp.syscalls[0].args[0].value"
      ]
    ] as const)
      assert.equal((yield* refused(seccomp)).option, option)
  })

  effect("too many rules, or architectures named twice, are refused", function* () {
    const many = Array.from({ length: 20 }, () => ({
      names: Array.from({ length: 1000 }, () => "read"),
      action: "SCMP_ACT_ERRNO" as const
    }))
    assert.equal((yield* refused(profile(many))).option, "seccomp.syscalls")
    const both = { architectures: ["SCMP_ARCH_X86"], archMap: [{ architecture: "SCMP_ARCH_X86" }] }
    assert.equal((yield* refused(profile([], both))).option, "seccomp.architectures")
  })

  effect("text that is malformed JSON, or too long, is refused", function* () {
    for (const text of ["", "{", "[]", "null", '"x"', `"${"x".repeat(2 ** 20)}"`, "[".repeat(100000)])
      yield* failure("InvalidData", Security.seccompFromJson(text))
    const text = JSON.stringify(Security.defaultSeccomp)
    assert.deepEqual(yield* Security.seccompFromJson(text), JSON.parse(text))
  })
})

// An interpreter of BPF compares the shortened programs with those of libseccomp.

const SYSCALL_DATA_WORDS = 16

const interpret = (program: ReadonlyArray<Bpf.Instruction>, data: Uint32Array): number => {
  let at = 0
  let a = 0
  // The jumps of BPF only go forward, so this ends.
  for (;;) {
    const { code, jf, jt, k } = program[at++]!
    if (code === Bpf.RETURN) return k
    if (code === Bpf.LOAD) a = data[k / 4]!
    else if (code === Bpf.AND) a = (a & k) >>> 0
    else if (code === Bpf.JUMP) at += k
    else at += Bpf.holds(code, a, k) ? jt : jf
  }
}

const AUDIT_ARCHS = [0xc000003e, 0x40000003, 0xc00000b7, 0x40000028, 0]

const interesting = fc.oneof(
  fc.integer({ min: 0, max: 50 }),
  fc.constantFrom(0xffffffff, 0x7e020000, 0x10000000, 0x11, 0x20008, 0x20000, 0x40000),
  fc.integer({ min: 0, max: 0xffffffff })
)

const numbers = fc.oneof(
  fc.integer({ min: 0, max: 600 }),
  fc.integer({ min: 0x40000000, max: 0x40000300 }),
  fc.constantFrom(1023, 1024, 0xffffffff, 0x3fffffff, 0x80000000),
  fc.integer({ min: 0, max: 0xffffffff })
)

const names = [
  "read",
  "write",
  "socket",
  "clone",
  "personality",
  "openat",
  "mmap",
  "ioctl",
  "prctl",
  "futex",
  "exit"
]

const conditions = fc.record({
  index: fc.integer({ min: 0, max: 5 }),
  value: interesting,
  valueTwo: interesting,
  op: fc.constantFrom(
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ"
  )
})

const profiles: fc.Arbitrary<Security.SeccompProfile> = fc.record({
  defaultAction: fc.constantFrom("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS"),
  architectures: fc.constantFrom(
    [],
    ["SCMP_ARCH_X86"],
    ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    ["SCMP_ARCH_AARCH64"]
  ),
  syscalls: fc.uniqueArray(
    fc.record({
      names: fc.subarray(names, { minLength: 1, maxLength: 3 }),
      action: fc.constantFrom("SCMP_ACT_LOG", "SCMP_ACT_TRAP"),
      args: fc.uniqueArray(conditions, { selector: ({ index }) => index, maxLength: 3 })
    }),
    { selector: (rule) => rule.names[0], maxLength: 8 }
  )
})

const assembled = (of: Security.SeccompProfile): Uint8Array | undefined => {
  try {
    return assemble(of, maskOf(Security.defaultCapabilities))
  } catch {
    // Random rules can contradict each other.
    return undefined
  }
}

allowTime()

describe("Seccomp: a shortened program", { skip: whyNoContainers }, () => {
  const same = (long: Uint8Array, calls: ReadonlyArray<Uint32Array>): void => {
    const [original, shorter] = [Bpf.decode(long), Bpf.decode(Bpf.shorten(long))]
    for (const data of calls)
      assert.equal(
        interpret(shorter, data),
        interpret(original, data),
        `of ${[...data].map((n) => n.toString(16))}`
      )
  }
  const call = (architecture: number, number: number, args: ReadonlyArray<number>): Uint32Array => {
    const data = new Uint32Array(SYSCALL_DATA_WORDS)
    data.set([number, architecture, 0, 0, ...args])
    return data
  }

  test("a shortened program decides every call as libseccomp's program does, for random profiles", () => {
    let compared = 0
    fc.assert(
      fc.property(
        profiles,
        fc.array(
          fc
            .tuple(
              fc.constantFrom(...AUDIT_ARCHS),
              numbers,
              fc.array(interesting, { minLength: 12, maxLength: 12 })
            )
            .map(([architecture, number, args]) => call(architecture, number, args)),
          { minLength: 200, maxLength: 200 }
        ),
        (of, calls) => {
          const long = assembled(of)
          if (long === undefined) return
          compared++
          same(long, calls)
        }
      ),
      { numRuns: 60 }
    )
    assert.ok(compared > 20, `only ${compared} could be compiled`)
  })

  test("a shortened policy of Berth decides every call as before and is a third as long", () => {
    const families = [1, 2, 16, 37, 38, 39, 40, 41, 0xffffffff, 0, 8, 0x20000, 0x20008, 0x10000000]
    for (const of of [Security.defaultSeccomp, Security.strictSeccomp]) {
      const long = assembled(of)!
      const calls = AUDIT_ARCHS.flatMap((architecture) =>
        Array.from({ length: 1200 }, (_, k) => (k < 600 ? k : 0x40000000 + k - 600)).flatMap((number) =>
          // The arguments of most calls do not matter; these get one set.
          (number === 41 || number === 56 || number === 135 ? families : [0x1234]).flatMap((low) => [
            call(architecture, number, [low, 0, low, 0]),
            call(architecture, number, [low, 1, 0, 0])
          ])
        )
      )
      same(long, calls)
      // Other processors have fewer architectures, and shorter programs.
      if (process.arch === "x64") assert.ok(Bpf.shorten(long).length * 3 <= long.length + 8)
    }
  })

  test("a program that is not made of comparisons is left as it is", () => {
    const program = Bpf.encode([
      { code: Bpf.LOAD, jt: 0, jf: 0, k: 0 },
      { code: Bpf.AND, jt: 0, jf: 0, k: 0xff },
      { code: Bpf.IF_EQUAL, jt: 0, jf: 1, k: 1 },
      { code: Bpf.RETURN, jt: 0, jf: 0, k: 0 },
      { code: Bpf.RETURN, jt: 0, jf: 0, k: 0x7fff0000 }
    ])
    assert.equal(Bpf.shorten(program), program)
  })

  test("the compiler of policies withstands random bytes", () => {
    const program = new Uint8Array(4096 * 8)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (policy) => {
        const [length] = native().seccompCompile(policy, program)
        assert.ok(length < 0 || length % 8 === 0)
      })
    )
    assert.throws(() => native().seccompCompile(new Uint8Array(4), new Uint8Array(8)))
  })
})
