/** The default policy must also cover system calls of other tables, and arguments with unused bits set. */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as Effect from "effect/Effect"
import { Container, type Image, Security } from "../../lib/index.ts"
import { compile, outcomes } from "../support/attack.ts"
import { makeTemporaryFolder, remove, suite } from "../support/effect.ts"
import { makeEvilImage, whyNoBusybox } from "../support/rootfs.ts"

/** The reason to skip the 32-bit table: a kernel without IA32 answers its calls with a signal. */
const whyNo32 = (): string | false => {
  const folder = makeTemporaryFolder()
  try {
    compile(`${folder}/abi`, "abi.c")
    return spawnSync(`${folder}/abi`, ["int80:getpid"], { encoding: "utf8" }).stdout === "int80:getpid ok\n"
      ? false
      : "this kernel has no 32-bit system calls (CONFIG_IA32_EMULATION)"
  } finally {
    remove(folder)
  }
}
const whyNotX64 = process.arch === "x64" ? whyNoBusybox : "the other tables are those of x86-64"
const skip32 = whyNotX64 || whyNo32()

const allowed: Readonly<Record<string, string>> = {
  "int80:getpid": "ok",
  "int80:inet": "ok",
  "high:inet": "ok",
  // C libraries fall back to other calls for these.
  "int80:clone3": "ENOSYS",
  "int80:socketcall-alg": "ENOSYS",
  "int80:socketcall-vsock": "ENOSYS",
  "int80:socketcall-inet": "ENOSYS"
}

/** The expected outcome of a call under the default policy. */
const expected = (word: string): string =>
  allowed[word] ?? (word.startsWith("x32:") ? "killed by 31: -" : "EPERM")

suite("system calls of other tables", (effect) => {
  const image = Effect.cached(makeEvilImage("abi", (root) => compile(`${root}/bin/abi`, "abi.c"))).pipe(
    Effect.runSync
  )

  const tried = (of: Image.Image, options: Container.StartOptions, words: ReadonlyArray<string> = []) =>
    Effect.map(Container.run(of, { ...options, command: ["abi", ...words] }), ({ stdout }) =>
      outcomes(stdout)
    )

  for (const [table, name, skip] of [
    ["int80", "the 32-bit table", skip32],
    ["x32", "x32's numbers", whyNotX64],
    ["high", "arguments with high bits", whyNotX64]
  ] as const)
    effect(
      `the default policy refuses the same system calls through ${name}`,
      function* () {
        const own = { user: "new" } as const
        for (const options of [{}, { user: "1000" }, { noNewPrivileges: false }, { namespaces: own }]) {
          const came = Object.entries(yield* tried(yield* image, options))
          const of = came.filter(([word]) => word.startsWith(`${table}:`))
          assert.ok(of.length > 5)
          assert.deepEqual(
            of,
            of.map(([word]) => [word, expected(word)])
          )
        }
      },
      { skip }
    )

  effect(
    "Security.strict refuses every 32-bit system call, and other socket families with high bits set",
    function* () {
      const came = Object.entries(yield* tried(yield* image, Security.strict))
      for (const [word, what] of came)
        assert.equal(what, word.startsWith("high:") ? expected(word) : "killed by 31: -", word)
    },
    { skip: skip32 }
  )

  effect(
    "a rule for socketcall before those of the default policy allows sockets of 32-bit programs",
    function* () {
      const rule = { names: ["socketcall"], action: "SCMP_ACT_ALLOW" } as const
      const seccomp = { ...Security.defaultSeccomp, syscalls: [rule, ...Security.defaultSeccomp.syscalls!] }
      const word = "int80:socketcall-inet"
      assert.deepEqual(yield* tried(yield* image, { seccomp }, [word]), { [word]: "ok" })
    },
    { skip: skip32 }
  )
})
