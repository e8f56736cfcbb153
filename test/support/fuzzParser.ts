/**
 * `fuzzParser.ts NAME SECONDS`: one of the parsers of what others have written, fed with random bytes for so long. Prints
 * how often it ran, and ends with 1 and the bytes where it neither took nor refused them.
 */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import fc from "fast-check"
import { BerthError, Reference } from "../../lib/index.ts"
import * as Users from "../../lib/internal/container/passwd.ts"
import * as Oci from "../../lib/internal/oci/documents.ts"
import { parseChallenges } from "../../lib/internal/registry/auth.ts"
import * as Seccomp from "../../lib/internal/security/seccompProfile.ts"

const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("latin1")

/** What a decoder says of bytes is a value, or an error of Berth's, and nothing is thrown. */
const refused = (decoded: Effect.Effect<unknown, BerthError.BerthError>): void => {
  const result = Effect.runSync(Effect.either(decoded))
  if (Either.isLeft(result)) assert.ok(BerthError.isBerthError(result.left))
}

/** What it throws is an error of Berth's. */
const thrown = <A>(parse: () => A): A | undefined => {
  try {
    return parse()
  } catch (cause) {
    assert.ok(BerthError.isBerthError(cause), String(cause))
    return undefined
  }
}

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
/** Each takes bytes, or refuses them in Berth's words, and throws where it does neither. */
export const parsers: Readonly<
  Record<string, { readonly samples: ReadonlyArray<string>; readonly parse: (bytes: Uint8Array) => unknown }>
> = {
  references: {
    samples: [`localhost:5000/a/b:latest@${digest}`, "alpine", "registry.example/a__b/c-d:1.0"],
    parse: (bytes) => {
      const parsed = Reference.parse(latin1(bytes))
      if (Either.isLeft(parsed)) return assert.equal(parsed.left._tag, "InvalidData")
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
        const found = thrown(() => Users.resolve("it", user, text, text))
        for (const id of found === undefined ? [] : [found.uid, found.gid, ...found.groups])
          assert.ok(Number.isInteger(id) && id >= 0 && id <= 2 ** 32 - 2)
      }
    }
  },
  challenges: {
    samples: [
      'Bearer realm="https://a.example/token",service="a",scope="repository:b:pull", Basic realm="\\"x"'
    ],
    parse: (bytes) => {
      for (const { parameters, scheme } of parseChallenges(latin1(bytes)))
        for (const name of [scheme, ...parameters.keys()]) assert.equal(name, name.toLowerCase())
    }
  },
  "seccomp profiles": {
    samples: [
      JSON.stringify({
        defaultAction: "SCMP_ACT_ERRNO",
        archMap: [{ architecture: "SCMP_ARCH_X86_64", subArchitectures: ["SCMP_ARCH_X86"] }],
        syscalls: [
          { names: ["read"], action: "SCMP_ACT_ALLOW", args: [{ index: 0, value: 1, op: "SCMP_CMP_EQ" }] }
        ]
      })
    ],
    parse: (bytes) => thrown(() => Seccomp.parse(latin1(bytes)))
  }
}

if (/\/fuzzParser\.[jt]s$/.test(process.argv[1] ?? "")) {
  const [name, seconds] = process.argv.slice(2) as [string, string]
  const { parse, samples } = parsers[name]!
  samples.forEach((sample) => parse(new TextEncoder().encode(sample)))
  let runs = 0
  fc.assert(
    fc.property(near(samples), (bytes) => {
      runs++
      parse(bytes)
    }),
    {
      numRuns: Number.MAX_SAFE_INTEGER,
      interruptAfterTimeLimit: Number(seconds) * 1000,
      markInterruptAsFailure: false
    }
  )
  console.log(`Done ${runs} runs`)
}
