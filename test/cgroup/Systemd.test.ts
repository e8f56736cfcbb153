import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { test } from "node:test"
import * as Effect from "effect/Effect"
import { Berth, Container, Image } from "../../lib/index.ts"
import { tree } from "../../lib/internal/cgroup/cgroup.ts"
import { unifiedOf } from "../../lib/internal/cgroup/tree.ts"
import { allowTime, berthIn, makeTemporaryFolder, remove } from "../support/effect.ts"
import { eventually } from "../support/leftovers.ts"
import { commandOf, ended, root } from "../support/program.ts"

const rootless = process.geteuid?.() !== 0

const whyNot: string | false = !fs.existsSync("/run/systemd/system")
  ? "systemd does not run this machine"
  : unifiedOf("self") === undefined
    ? "the cgroup tree has hierarchies of version 1"
    : false

/** The arguments of systemctl(1) for a manager that this user may ask: the system's, or the user's own. */
const manager = rootless ? ["--user"] : []

const properties = (unit: string, ...names: ReadonlyArray<string>): string =>
  spawnSync("systemctl", [...manager, "show", "--property", names.join(","), unit], { encoding: "utf8" })
    .stdout

/** Runs cgroups.ts in a new scope of systemd, delegated or not, and gives its output. */
const inScope = (folder: string, delegate: boolean) => {
  const scope = ["--scope", "--quiet", "--collect", ...(delegate ? ["-p", "Delegate=yes"] : [])]
  const { args, command } = commandOf("cgroups.ts", [folder])
  return ended(
    spawn("systemd-run", [...manager, ...scope, command, ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"]
    })
  )
}

interface Said {
  readonly own: string
  readonly supervisor: string
  readonly cgroup: string
  readonly limit: number | undefined
}

allowTime()

test("a program in a delegated unit of systemd has its cgroups in that unit and gets no scope", {
  skip: whyNot
}, async () => {
  const folder = makeTemporaryFolder()
  const { code, stderr, stdout } = await inScope(folder, true)
  assert.equal(code, 0, stderr)
  const said = JSON.parse(stdout) as Said
  const unit = /^.*\.scope/.exec(said.own)![0]
  assert.match(unit, /\/run-[^/]*\.scope$/)
  assert.equal(unit.includes(`/user@${process.geteuid?.()}.service/`), rootless)
  assert.equal(said.supervisor, said.own)
  assert.ok(said.cgroup.startsWith(`${unit}/berth.`), said.cgroup)
  assert.equal(said.limit, 64 * 2 ** 20)
  remove(folder)
})

test("a program in a unit that is not delegated gets a scope, which ends with its supervisor", {
  skip: whyNot
}, async () => {
  const folder = makeTemporaryFolder()
  const { code, stderr, stdout } = await inScope(folder, false)
  assert.equal(code, 0, stderr)
  const said = JSON.parse(stdout) as Said
  const scope = /^(.*\/(berth-\d+-\d+\.scope))\/supervisor$/.exec(said.supervisor)
  assert.ok(scope, said.supervisor)
  assert.ok(said.cgroup.startsWith(`${scope[1]}/berth.`), said.cgroup)
  assert.ok(!said.own.startsWith(scope[1]!))
  assert.equal(said.limit, 64 * 2 ** 20)
  assert.ok(await eventually(() => !fs.existsSync(scope[1]!)), `${scope[1]} is still there`)
  assert.match(properties(scope[2]!, "LoadState", "ActiveState"), /ActiveState=inactive/)
  remove(folder)
})

test("a machine without systemd keeps the cgroup tree that the kernel shows", {
  skip: whyNot === false ? "systemd runs this machine" : false
}, async () => {
  const folder = makeTemporaryFolder()
  const before = JSON.stringify(tree())
  await Effect.runPromise(
    Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"] })).pipe(
      Effect.zipRight(Effect.map(Berth.Berth, () => assert.equal(JSON.stringify(tree()), before))),
      Effect.provide(berthIn(folder))
    )
  )
  remove(folder)
})
