/** `berth doctor`: what Berth can use on this machine. */
import { doctor as examine } from "../promise.ts"
import { ExitCode } from "./exitCode.ts"
import { type Invocation, print, printJson } from "./invocation.ts"

export const doctor = async (_: {}, { json }: Invocation): Promise<number> => {
  const report = await examine()
  if (json) printJson(report)
  else print(String(report))
  return report.ready ? 0 : ExitCode.other
}
