/** Run by test/unit/Loading.test.ts: runs a container, and prints the modules of Node that have been loaded. */
import { run } from "../../lib/promise.ts"

const { moduleLoadList } = process as unknown as { readonly moduleLoadList: ReadonlyArray<string> }
await run("host", { command: ["true"] })
console.log(moduleLoadList.join("\n"))
