#!/usr/bin/env node
/** `berth doctor [--json]`: what Berth can use on this machine. */
import { parseArgs } from "node:util"

const usage = `Usage: berth doctor [--json]

  doctor   tells what Berth can use on this machine, and how to have what is missing;
           the exit code is 1 where no container can be started
  --json   as JSON`

const parse = (): {
  readonly command: string | undefined
  readonly json: boolean
  readonly help: boolean
} => {
  try {
    const options = { json: { type: "boolean" }, help: { type: "boolean", short: "h" } } as const
    const { positionals, values } = parseArgs({ options, allowPositionals: true })
    const [command, ...more] = positionals
    return {
      command: more.length === 0 ? command : undefined,
      json: values.json === true,
      help: values.help === true
    }
  } catch (cause) {
    console.error((cause as Error).message)
    return { command: undefined, json: false, help: false }
  }
}

const { command, help, json } = parse()
if (help) console.log(usage)
else if (command === "doctor") {
  const { doctor } = await import("./promise.ts")
  const report = await doctor()
  console.log(json ? JSON.stringify(report, null, 2) : String(report))
  process.exitCode = report.ready ? 0 : 1
} else {
  console.error(usage)
  process.exitCode = 2
}
