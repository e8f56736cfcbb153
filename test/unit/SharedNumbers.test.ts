import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Plan } from "../../lib/index.ts"
import { changes } from "../../lib/internal/files/namespaceRoot.ts"
import { flags } from "../../lib/internal/ids/namespaceFlags.ts"
import * as seccomp from "../../lib/internal/security/seccomp.ts"
import { SECCOMP_NAME_MAX } from "../../lib/internal/security/seccompProfile.ts"
import { operations } from "../../lib/internal/supervisor/operations.ts"
import * as protocol from "../../lib/internal/supervisor/protocol.ts"
import * as addon from "../../lib/internal/system/addon.ts"
import * as errno from "../../lib/internal/util/errno.ts"
import * as mountAttributes from "../../lib/internal/util/mountAttributes.ts"
import { declaredOperations, namesIn, valuesOf } from "../support/header.ts"

/** The exported numbers of a module whose names match. */
const numbersOf = (module: object, pattern = /^[A-Z]\w+$/): Readonly<Record<string, number>> =>
  Object.fromEntries(
    Object.entries(module).filter(([name, value]) => typeof value === "number" && pattern.test(name))
  )

const checkValues = (headers: ReadonlyArray<string>, expected: Readonly<Record<string, number>>): void => {
  assert.ok(Object.keys(expected).length > 0)
  assert.deepEqual(valuesOf(headers, Object.keys(expected)), { ...expected })
}

const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)

describe("C and TypeScript agree", { skip: process.platform === "linux" ? false : "not Linux" }, () => {
  test("on the operations of a plan: their order, and the names and types of their fields", () => {
    assert.deepEqual(
      declaredOperations.map(({ name, types, fields }) => [name, types, fields]),
      Object.entries(operations).map(([name, fields]) => [
        name,
        Object.values(fields).join(""),
        Object.keys(fields).map(snake)
      ])
    )
    for (const { code, name } of declaredOperations)
      assert.equal(code, name.replaceAll("-", "_").toUpperCase())
  })

  test("on the messages between a program and its supervisor, and on the limits of a plan", () => {
    const inC = [
      ...namesIn("supervisor/protocol.h", /\bRE(?:QUEST|PLY)_[A-Z]+\b|\bMESSAGE_BYTES_MAX\b/g),
      ...namesIn("supervisor/plan.h", /\bPLAN_(?:MAGIC|VERSION|BYTES_MAX)\b|\bNO_FD\b/g)
    ]
    const expected = numbersOf(protocol)
    assert.deepEqual([...inC].sort(), Object.keys(expected).sort())
    checkValues(["supervisor/protocol.h", "supervisor/plan.h"], expected)
  })

  test("on the changes that are made as root of a user namespace", () => {
    const expected = Object.fromEntries(
      Object.entries(changes).map(([name, value]) => [`CHANGE_${name.toUpperCase()}`, value])
    )
    assert.deepEqual([...namesIn("addon/as_root.h", /\bCHANGE_\w+/g)], Object.keys(expected))
    checkValues(["addon/as_root.h"], expected)
  })

  test("on the limits of a seccomp program", () => {
    const expected = numbersOf(
      { ...seccomp, SECCOMP_NAME_MAX },
      /^SECCOMP_(?:NAME_MAX|PROGRAM_MAX|NUMBERS_END)$/
    )
    assert.deepEqual(
      [...namesIn("addon/seccomp.h", /(?<=#define )SECCOMP_\w+/g)].sort(),
      Object.keys(expected).sort()
    )
    checkValues(["addon/seccomp.h"], expected)
  })

  test("on errno", () => {
    const named = Array.from({ length: 140 }, (_, number) => [errno.errnoName(number), number] as const)
    const expected = Object.fromEntries(named.filter(([name]) => name.startsWith("E")))
    checkValues(["errno.h"], expected)
    for (const [name, value] of Object.entries(numbersOf(errno))) assert.equal(value, expected[name], name)
  })

  test("on the flags of namespaces, and a plan prints each by its name", () => {
    const names = { mount: "NS", network: "NET" } as Readonly<Record<string, string>>
    const expected = Object.fromEntries(
      Object.entries(flags).map(([kind, flag]) => [`CLONE_NEW${names[kind] ?? kind.toUpperCase()}`, flag])
    )
    checkValues(["linux/sched.h"], expected)
    for (const [kind, flag] of Object.entries(flags))
      assert.equal(Plan.printOperation({ op: "unshare", namespaces: flag }), `unshare namespaces=${kind}`)
  })

  test("on the attributes of mounts", () => {
    checkValues(["linux/mount.h"], numbersOf(mountAttributes))
  })

  test("on the flags of openat2, flock and epoll", () => {
    checkValues(
      ["fcntl.h", "linux/openat2.h", "sys/file.h", "sys/epoll.h"],
      numbersOf(addon, /^(?:AT|O|RESOLVE|LOCK|EPOLL)_?[A-Z_]+$/)
    )
  })
})
