/** A container replaces files that the program opens by itself, or is asked to open. */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import { test } from "node:test"
import { allowTime, makeTemporaryFolder, remove, whyNoContainers } from "../support/effect.ts"
import { commandOf, type Ended, ended, root } from "../support/program.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { type Mode, modes } from "./modes.ts"

allowTime()

const skip = whyNoContainers || whyNoBusybox

const MAX_MILLIS = 60_000
/** A blocked event loop is later by far; the machine may have other work. */
const LATE_MILLIS_MAX = 3000
/** Includes garbage that is not collected yet. */
const GROWN_BYTES_MAX = 1024 ** 3

interface Found<A> {
  readonly result: A
  readonly late: number
  readonly grown: number
}

/** Runs test/support/attackedFiles.ts, which has to end by itself. `line` wraps its command, to give it a terminal. */
const attacked = async <A>(
  attack: string,
  { options }: Mode,
  line?: (command: string) => ReadonlyArray<string>
): Promise<Found<A>> => {
  const folder = makeTemporaryFolder()
  try {
    const { args, command } = commandOf("attackedFiles.ts", [folder, attack, JSON.stringify(options)])
    const words = [command, ...args]
    const [first, ...rest] = line?.(words.map((word) => `'${word}'`).join(" ")) ?? words
    const child = spawn(first!, rest, {
      cwd: root,
      env: { ...process.env, SHELL: "/bin/sh" },
      stdio: ["pipe", "pipe", "inherit"]
    })
    child.stdin.on("error", () => {})
    child.stdin.write("the operator's keys\n")
    const timer = setTimeout(() => child.kill("SIGKILL"), MAX_MILLIS)
    const end: Ended = await ended(child)
    clearTimeout(timer)
    assert.equal(end.signal, null, `did not end in ${MAX_MILLIS} ms: ${end.stdout}`)
    assert.equal(end.code, 0, end.stdout)
    const said = end.stdout.split(/\r?\n/).find((text) => text.startsWith("{"))
    assert.ok(said !== undefined, end.stdout)
    const found: Found<A> = JSON.parse(said)
    assert.ok(found.late <= LATE_MILLIS_MAX, `a timer was ${found.late} ms late`)
    assert.ok(found.grown <= GROWN_BYTES_MAX, `grew by ${found.grown} bytes`)
    return found
  } finally {
    remove(folder)
  }
}

for (const mode of modes) {
  test(`${mode.name}: a blocking or endless passwd or group file blocks no exec and no top`, {
    skip
  }, async () => {
    const { result } = await attacked<Record<string, ReadonlyArray<string>>>("passwd", mode)
    const none = ["ImageError NoSuchUser", "exit code 0", "done"]
    const large = ["ImageError TooLarge", "ImageError TooLarge", "done"]
    assert.deepEqual(result, {
      fifo: none,
      loop: none,
      zero: none,
      kmsg: none,
      pagemap: none,
      self: none,
      huge: large,
      groups: large,
      lines: none,
      short: none,
      commas: ["exit code 0", "exit code 0", "done"]
    })
  })

  test(`${mode.name}: opening a container's fifo blocks no thread of the program`, { skip }, async () => {
    const { result } = await attacked("fifos", mode)
    const refused = ["SystemError PermissionDenied", "5 bytes"]
    assert.deepEqual(result, { fifo: refused, link: refused })
  })

  const whyNoScript = fs.existsSync("/usr/bin/script") ? false : "no script(1): apt-get install bsdutils"
  test(`${mode.name}: a container's link to a device or into /proc gives access to nothing of the program or its terminal`, {
    skip: skip || whyNoScript
  }, async () => {
    const { result } = await attacked<Record<string, unknown>>("kernel", mode, (line) => [
      "script",
      "-qfec",
      line,
      "/dev/null"
    ])
    const { left, others, ...ways } = result
    assert.equal(Object.keys(ways).length, 12)
    for (const [path, found] of Object.entries(ways))
      assert.deepEqual(found, ["SystemError PermissionDenied", "5 bytes"], path)
    assert.deepEqual(others, Array(4).fill("SystemError PermissionDenied"))
    assert.equal(left, false)
  })

  test(`${mode.name}: watching a folder that changes endlessly starves no timer and fills no memory`, {
    skip
  }, async () => {
    const { result } = await attacked<{
      readonly took: number
      readonly events: number
      readonly missed: unknown
    }>("watched", mode)
    assert.ok(result.took < 10_000, `a time-out of 2 seconds took ${result.took} ms`)
    assert.ok(result.events > 0)
    assert.deepEqual(result.missed, { _tag: "Update", path: "v" })
  })
}
