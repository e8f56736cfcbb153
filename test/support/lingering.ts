/**
 * Run by test/container/PromiseLinger.test.ts: runs a container, prints the pid of the supervisor that lingers, and does what
 * it is told: `end` has nothing more to do, `stay` waits for a signal, `exit` calls process.exit, `drop` becomes another user,
 * whose folder is given, and prints the user ids of another container and the pid of its supervisor.
 */
import { run } from "../../lib/promise.ts"
import { supervisors } from "./leftovers.ts"

await run("host", { command: ["true"], linger: "10 days" })
console.log(supervisors().join(" "))
const [what, folder] = process.argv.slice(2)
if (what === "exit") process.exit(3)
if (what === "stay") process.stdin.resume()
if (what === "drop") {
  process.env.XDG_DATA_HOME = folder
  process.setgroups!([])
  process.setgid!(65534)
  process.setuid!(65534)
  const { stdout } = await run("host", { command: ["cat", "/proc/self/uid_map"], linger: "10 days" })
  console.log(stdout.trim().split(/\s+/).join(" "))
  console.log(supervisors().join(" "))
}
