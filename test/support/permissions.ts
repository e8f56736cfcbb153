/** Run by test/container/DenoPermissions.test.ts, with other permissions each time. */
import { doctor, run } from "../../lib/promise.ts"

console.log("imported")
const { ready } = await doctor()
try {
  const { stdout } = await run("host", { command: ["echo", "hello"] })
  console.log(JSON.stringify({ ready, stdout }))
} catch (error) {
  const { _tag, message } = error as { readonly _tag: string; readonly message: string }
  console.log(JSON.stringify({ ready, _tag, message }))
}
