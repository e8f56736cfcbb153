/** `berth build`: builds the image of a Dockerfile, and shows its steps. */
import * as fs from "node:fs"
import process from "node:process"
import type { BuildEvent } from "../Build.ts"
import { messageOf } from "./failure.ts"
import { environment, invalid } from "./given.ts"
import { type Invocation, openBerth, print, printEvent, remark } from "./invocation.ts"

export interface BuildOptions {
  readonly context: string
  readonly file: string | undefined
  readonly tag: string | undefined
  readonly target: string | undefined
  readonly buildArg: ReadonlyArray<string>
  readonly secret: ReadonlyArray<string>
  readonly network: "none" | "host"
  readonly noCache: boolean
  readonly platform: string | undefined
}

/** `id=NAME,src=FILE`, `id=NAME,env=VARIABLE`, or `id=NAME` with the variable of that name. */
const secretOf = (text: string): readonly [id: string, value: string] => {
  const fields = new Map(text.split(",").map((field) => field.split(/=(.*)/s) as [string, string]))
  const id = fields.get("id") ?? invalid("--secret", text, "id=NAME,src=FILE or id=NAME,env=VARIABLE")
  const file = fields.get("src") ?? fields.get("source")
  if (file !== undefined) return [id, fs.readFileSync(file, "utf8")]
  const variable = fields.get("env") ?? id
  return [id, process.env[variable] ?? invalid("--secret", text, `a variable ${variable} in the environment`)]
}

/** A line for each step, and its output. */
const show = (event: BuildEvent): void => {
  const step = `#${event.step}`
  switch (event._tag) {
    case "Started":
      return remark(`${step} ${messageOf(event.text)}`)
    case "Cached":
      return remark(`${step} ${messageOf(event.text)} (made before)`)
    case "Output":
      return remark(`${step} | ${messageOf(event.line)}`)
    case "Done":
      return remark(`${step} done in ${(event.millis / 1000).toFixed(1)} s`)
    case "Failed":
      return remark(`${step} failed`)
  }
}

export const build = async (options: BuildOptions, invocation: Invocation): Promise<void> => {
  const { buildArg, context, file, network, noCache, platform, secret, tag, target } = options
  const args = environment("--build-arg", buildArg)
  const secrets = Object.fromEntries(secret.map(secretOf))
  await using berth = await openBerth(invocation)
  const { json, signal } = invocation
  const image = await berth.images.build({
    ...{ context, file, tag, target, args, secrets, network, platform, signal },
    cache: !noCache,
    onEvent: json ? ({ _tag, ...event }) => printEvent(_tag.toLowerCase(), event) : show
  })
  const { config, digest, reference } = image
  if (json) printEvent("image", { reference, digest, config })
  else print(digest === undefined ? `built, without a name: give it one by --tag` : `${reference} ${digest}`)
}
