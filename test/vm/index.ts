/** `npm run test:vm`: runs tests or a benchmark on Debian's kernel, under QEMU. */
import * as fs from "node:fs"
import { parseArgs } from "node:util"
import { checkout } from "./checkout.ts"
import type { Processor } from "./image.ts"
import { boot } from "./machine.ts"
import { outcome, result } from "./report.ts"
import { foreign, type Mode, modes, suites } from "./suites.ts"

const usage = `usage: npm run test:vm [-- [--mode MODE[,MODE]] [--limit SECONDS] [FILE ...]]
       npm run test:vm -- --arm64 [--limit SECONDS] [FILE ...]
       npm run test:vm -- --bench NAME [--limit SECONDS] [-- OPTION ...]

  bare     a shell as pid 1, and cgroup version 2 as the kernel gives it
  systemd  a unit of systemd's with Delegate=yes
  user     an unprivileged user's session below systemd

  --arm64  bare, on an emulated arm64, with the native part that npm run packages has made
  --bench  a benchmark instead, in bare; what it finds is written to bench/results/NAME-vm.json
`

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    mode: { type: "string", default: modes.join(",") },
    arm64: { type: "boolean", default: false },
    bench: { type: "string" },
    limit: { type: "string", default: "420" }
  }
})
const processor = values.arm64 ? "arm64" : (process.arch as Processor)
const asked = values.arm64 ? ["bare"] : values.mode.split(",")
if (!asked.every((mode): mode is Mode => modes.some((known) => known === mode))) {
  console.error(usage)
  process.exit(2)
}

const filesOf = (mode: Mode): string =>
  `${(positionals.length > 0 ? positionals : values.arm64 ? foreign : suites[mode]).join("\n")}\n`

/** Boots the machine once, for the modes with the same first process. */
const run = async (init: "bare" | "systemd", wanted: ReadonlyArray<Mode>): Promise<boolean> => {
  if (wanted.length === 0) return true
  const start = Date.now()
  const extra = Object.fromEntries(wanted.map((mode) => [`vm-files-${mode}`, filesOf(mode)]))
  const ended = await boot(processor, { "vm-init": `${init}\n`, ...extra }, Number(values.limit) * 1000)
  const outcomes = wanted.map((mode) => ({ mode, ...outcome(ended.output, mode) }))
  console.log(`\nvm: ${init}: ${Math.round((Date.now() - start) / 1000)} s`)
  for (const { mode, passed, failed, skipped, problem } of outcomes) {
    if (problem !== undefined) console.error(`vm: ${mode} FAILED: ${problem}`)
    console.log(`${mode}: ${passed} passed, ${failed} failed, ${skipped} skipped`)
  }
  if (ended.late) console.error(`vm: the machine was ended after ${values.limit} s; --limit gives it more`)
  const lost = ended.late || outcomes.some(({ problem }) => problem?.startsWith("the machine"))
  if (lost) console.error(`vm: the console's last lines:\n${ended.console}`)
  return !ended.late && outcomes.every(({ problem }) => problem === undefined)
}

const measure = async (name: string): Promise<boolean> => {
  const what = [name, ...positionals].join(" ")
  const ended = await boot(
    processor,
    { "vm-init": "bare\n", "vm-bench": `${what}\n` },
    Number(values.limit) * 1000
  )
  const found = result(ended.output, "bare", name)
  if (found === undefined) {
    console.error(`vm: ${name} did not come to its end\n${ended.console}`)
    return false
  }
  const path = `${checkout}/bench/results/${name}-vm.json`
  fs.mkdirSync(`${checkout}/bench/results`, { recursive: true })
  fs.writeFileSync(path, found)
  console.log(`\nvm: written: ${path}`)
  return true
}

const test = async (): Promise<boolean> => {
  const bare = await run(
    "bare",
    asked.filter((mode) => mode === "bare")
  )
  const systemd = await run(
    "systemd",
    asked.filter((mode) => mode !== "bare")
  )
  return bare && systemd
}

process.exitCode = (await (values.bench === undefined ? test() : measure(values.bench))) ? 0 : 1
