/** A container that renames folders of its root while another one starts on the same root: the masks must hold. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type BerthError, Container, type Image, Mount, Namespace, RootFs } from "../../lib/index.ts"
import { compile } from "../support/attack.ts"
import { failure, suite } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { makeEvilImage, whyNoBusybox } from "../support/rootfs.ts"
import { type Mode, modes } from "./modes.ts"

const skip = whyNoBusybox

/** An image with the program `masks`. */
const imageOf = (name: string, change: (root: string) => void) =>
  makeEvilImage(name, (root) => {
    compile(`${root}/bin/masks`, "masks.c")
    change(root)
  })

/** Starts processes on one root, each in a mount namespace of its own. */
const sharedRoot = (image: Image.Image, { options }: Mode) =>
  Effect.gen(function* () {
    const namespaces =
      options.userns === undefined
        ? yield* Namespace.make(["pid"])
        : yield* Namespace.make(["pid", "user"], { ids: "auto" })
    const rootfs = yield* RootFs.overlay(image, options.userns === undefined ? {} : { userns: namespaces })
    return (command: ReadonlyArray<string>) => Container.spawn({ rootfs, namespaces, command })
  })

type Start = Effect.Effect.Success<ReturnType<typeof sharedRoot>>

const text = (box: Container.Container) =>
  box.stdout.pipe(Stream.decodeText(), Stream.mkString, Effect.zipLeft(box.exit))

/** Starts `masks check` until it has run `times` times, and gives the errors of the starts that failed. */
const check = (start: Start, paths: ReadonlyArray<string>, times: number) =>
  Effect.gen(function* () {
    const refusals: Array<BerthError.BerthError> = []
    for (let ran = 0; ran < times; ) {
      assert.ok(
        refusals.length < 100 * times,
        `${ran} starts succeeded, this failed: ${refusals[0]?.message}`
      )
      const checked = Effect.flatMap(start(["/bin/masks", "check", ...paths]), text)
      const result = yield* Effect.either(Effect.scoped(checked))
      if (result._tag === "Left") refusals.push(result.left)
      else assert.equal(result.right, "checked\n", `start ${ran++}`)
    }
    return refusals
  })

/** Asserts that a start has failed because of a link in place of a folder of the kernel. */
const assertNamesLink = (error: BerthError.BerthError, path: string): void => {
  assert.equal(error._tag, "OperationFailed", error.message)
  assert.match(error.message, new RegExp(`target=${path} .*ELOOP.*\\. ${path} is a symbolic link`))
}

/** Exchanges two names in the container's root while the scope is open, by a process outside of its mount namespace. */
const swapping = (program: string, box: Container.Container, [one, other]: readonly [string, string]) =>
  Effect.gen(function* () {
    const paths = [one, other].map((path) => `/proc/${box.pid}/root${path}`)
    const child = yield* killedAfter(() =>
      spawn(program, ["swap", ...paths], { stdio: ["ignore", "pipe", "inherit"] })
    )
    yield* Effect.promise(() => once(child.stdout, "data"))
  })

suite("renames in a root while another container starts", (effect, folder) => {
  for (const mode of modes) {
    effect(
      `${mode.name}: while the target of a link at /proc is exchanged, every container starts with its masks or not at all`,
      function* () {
        const image = yield* imageOf(`link-${mode.name}`, (root) => {
          fs.mkdirSync(`${root}/a`)
          fs.symlinkSync("/a", `${root}/proc`)
        })
        const start = yield* sharedRoot(image, mode)
        // A mount point cannot be renamed in its own mount namespace, so the attacker first changes the link.
        const script = "mkdir /b /c; rm /proc; ln -s /b /proc; exec /bin/masks swap /b /c"
        const attacker = yield* Effect.either(start(["sh", "-c", script]))
        if (attacker._tag === "Left") return assertNamesLink(attacker.left, "/proc")
        yield* Stream.runHead(attacker.right.stdout)
        for (const refusal of yield* check(start, ["/proc", "/a", "/b", "/c"], 30))
          assertNamesLink(refusal, "/proc")
      },
      { skip }
    )

    for (const at of ["/proc", "/sys", "/dev"] as const)
      effect(
        `${mode.name}: while ${at} is exchanged for a link, every container starts with its masks or not at all`,
        function* () {
          const image = yield* imageOf(`exchanged-${mode.name}${at.slice(1)}`, () => {})
          const start = yield* sharedRoot(image, mode)
          const script = "mkdir /decoy; ln -s /decoy /other; echo ready; exec sleep 1000"
          const first = yield* start(["sh", "-c", script])
          yield* Stream.runHead(first.stdout)
          yield* swapping(`${folder()}/exchanged-${mode.name}${at.slice(1)}/bin/masks`, first, [at, "/other"])
          for (const refusal of yield* check(start, ["/proc", "/other", "/decoy"], 20))
            assertNamesLink(refusal, at)
        },
        { skip }
      )

    effect(
      `${mode.name}: while /proc is exchanged for another folder, every container starts with its masks`,
      function* () {
        const image = yield* imageOf(`folder-${mode.name}`, () => {})
        const start = yield* sharedRoot(image, mode)
        const first = yield* start(["sh", "-c", "mkdir -p /other/sys/kernel; echo ready; exec sleep 1000"])
        yield* Stream.runHead(first.stdout)
        yield* swapping(`${folder()}/folder-${mode.name}/bin/masks`, first, ["/proc", "/other"])
        assert.deepEqual(yield* check(start, ["/proc", "/other"], 60), [])
      },
      { skip }
    )
  }

  effect(
    "a link at /proc, /sys or /dev is refused by name, and a link at another mount's target is followed",
    function* () {
      for (const path of ["/proc", "/sys", "/dev"]) {
        const image = yield* makeEvilImage(`refused${path.slice(1)}`, (root) => {
          fs.mkdirSync(`${root}/elsewhere`)
          fs.symlinkSync("/elsewhere", `${root}${path}`)
        })
        const error = yield* failure("OperationFailed", Container.run(image, { command: ["true"] }))
        assertNamesLink(error, path)
      }
      const image = yield* makeEvilImage("followed", (root) => {
        fs.mkdirSync(`${root}/elsewhere`)
        fs.symlinkSync("/elsewhere", `${root}/v`)
      })
      const { stdout } = yield* Container.run(image, {
        command: ["grep", "-c", " /elsewhere/deep tmpfs ", "/proc/mounts"],
        mounts: [Mount.tmpfs("/v/deep")]
      })
      assert.equal(stdout, "1\n")
    },
    { skip }
  )

  effect.asRoot(
    "the host's /proc and /sys, bound over the container's, are masked and read-only as these",
    function* () {
      const image = yield* imageOf("bound", () => {})
      for (const target of ["/proc", "//./proc/", "/x/../proc"]) {
        const mounts = [Mount.bind("/proc", target), Mount.bind("/sys", "/sys/")]
        const { stdout } = yield* Container.run(image, {
          command: ["/bin/masks", "check", "/proc"],
          mounts
        })
        assert.equal(stdout, "checked\n")
        const hidden = yield* Container.run(image, { command: ["ls", "/sys/firmware"], mounts })
        assert.equal(hidden.stdout, "")
      }
    },
    { skip }
  )

  effect(
    "masked and read-only paths are normalised, and resolved below the mounts",
    function* () {
      const image = yield* makeEvilImage("spelled", (root) => fs.writeFileSync(`${root}/etc/secret`, "x"))
      const { stdout } = yield* Container.run(image, {
        command: [
          "sh",
          "-c",
          "cat /etc/secret /proc/uptime /v/f /dev/shm/f 2>&1; touch /v/new /dev/shm/new 2>&1"
        ],
        mounts: [Mount.tmpfs("/v"), Mount.tmpfs("/v/f"), Mount.tmpfs("/dev/shm/f")],
        maskedPaths: ["//etc/./secret", "/x/../proc/uptime", "/proc/no/such", "/no/such"],
        readonlyPaths: ["/v/", "/dev//shm", "/proc/sys"]
      })
      assert.equal(
        stdout,
        [
          "cat: read error: Is a directory",
          "cat: read error: Is a directory",
          "touch: /v/new: Read-only file system",
          "touch: /dev/shm/new: Read-only file system",
          ""
        ].join("\n")
      )
    },
    { skip }
  )
})
