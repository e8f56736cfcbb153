import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { describe, test } from "node:test"
import * as Effect from "effect/Effect"
import fc from "fast-check"
import { Container, Image, Mount, Plan } from "../../lib/index.ts"
import { operations as table } from "../../lib/internal/supervisor/operations.ts"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { allowTime, failure, makeTemporaryFolder, remove } from "../support/effect.ts"
import { declaredOperations } from "../support/header.ts"
import { ended, program } from "../support/program.ts"

type Name = Plan.OperationName

const namesOf = (...phases: ReadonlyArray<string>): ReadonlyArray<Name> =>
  declaredOperations.filter(({ phase }) => phases.includes(phase)).map(({ name }) => name as Name)

const text = fc
  .oneof(
    fc.string({ unit: "binary", maxLength: 12 }),
    fc.string({ unit: "grapheme", maxLength: 6 }),
    // Half of a surrogate pair is not a character, and arrives as U+FFFD.
    fc.integer({ min: 0, max: 0xffff }).map((unit) => String.fromCharCode(unit)),
    fc.constant("x".repeat(5000))
  )
  .map((value) => value.replaceAll("\0", ""))

const fieldOf = {
  i: fc.oneof(
    fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
    fc.constantFrom(0n, -1n, 2n ** 63n - 1n, -(2n ** 63n)),
    fc.maxSafeInteger()
  ),
  s: text,
  l: fc.array(text, { maxLength: 4 }),
  u: fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { maxLength: 4 }),
  b: fc.uint8Array({ maxLength: 40 }),
  f: fc.constantFrom(null, "a", "b", "c")
}

const operation = (names: ReadonlyArray<Name>): fc.Arbitrary<Plan.Operation> =>
  fc.constantFrom(...names).chain((op) =>
    fc.record({
      op: fc.constant(op),
      ...Object.fromEntries(Object.entries(table[op]).map(([field, type]) => [field, fieldOf[type]]))
    })
  ) as unknown as fc.Arbitrary<Plan.Operation>

const before = fc.array(operation(namesOf("SUPERVISOR", "EITHER")), { maxLength: 6 })
const plans: fc.Arbitrary<Plan.Plan> = fc
  .oneof(
    before,
    fc
      .tuple(
        before,
        operation(["process"]),
        fc.array(operation(namesOf("CHILD", "EITHER")), { maxLength: 12 }),
        operation(namesOf("LAST"))
      )
      .map(([first, process, child, last]) => [...first, process, ...child, last])
  )
  .map(Plan.make)

const hex = (value: string | Uint8Array): string => Buffer.from(value as string).toString("hex")

const printed = (type: string, value: unknown, descriptors: ReadonlyArray<string>): string => {
  const many = (items: ReadonlyArray<unknown>) => `${items.length}[${items.join(",")}]`
  switch (type) {
    case "i":
      return String(BigInt.asIntN(64, BigInt(value as bigint)))
    case "f":
      return value === null ? "-" : String(descriptors.indexOf(value as string))
    case "l":
      return many((value as ReadonlyArray<string>).map(hex))
    case "u":
      return many(value as ReadonlyArray<number>)
    default:
      return hex(value as string)
  }
}

/** The expected output of plan-dump for a plan. */
const expected = (plan: Plan.Plan): string => {
  const { descriptors } = Plan.encode(plan)
  return plan.operations
    .map((operation) =>
      [
        operation.op.replaceAll("-", "_"),
        ...Object.entries(table[operation.op]).map(([field, type]) =>
          printed(type, operation[field as never], descriptors)
        )
      ].join(" ")
    )
    .map((line) => `${line}\n`)
    .join("")
}

const dumpBytes = (bytes: Uint8Array, ...args: ReadonlyArray<string>) => {
  const { status, signal, stdout, stderr } = spawnSync(programPath("plan-dump"), args, {
    input: bytes,
    encoding: "utf8",
    maxBuffer: 1 << 28
  })
  return { status, signal, stdout, stderr }
}

/** The answers of one plan-dump process to many encodings. Fails if the process crashes. */
const dumpAll = (encodings: ReadonlyArray<Uint8Array>): ReadonlyArray<string> => {
  const parts = encodings.flatMap((bytes) => {
    const length = Buffer.alloc(4)
    length.writeUInt32LE(bytes.length)
    return [length, bytes]
  })
  const { status, signal, stdout, stderr } = dumpBytes(Buffer.concat(parts), "3", "batch")
  assert.deepEqual({ status, signal, stderr }, { status: 0, signal: null, stderr: "" })
  return stdout.split(/(?<=^= (?:ok|refused)\n)/m)
}

const refusal = (...operations: ReadonlyArray<Plan.Operation>): string => {
  const { bytes, descriptors } = Plan.encode(Plan.make(operations))
  const { status, stdout, stderr } = dumpBytes(bytes, String(descriptors.length))
  assert.equal(status, 1, stdout)
  return stderr.trim()
}

const process_: Plan.Operation = { op: "process", namespaces: 0x20000 }
const exec: Plan.Operation = { op: "exec", program: null, paths: ["/x"], arguments: ["x"], environment: [] }
const scratch: Plan.Operation = { op: "scratch", path: "/s", mode: 0o700 }
const pivot: Plan.Operation = { op: "pivot" }

allowTime()

describe("Plan", () => {
  test("what is encoded is what the decoder finds, operation for operation", () => {
    fc.assert(
      fc.property(fc.array(plans, { minLength: 20, maxLength: 20 }), (some) => {
        const answers = dumpAll(some.map((plan) => Plan.encode(plan).bytes))
        some.forEach((plan, k) => {
          assert.equal(answers[k], `${expected(plan)}= ok\n`)
        })
      }),
      { numRuns: 30 }
    )
  })

  test("a plan of any length is decoded whole", () => {
    const kinds: ReadonlyArray<Plan.Operation> = [
      { op: "umask", mask: 0o77 },
      { op: "seccomp", program: new Uint8Array(9).fill(7), flags: 1, listener: "a" },
      { op: "user", uid: 1, gid: 2, groups: [3, 4, 5] },
      { op: "join", process: "a", namespaces: -1 },
      { op: "hostname", name: "box" },
      { op: "readonly", paths: ["/a", "/bc"], required: 0 }
    ]
    const all = kinds.flatMap((kind) =>
      Array.from({ length: 40 }, (_, k) =>
        Plan.make([
          process_,
          { op: "domainname", name: "x".repeat(k) },
          ...Array.from({ length: 400 }, () => kind),
          exec
        ])
      )
    )
    const answers = dumpAll(all.map((plan) => Plan.encode(plan).bytes))
    all.forEach((plan, k) => {
      assert.equal(answers[k], `${expected(plan)}= ok\n`)
    })
  })

  test("the sample plans contain every kind of operation", () => {
    const seen = new Set(
      fc.sample(plans, 600).flatMap((plan) => plan.operations.map((operation) => operation.op))
    )
    assert.deepEqual(
      Object.keys(table).filter((name) => !seen.has(name as Name)),
      []
    )
  })

  test("a plan that is truncated at any byte is refused", () => {
    const [plan] = fc.sample(
      plans.filter(({ operations }) => operations.length > 8),
      1
    )
    const { bytes } = Plan.encode(plan!)
    const lengths = Array.from({ length: bytes.length }, (_, length) => length)
    const sampled = lengths.length <= 2000 ? lengths : lengths.filter((_, k) => k % 17 === 0 || k < 500)
    const answers = dumpAll(sampled.map((length) => bytes.subarray(0, length)))
    sampled.forEach((length, k) => {
      assert.match(answers[k]!, /^.+\n= refused\n$/, `${length} of ${bytes.length} bytes`)
    })
  })

  test("a plan with flipped bytes does not crash the decoder", () => {
    const flips = fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), {
      minLength: 1,
      maxLength: 4
    })
    fc.assert(
      fc.property(fc.array(fc.tuple(plans, flips), { minLength: 50, maxLength: 50 }), (some) => {
        const answers = dumpAll(
          some.map(([plan, places]) => {
            const bytes = Plan.encode(plan).bytes.slice()
            for (const [at, change] of places) bytes[at % bytes.length]! ^= change
            return bytes
          })
        )
        for (const answer of answers.slice(0, some.length)) assert.match(answer, /= (ok|refused)\n$/)
      }),
      { numRuns: 20 }
    )
  })

  test("a plan whose operations are in an impossible order is refused", () => {
    assert.equal(refusal(pivot, process_, exec), "an operation of the child before the process")
    assert.equal(refusal(exec), "an operation of the child before the process")
    assert.equal(refusal(process_, process_, exec), "a second process")
    assert.equal(refusal(process_, exec, pivot), "an operation after the last")
    assert.equal(refusal(process_, exec, exec), "an operation after the last")
    assert.equal(refusal(process_, pivot), "a process with nothing to execute")
    assert.equal(refusal(process_), "a process with nothing to execute")
    assert.equal(refusal(process_, scratch, exec), "an operation of the supervisor after the process")
  })

  test("a plan that refers to descriptors that were not sent is refused", () => {
    const { bytes } = Plan.encode(Plan.make([process_, { op: "join", process: "a", namespaces: 0 }, exec]))
    assert.equal(dumpBytes(bytes, "1").status, 0)
    assert.deepEqual(dumpBytes(bytes, "0"), {
      status: 1,
      signal: null,
      stdout: "",
      stderr: "a descriptor was not sent\n"
    })
  })

  test("a plan with NUL in a string is refused", () => {
    assert.equal(refusal({ op: "scratch", path: "a\0b", mode: 0 }), "a string is cut short or holds NUL")
  })

  test("a descriptor that a plan uses twice is sent once", () => {
    const stdio: Plan.Operation = { op: "stdio", stdin: null, stdout: "out", stderr: "out" }
    assert.deepEqual(Plan.encode(Plan.make([process_, stdio, exec])).descriptors, ["out"])
  })

  test("a plan prints as one numbered line per operation", () => {
    const plan = Plan.make([
      scratch,
      { op: "process", namespaces: 0x20000 | 0x20000000 },
      { op: "bind", source: "/my data", target: "/mnt", attributes: 0x3, recursive: 1, pinned: 0 },
      { op: "stdio", stdin: null, stdout: "stdout", stderr: null },
      { op: "user", uid: 1000, gid: 1000, groups: [4, 27] },
      { op: "bounding", capabilities: 0xa80425fbn },
      { op: "seccomp", program: new Uint8Array(16), flags: 0, listener: null },
      { op: "exec", program: null, paths: ["/bin/sh"], arguments: ["sh", "-c", ""], environment: [] }
    ])
    const lines = [
      "  0  scratch path=/s mode=0700",
      "  1  process namespaces=mount,pid",
      '  2  bind source="/my data" target=/mnt attributes=ro,nosuid recursive=yes pinned=no',
      "  3  stdio stdin=none stdout=<stdout> stderr=none",
      "  4  user uid=1000 gid=1000 groups=[4 27]",
      "  5  bounding capabilities=0xa80425fb",
      "  6  seccomp program=16 bytes flags=0 listener=none",
      '  7  exec program=none paths=[/bin/sh] arguments=[sh -c ""] environment=[]'
    ]
    assert.equal(Plan.print(plan), lines.join("\n"))
    assert.equal(String(plan), lines.join("\n"))
  })

  test("a printed plan escapes line breaks in values", () => {
    const plan = Plan.make([{ op: "hostname", name: "a\n  1  exec" }])
    assert.equal(Plan.print(plan).split("\n").length, 1)
  })
})

const options: Container.StartOptions = {
  command: ["sh", "-c", "exit 0"],
  env: { A: "1" },
  mounts: [Mount.bind("/usr", "/mnt", { readOnly: true }), Mount.tmpfs("/scratch", { size: "1MiB" })],
  readOnly: true,
  sysctls: { "net.ipv4.ip_forward": "1" }
}

const planOf = (given: Container.StartOptions): Promise<Plan.Plan> =>
  Effect.runPromise(Effect.flatMap(Image.host, (image) => Container.plan(image, given)))

describe("Container.plan", { skip: process.platform === "linux" ? false : "not Linux" }, () => {
  test("Container.plan gives equal plans for equal options", async () => {
    const [one, two] = [await planOf(options), await planOf({ ...options })]
    assert.deepEqual(one, two)
    assert.deepEqual(Plan.encode(one), Plan.encode(two))
  })

  test("Container.plan differs only in the operations that an option changes", async () => {
    const [without, having] = [
      await planOf({ command: ["true"] }),
      await planOf({ command: ["true"], umask: 0o77 })
    ]
    const lines = (plan: Plan.Plan) => Plan.print(plan).split("\n")
    const changed = lines(having).filter((line) => !lines(without).includes(line))
    assert.deepEqual(
      changed.map((line) => line.trim().replace(/^\d+ +/, "")),
      ["umask mask=077"]
    )
  })

  test("Container.plan drops privileges in a safe order and ends with the command", async () => {
    const names = (await planOf({ command: ["true"] })).operations.map((operation) => operation.op)
    assert.deepEqual(names.slice(names.indexOf("pivot")), [
      "pivot",
      "working-directory",
      "umask",
      "bounding",
      "user",
      "capabilities",
      "no-new-privileges",
      "seccomp",
      "exec"
    ])
  })

  test("Container.plan fails for an invalid option as Container.start does", async () => {
    const error = await Effect.runPromise(
      failure(
        "InvalidOption",
        Effect.flatMap(Image.host, (image) => Container.plan(image, { limits: { memory: "12 parsecs" } }))
      )
    )
    assert.equal(error.option, "limits.memory")
  })

  test("Container.plan needs no privileges and starts nothing", {
    skip: process.getuid?.() === 0 ? false : "to give privileges up, one has to have them"
  }, async () => {
    const home = makeTemporaryFolder()
    fs.chownSync(home, 65534, 65534)
    try {
      const child = program("planPrinter.ts", [], {
        uid: 65534,
        gid: 65534,
        stdio: ["ignore", "pipe", "pipe"],
        env: { PATH: process.env.PATH, HOME: home, TMPDIR: home, XDG_CACHE_HOME: home, DENO_DIR: home }
      })
      const { code, stdout, stderr } = await ended(child)
      assert.equal(code, 0, stderr)
      assert.match(stdout, /^uid 65534\n {2}0 {2}/)
      assert.match(stdout, /exec program=none paths=\[.*\/bin\/true\]/)
      assert.match(stdout, /\nchildren 0\n/)
    } finally {
      remove(home)
    }
  })
})
