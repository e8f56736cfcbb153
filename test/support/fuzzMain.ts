/** `npm run fuzz -- [--minutes N]`: test/fuzz.test.ts with this time for each parser, all side by side; an hour by default. */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { root } from "./program.ts"

const { values } = parseArgs({ options: { minutes: { type: "string", default: "60" } } })
const test = fileURLToPath(new URL("../unit/fuzz.test.ts", import.meta.url))
const { status } = spawnSync(process.execPath, ["--import", "tsx", "--test", test], {
  cwd: root,
  stdio: "inherit",
  env: {
    ...process.env,
    BERTH_FUZZ_SECONDS: String(Math.ceil(Number(values.minutes) * 60)),
    BERTH_FUZZ_FOUND: root
  }
})
process.exit(status ?? 1)
