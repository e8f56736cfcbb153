/** `npm run fuzz -- [--minutes N]`: the fuzzing of test/fuzz.test.ts for longer, an hour by default, shared by all. */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { root } from "./program.ts"

const { values } = parseArgs({ options: { minutes: { type: "string", default: "60" } } })
// Three fuzzers by libFuzzer, and four parsers for a fifth of that each.
const seconds = Math.ceil((Number(values.minutes) * 60) / 3.8)
const test = fileURLToPath(new URL("../fuzz.test.ts", import.meta.url))
const { status } = spawnSync(process.execPath, ["--import", "tsx", "--test", test], {
  cwd: root,
  stdio: "inherit",
  env: { ...process.env, BERTH_FUZZ_SECONDS: String(seconds), BERTH_FUZZ_FOUND: root }
})
process.exit(status ?? 1)
