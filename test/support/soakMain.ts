/** `npm run soak -- [--rounds N] [--seed N] [--fault NAME]`: prints each round that leaves something, and the count. */
import { parseArgs } from "node:util"
import { makeTemporaryFolder, remove } from "./effect.ts"
import { type Fault, makeSoak, round } from "./soak.ts"

const { values } = parseArgs({
  options: { rounds: { type: "string" }, seed: { type: "string" }, fault: { type: "string" } }
})
const first = Number(values.seed ?? Date.now() % 1_000_000_000)
const rounds = Number(values.rounds ?? (values.seed === undefined ? 1000 : 1))

const folder = makeTemporaryFolder()
const soak = await makeSoak(folder)
console.log(`seed ${first}, ${rounds} rounds; one again: npm run soak -- --seed N`)
let failed = 0
let slowest = 0
let late = 0
const times = new Map<string, number>()
for (let k = 0; k < rounds; k++) {
  const seed = first + k
  const done = await round(soak, seed, values.fault as Fault | undefined).catch((cause) => ({
    seed,
    fault: "?",
    ending: "?",
    at: -1,
    took: 0,
    left: [String(cause)]
  }))
  times.set(done.fault, (times.get(done.fault) ?? 0) + 1)
  if (done.left.length === 0 && done.took > 1000) late++
  slowest = Math.max(slowest, done.took)
  if (done.left.length > 0) {
    failed++
    console.log(
      `seed ${seed}: ${done.fault}, ended by ${done.ending} at ${done.at} ms left:\n  ${done.left.join("\n  ")}`
    )
  }
  if (k % 50 === 49 || k === rounds - 1)
    console.log(
      `${k + 1} rounds, ${failed} left something; ${late} took longer than a second, the slowest ${Math.round(slowest)} ms`
    )
}
console.log([...times].map(([fault, n]) => `${fault}: ${n}`).join(", "))
await soak.registry.stop()
if (failed === 0) remove(folder)
process.exit(failed === 0 ? 0 : 1)
