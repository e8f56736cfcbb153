import assert from "node:assert/strict"
import * as fs from "node:fs"
import { describe, test } from "node:test"
import { inspect } from "node:util"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import { BerthError, Container, Image, Reference, Registry, Security } from "../../lib/index.ts"
import * as Oci from "../../lib/internal/oci/documents.ts"
import { failure, makeTemporaryFolder, remove, suite } from "../support/effect.ts"

const cause = new Error("ENOENT: no such file or directory, open '/a'")

/** One of each class, and the line that it prints. */
const each: ReadonlyArray<readonly [error: BerthError.BerthError, line: string]> = [
  [
    new BerthError.InvalidOption({ option: "limits.memory", value: '"x"', expected: "bytes", cause }),
    'InvalidOption: limits.memory: "x" is not acceptable: expected bytes'
  ],
  [
    new BerthError.InvalidData({ format: "reference", value: '"A"', expected: "lower case", cause }),
    'InvalidData: reference: "A" cannot be parsed: expected lower case'
  ],
  [
    new BerthError.Unsupported({ feature: "AppArmor", why: "it is disabled", hint: "Enable it", cause }),
    "Unsupported: AppArmor: it is disabled. Enable it"
  ],
  [
    new BerthError.OperationFailed({
      operation: "bind /a -> /b",
      index: 3,
      syscall: "move_mount",
      errno: 2,
      hint: "Make it",
      cause
    }),
    "OperationFailed: bind /a -> /b: move_mount: ENOENT (no such file or directory). Make it"
  ],
  [
    new BerthError.CommandFailed({ reason: "NotFound", command: "x", searched: ["/x"], errno: 2, cause }),
    "CommandFailed (NotFound): x: command not found in the image; looked at /x"
  ],
  [
    new BerthError.ImageError({ reason: "Corrupt", subject: "app:1", detail: "is not JSON", cause }),
    "ImageError (Corrupt): app:1: is not JSON"
  ],
  [
    new BerthError.RegistryError({
      reason: "Protocol",
      registry: "a.example",
      subject: "app:1",
      status: 500,
      detail: "it failed",
      cause
    }),
    "RegistryError (Protocol): a.example: app:1: it failed (HTTP 500)"
  ],
  [
    new BerthError.SupervisorError({ reason: "Gone", detail: "it has ended", cause }),
    "SupervisorError (Gone): supervisor: it has ended"
  ],
  [
    new BerthError.ContainerError({ reason: "Paused", container: "0123", detail: "it is paused", cause }),
    "ContainerError (Paused): container 0123: it is paused"
  ],
  [
    new BerthError.CgroupError({
      reason: "Gone",
      controller: "memory",
      path: "/a",
      errno: 2,
      detail: "it is gone",
      cause
    }),
    "CgroupError (Gone): cgroup controller memory: /a: it is gone (ENOENT)"
  ],
  [
    new BerthError.NonZeroExit({
      container: "0123",
      command: "false",
      exitCode: 1,
      signal: undefined,
      stdout: "",
      stderr: "",
      cause
    }),
    "NonZeroExit: false: exit code 1"
  ],
  [
    new BerthError.BuildFailed({
      reason: "Command",
      step: "RUN false",
      place: "Dockerfile:2",
      detail: "has ended with exit code 1",
      exitCode: 1,
      log: [],
      cause
    }),
    "BuildFailed (Command): Dockerfile:2: RUN false: has ended with exit code 1"
  ],
  [
    new BerthError.NetworkError({
      reason: "Refused",
      subject: "container 0123",
      address: "127.0.0.1:80",
      errno: 111,
      detail: "nothing listens there",
      cause
    }),
    "NetworkError (Refused): container 0123: 127.0.0.1:80: nothing listens there (ECONNREFUSED)"
  ],
  [
    new BerthError.VolumeError({ reason: "NotFound", volume: "data", detail: "does not exist", cause }),
    "VolumeError (NotFound): volume data: does not exist"
  ],
  [
    new BerthError.WaitFailed({
      reason: "TimedOut",
      condition: "port 80",
      container: "0123",
      state: "is running",
      millis: 10,
      log: [],
      cause
    }),
    "WaitFailed (TimedOut): container 0123: no port 80 within 10 ms; it is running"
  ],
  [
    new BerthError.FixtureFailed({ reason: "Prepare", fixture: "db", detail: "no table", log: [], cause }),
    "FixtureFailed (Prepare): fixture db: its preparation failed: no table"
  ],
  [
    new BerthError.ServiceFailed({ reason: "Ended", service: "api", detail: "has ended", log: [], cause }),
    "ServiceFailed (Ended): service api: it has ended"
  ],
  [
    new BerthError.ComposeError({
      reason: "Invalid",
      file: "compose.yaml",
      line: 2,
      column: 3,
      path: "services.db",
      detail: "expected a mapping",
      cause
    }),
    "ComposeError (Invalid): compose.yaml:2:3: services.db: expected a mapping"
  ]
]

describe("Each class of error", () => {
  test("is in this list", () => {
    const classes = Object.values(BerthError).filter((value) => Schema.isSchema(value))
    const covered = each.map(([error]) => error.constructor)
    assert.deepEqual(new Set(classes), new Set([...covered, BerthError.NotReleased]))
  })

  for (const [error, line] of each) {
    describe(error._tag, () => {
      test("has the type id, and is an Error with its tag as its name", () => {
        assert.equal(error[BerthError.BerthErrorTypeId], BerthError.BerthErrorTypeId)
        assert.ok(BerthError.isBerthError(error) && error instanceof Error)
        assert.equal(error.name, error._tag)
        assert.match(error.stack ?? "", /Errors\.test\.[jt]s/)
      })

      test("keeps its cause with its stack", () => {
        assert.equal(error.cause, cause)
        assert.match((error.cause as Error).stack ?? "", /Errors\.test\.[jt]s/)
      })

      test("prints as one line, with the cause below", () => {
        assert.equal(String(error), line)
        assert.equal(inspect(error), `${line}\n  [cause]: ${cause}`)
        assert.equal(inspect({ error }).split("\n").length, 4)
      })

      test("is JSON with one form of _id and _tag", () => {
        const { cause: above, message, _id, _tag } = JSON.parse(JSON.stringify(error))
        assert.deepEqual(
          { _id, _tag, message, cause: above },
          { _id: "berth/BerthError", _tag: error._tag, message: error.message, cause: String(cause) }
        )
      })

      test("is the same after it was encoded and decoded", () => {
        const codec = error.constructor as unknown as Schema.Schema<BerthError.BerthError, unknown>
        const again = Schema.decodeUnknownSync(codec)(Schema.encodeSync(codec)(error))
        assert.equal(String(again), line)
        assert.ok(BerthError.isBerthError(again) && again.cause instanceof Error)
        assert.equal(again.cause.message, cause.message)
      })
    })
  }

  test("is no other value", () => {
    for (const value of [undefined, null, 1, "InvalidOption", {}, { _tag: "InvalidOption" }, new Error("x")])
      assert.ok(!BerthError.isBerthError(value))
  })
})

describe("An error's line", () => {
  const image = new BerthError.ImageError({ reason: "Storage", subject: "/a", detail: "full", cause })
  const outer = new BerthError.CommandFailed({
    reason: "NotFound",
    command: "x",
    searched: [],
    errno: 2,
    cause: image
  })

  test("has a line below for each cause in turn", () => {
    assert.deepEqual(
      inspect(outer)
        .split("\n")
        .slice(1)
        .map((line) => line.trim()),
      ["[cause]: ImageError (Storage): /a: full", `[cause]: ${cause}`]
    )
  })

  test("has no more than the start of a cause that quotes hostile data", () => {
    const hostile = new BerthError.ImageError({
      reason: "Corrupt",
      subject: "a",
      detail: "b",
      cause: new Error(`${"x".repeat(1_000_000)}\nmore`)
    })
    assert.ok(inspect(hostile).length < 500)
    assert.ok(JSON.stringify(hostile).length < 1000)
  })

  test("is printed for NotReleased as well, which is a warning and no BerthError", () => {
    const warning = new BerthError.NotReleased({ resource: "/a", syscall: "rmdir", errno: 16 })
    assert.equal(inspect(warning), `NotReleased: ${warning.message}`)
    assert.equal(JSON.parse(JSON.stringify(warning))._id, "berth/BerthError")
    assert.ok(!BerthError.isBerthError(warning))
  })
})

suite("an error that was made from another", (effect) => {
  effect("has it as its cause", function* () {
    const folder = makeTemporaryFolder()
    const conf = `${folder}/registries.conf`
    fs.writeFileSync(conf, "[[registry]\n")
    const box = yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"] })
    const reference = Reference.parse("a@sha256:x")
    assert.ok(Either.isLeft(reference))
    const causes: ReadonlyArray<readonly [name: string, error: BerthError.BerthError, tag: RegExp]> = [
      ["a reference", reference.left, /^ImageError/],
      ["a folder", yield* failure("ImageError", Image.fromRootfs("/absent")), /ENOENT/],
      ["a layout", yield* failure("ImageError", Image.fromLayout("/absent")), /^SystemError/],
      ["an archive", yield* failure("ImageError", Image.load("/absent")), /^SystemError/],
      ["JSON", yield* failure("ImageError", Oci.parseObject("a", Buffer.from("{"))), /^SyntaxError/],
      ["a document", yield* failure("ImageError", Oci.decodeConfig("a", Buffer.from("{}"))), /^ParseError/],
      ["a profile", yield* failure("InvalidData", Security.seccompFromJson("{")), /^SyntaxError/],
      ["a profile's field", yield* failure("InvalidData", Security.seccompFromJson("{}")), /^Mistake/],
      ["registries.conf", yield* failure("InvalidData", Registry.fromRegistriesConf("a", conf)), /Error/],
      ["a command", yield* failure("CommandFailed", Container.exec(box, ["/absent"])), /^OperationFailed/],
      ["a copy", yield* failure("OperationFailed", Container.copyIn(box, "/absent", "/")), /ENOENT/],
      [
        "a registry",
        yield* failure("RegistryError", Image.pull("127.0.0.1:1/a:1", { plainHttp: true })),
        /^RequestError/
      ]
    ]
    for (const [name, error, tag] of causes) {
      const { cause: above } = error
      assert.ok(above instanceof Error && (above.stack ?? "") !== "", name)
      assert.match(`${above.name} ${above.message}`, tag, name)
      assert.equal(inspect(error).split("\n")[0], String(error).split("\n")[0], name)
    }
    yield* Effect.sync(() => remove(folder))
  })
})
