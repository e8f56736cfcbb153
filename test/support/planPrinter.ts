/** Prints a container's plan, and whether anything was started for it. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Container, Image, Plan } from "../../lib/index.ts"

const supervisors = (): number =>
  fs
    .readdirSync("/proc")
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      try {
        const status = fs.readFileSync(`/proc/${pid}/status`, "utf8")
        return new RegExp(`^PPid:\\s${process.pid}$`, "m").test(status) && /^Name:\sberth/m.test(status)
      } catch {
        return false
      }
    }).length

const plan = await Effect.runPromise(
  Effect.flatMap(Image.host, (image) => Container.plan(image, { command: ["true"], limits: { pids: 10 } }))
)
console.log(`uid ${process.getuid?.()}\n${Plan.print(plan)}\nchildren ${supervisors()}\n`)
