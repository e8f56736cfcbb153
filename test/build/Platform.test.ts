/** Builds for another platform, and commands that cannot be executed or are killed for memory. */
import assert from "node:assert/strict"
import { execFileSync, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import { Berth, Build, Image } from "../../lib/index.ts"
import { asNobody, whyNotNobody } from "../support/asNobody.ts"
import { importBusybox } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { goArchitecture, otherArchitecture } from "../support/images.ts"
import { commandOf } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

const other = `linux/${otherArchitecture}`
const own = `linux/${goArchitecture}`

/** Whether this machine runs programs of the other platform. */
const whyEmulated: string | false = fs.existsSync(
  `/proc/sys/fs/binfmt_misc/qemu-${otherArchitecture === "arm64" ? "aarch64" : "x86_64"}`
)
  ? "this machine runs programs of the other platform"
  : false

/** The line that registers the emulator, of the package qemu-user-static. */
const REGISTRATION = "/usr/lib/binfmt.d/qemu-aarch64.conf"

/** A shell that has the emulator in a binfmt_misc of its own user namespace, which Linux 6.7 has. */
const registered = (line: string): string =>
  `mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc && cat ${line} >/proc/sys/fs/binfmt_misc/register && `

const whyNotEmulated: string | false =
  goArchitecture === "arm64"
    ? "the emulated program is for this machine"
    : !fs.existsSync(REGISTRATION)
      ? "qemu-user-static is missing"
      : spawnSync("aarch64-linux-gnu-gcc", ["--version"]).status !== 0
        ? "gcc-aarch64-linux-gnu is missing"
        : whyNotNobody ||
          (spawnSync("unshare", [
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            `${registered(REGISTRATION)} true`
          ]).status === 0
            ? false
            : "this kernel has no binfmt_misc in user namespaces (Linux 6.7)")

/** An empty context; the image `local/busybox` is in the store. */
const emptyContext = Effect.gen(function* () {
  const { folder } = yield* Berth.Berth
  yield* importBusybox
  fs.mkdirSync(`${folder}/empty`, { recursive: true })
  return `${folder}/empty`
})

/** A program of the other platform: the processor is named in the two bytes at 18, elf(5). */
const foreign = (program: string): Buffer => {
  const bytes = fs.readFileSync(program)
  bytes.writeUInt16LE(otherArchitecture === "arm64" ? 183 : 62, 18)
  return bytes
}

suite("a build for another platform", (effect) => {
  effect(
    "has the arguments of its platform and of the machine, and the image says its platform",
    function* () {
      const context = yield* emptyContext
      const said = (name: string) => `${name}=$${name}`
      const names = ["PLATFORM", "OS", "ARCH", "VARIANT"].flatMap((name) => [`TARGET${name}`, `BUILD${name}`])
      const text = `FROM --platform=$BUILDPLATFORM local/busybox AS build
ARG ${names.join(" ")}
RUN echo ${names.map(said).join(" ")} > /made
FROM scratch
COPY --from=build /made /made
`
      const platform = "linux/arm/v6"
      const image = yield* Build.dockerfile({ context, text, platform, tag: "local/foreign:1" })
      assert.equal(
        fs.readFileSync(`${image.layers.at(-1)}/made`, "utf8"),
        `TARGETPLATFORM=linux/arm/v6 BUILDPLATFORM=${own} TARGETOS=linux BUILDOS=linux TARGETARCH=arm BUILDARCH=${goArchitecture} TARGETVARIANT=v6 BUILDVARIANT=\n`
      )
      assert.equal((yield* Image.inspect("local/foreign:1", { platform })).platform, platform)
    },
    skip
  )

  effect(
    "a base for another platform is an error with the line of each use",
    function* () {
      const context = yield* emptyContext
      for (const [text, line] of [
        [`FROM --platform=${other} local/busybox`, 1],
        ["FROM local/busybox AS a\nFROM --platform=$TARGETPLATFORM local/busybox", 2],
        ["FROM scratch\nCOPY --from=local/busybox /etc /etc", 2]
      ] as const) {
        const build = Build.dockerfile({ context, text, platform: other, pull: "never" })
        const error = yield* failure("BuildFailed", build)
        assert.equal(error.reason, "Platform", error.message)
        assert.match(error.message, new RegExp(`:${line}: .*${own}`))
      }
      const wrong = Build.dockerfile({ context, text: "FROM scratch", platform: "arm" })
      assert.equal((yield* failure("InvalidOption", wrong)).option, "platform")
    },
    skip
  )

  effect(
    "a command that this machine cannot run is an error that says how it could",
    function* () {
      const { folder } = yield* Berth.Berth
      const context = yield* emptyContext
      fs.cpSync(`${folder}/busybox`, `${folder}/foreign`, { recursive: true, verbatimSymlinks: true })
      fs.writeFileSync(`${folder}/foreign/bin/busybox`, foreign(`${folder}/busybox/bin/busybox`))
      const config = { architecture: otherArchitecture }
      yield* Image.import(`${folder}/foreign`, { tag: "local/foreign", config })
      const text = "FROM local/foreign\nRUN true\n"
      const error = yield* failure("BuildFailed", Build.dockerfile({ context, text, platform: other }))
      assert.equal(error.reason, "Platform", error.message)
      assert.equal(error.exitCode, 126)
      assert.match(error.message, new RegExp(`:2: RUN true: .*ENOEXEC.*${other}.*${own}.*binfmt_misc`))
    },
    { skip: whyNoBusybox || whyEmulated }
  )

  effect(
    "a command for another processor runs by the emulator of the machine",
    function* () {
      const home = fs.mkdtempSync(`${os.tmpdir()}/berth-test-emulated-`)
      yield* Effect.addFinalizer(() => Effect.sync(() => fs.rmSync(home, { recursive: true, force: true })))
      fs.chmodSync(home, 0o755)
      const machine = `${home}/machine`
      const source = fileURLToPath(new URL("../support/machine.c", import.meta.url))
      execFileSync("aarch64-linux-gnu-gcc", [
        "-static",
        "-nostdlib",
        "-ffreestanding",
        "-O1",
        "-o",
        machine,
        source
      ])
      const line = `${home}/line`
      fs.copyFileSync(REGISTRATION, line)
      const build = (first: string, name: string) =>
        Effect.promise(() =>
          asNobody(
            `${home}/${name}`,
            first,
            commandOf("emulated.ts", [`${home}/${name}`, machine, "linux/arm64"]),
            ["--mount"]
          )
        )
      const { code, stderr, stdout } = yield* build(registered(line), "with")
      assert.equal(code, 0, stderr)
      assert.deepEqual(JSON.parse(stdout), { architecture: "arm64", lines: ["aarch64"], made: "aarch64\n" })
      if (!whyEmulated) {
        const without = yield* build("", "without")
        assert.notEqual(without.code, 0)
        assert.match(without.stderr, /linux\/arm64.*binfmt_misc/)
      }
    },
    { skip: whyNotEmulated }
  )

  effect(
    "a command that the image lacks or that is no program is an error with the line",
    function* () {
      const context = yield* emptyContext
      for (const [command, code] of [
        ["/no/such", 127],
        ["/etc/passwd", 126]
      ] as const) {
        const text = `FROM local/busybox\nRUN ["${command}"]\n`
        const error = yield* failure("BuildFailed", Build.dockerfile({ context, text }))
        assert.deepEqual([error.reason, error.exitCode], ["Command", code], error.message)
        assert.match(error.message, new RegExp(`:2: RUN .*${command}`))
      }
    },
    skip
  )

  effect.asRoot(
    "a command that is killed for memory is an error that says so",
    function* () {
      yield* emptyContext
      const build = Build.from("local/busybox").pipe(
        Build.run("tail /dev/zero", { limits: { memory: "16MiB" } })
      )
      const error = yield* failure("BuildFailed", Build.image(build))
      assert.equal(error.reason, "OutOfMemory", error.message)
      assert.match(error.message, /^RUN tail \/dev\/zero: .*memory/)
    },
    skip
  )
})
