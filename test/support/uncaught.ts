/** Run by test/container/PromiseErrors.test.ts: a program that does not catch what a promise of Berth rejects with. */
import { run } from "../../lib/promise.ts"

// Bun keeps no frame of a tail call, nor of a module.
async function callsBerth(): Promise<unknown> {
  return await run("host", { command: ["/no/such/command"] })
}

await callsBerth()
