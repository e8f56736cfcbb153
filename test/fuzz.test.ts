import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import fc from "fast-check"
import { BerthError, Reference } from "../lib/index.ts"
import * as Oci from "../lib/internal/oci.ts"
import * as Users from "../lib/internal/users.ts"
import { allowTime, makeTemporaryFolder, remove } from "./support/effect.ts"
import { ended } from "./support/program.ts"

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url))

const whyNot: string | false =
  spawnSync("clang", ["--version"]).status === 0 ? false : "no clang, whose libFuzzer this needs"

const seconds = Number(process.env.BERTH_FUZZ_SECONDS ?? 8)

// Without the sanitizers that the tests themselves may run under.
const { LD_PRELOAD: _, ASAN_OPTIONS: __, ...env } = process.env

const run = (command: string, args: ReadonlyArray<string>) =>
  ended(spawn(command, args, { stdio: ["ignore", "pipe", "pipe"], env }))

allowTime()

const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")

/** What a decoder says of bytes is a value, or an error of Berth's, and nothing is thrown. */
const refused = (decoded: Effect.Effect<unknown, BerthError.BerthError>): void => {
  const result = Effect.runSync(Effect.either(decoded))
  if (Either.isLeft(result)) assert.ok(BerthError.isBerthError(result.left))
}

const harnesses = [
  {
    name: "plan",
    title: "the decoder of plans",
    sources: ["plan_dump.c", "plan.c"]
  },
  {
    name: "message",
    title: "the supervisor's reader of messages",
    sources: ["fuzz_message.c", "plan.c", "descriptor.c"]
  },
  { name: "path", title: "the paths of a tar", sources: ["fuzz_path.c"] }
] as const

for (const { name, sources, title } of harnesses)
  describe(`${title}, fuzzed`, { skip: whyNot }, () => {
    let folder = ""
    const program = (): string => `${folder}/${name}-fuzz`
    before(async () => {
      if (whyNot !== false) return
      folder = makeTemporaryFolder()
      const { code, stderr } = await run("clang", [
        ...["-std=gnu17", "-D_GNU_SOURCE", "-DFUZZ", "-g", "-O1"],
        ...["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"],
        ...["-o", program(), ...sources.map((source) => path(`../native/${source}`))]
      ])
      assert.equal(code, 0, stderr)
    })
    after(() => remove(folder))

    test(`takes every ${name} of the corpus`, async () => {
      const files = fs.readdirSync(path(`corpus/${name}`)).map((file) => path(`corpus/${name}/${file}`))
      assert.ok(files.length >= 3)
      const { code, stderr } = await run(program(), files)
      assert.equal(code, 0, stderr)
    })

    test("does not crash, leak or hang on what libFuzzer makes of them", async () => {
      fs.mkdirSync(`${folder}/found`)
      const { code, signal, stderr } = await run(program(), [
        `-max_total_time=${seconds}`,
        "-max_len=4096",
        "-timeout=30",
        "-rss_limit_mb=1024",
        `-artifact_prefix=${process.env.BERTH_FUZZ_FOUND ?? folder}/`,
        `${folder}/found`,
        path(`corpus/${name}`)
      ])
      assert.deepEqual({ code, signal }, { code: 0, signal: null }, stderr.slice(-4000))
      const runs = Number(
        /stat::number_of_executed_units:\s*(\d+)|Done (\d+) runs/.exec(stderr)?.slice(1).find(Boolean)
      )
      assert.ok(runs > 100, `only ${runs} runs: ${stderr.slice(-1000)}`)
    })
  })

// Raw bytes, and bytes that begin like something that is taken.
const raw = fc.uint8Array({ maxLength: 300 })
const near = (samples: ReadonlyArray<string>) =>
  fc.oneof(
    raw,
    fc
      .tuple(
        fc.constantFrom(...samples),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
        fc.nat()
      )
      .map(([text, changes, end]) => {
        const bytes = new TextEncoder().encode(text)
        for (const [at, byte] of changes) bytes[at % bytes.length] = byte
        return end % 3 === 0 ? bytes.subarray(0, end % bytes.length) : bytes
      })
  )
const digest = `sha256:${"0".repeat(64)}`
const descriptor = { mediaType: Oci.mediaTypes.config, digest, size: 2 }
const parsers: Readonly<
  Record<string, { readonly samples: ReadonlyArray<string>; readonly parse: (bytes: Uint8Array) => unknown }>
> = {
  references: {
    samples: [`localhost:5000/a/b:latest@${digest}`, "alpine", "registry.example/a__b/c-d:1.0"],
    parse: (bytes) => {
      const parsed = Reference.parse(latin1(bytes))
      if (Either.isLeft(parsed)) return assert.equal(parsed.left._tag, "InvalidOption")
      assert.deepEqual(Reference.parse(Reference.print(parsed.right)), parsed)
    }
  },
  manifests: {
    samples: [
      JSON.stringify({
        schemaVersion: 2,
        mediaType: Oci.mediaTypes.manifest,
        config: descriptor,
        layers: []
      }),
      JSON.stringify({ schemaVersion: 2, manifests: [descriptor] })
    ],
    parse: (bytes) => refused(Oci.decodeManifest("it", bytes, undefined))
  },
  configurations: {
    samples: [
      JSON.stringify({
        architecture: "amd64",
        os: "linux",
        config: { Env: ["A=b"], Cmd: ["x"], Healthcheck: { Test: ["CMD", "x"] } },
        rootfs: { type: "layers", diff_ids: [digest] }
      })
    ],
    parse: (bytes) => refused(Oci.decodeConfig("it", bytes))
  },
  "passwd and group files": {
    samples: ["root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n", "a:x:4294967295:00:::\n"],
    parse: (bytes) => {
      const text = latin1(bytes)
      for (const user of ["app", "app:root", "0", text.slice(0, 10)]) {
        try {
          const { gid, groups, uid } = Users.resolve("it", user, text, text)
          for (const id of [uid, gid, ...groups])
            assert.ok(Number.isInteger(id) && id >= 0 && id <= 2 ** 32 - 2)
        } catch (cause) {
          assert.ok(BerthError.isBerthError(cause), String(cause))
        }
      }
    }
  }
}

describe("parsers, fuzzed with raw bytes", () => {
  for (const [what, { parse, samples }] of Object.entries(parsers))
    test(`${what} are taken or refused, in Berth's words`, () => {
      const timed = { interruptAfterTimeLimit: (seconds * 1000) / 5, markInterruptAsFailure: false }
      samples.forEach((sample) => parse(new TextEncoder().encode(sample)))
      fc.assert(
        fc.property(near(samples), (bytes) => {
          parse(bytes)
        }),
        { numRuns: Number.MAX_SAFE_INTEGER, ...timed }
      )
    })
})
