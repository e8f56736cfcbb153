/** Run by test/container/PromiseBox.test.ts: connects its standard streams with a box, and ends with that box's exit code. */
import { start } from "../../lib/promise.ts"

const box = await start("host", {
  command: ["sh", "-c", "read line; echo $line; exit 3"],
  stdin: "pipe"
})
process.exitCode = (await box.attach()).exitCode
await box.close()
