/** `berth build`: builds the image of a Dockerfile, and shows its steps. */
import * as fs from "node:fs"
import process from "node:process"
import type { BuildEvent, CachePlace } from "../Build.ts"
import { live, plain } from "./buildView.ts"
import { messageOf } from "./failure.ts"
import { environment, invalid } from "./given.ts"
import { type Invocation, openBerth, print, printEvent } from "./invocation.ts"

export interface BuildOptions {
  readonly context: string
  readonly file: string | undefined
  readonly tag: string | undefined
  readonly target: string | undefined
  readonly buildArg: ReadonlyArray<string>
  readonly buildContext: ReadonlyArray<string>
  readonly secret: ReadonlyArray<string>
  readonly ssh: ReadonlyArray<string>
  readonly allow: ReadonlyArray<string>
  readonly network: "none" | "host"
  readonly noCache: boolean
  readonly provenance: boolean
  readonly cacheFrom: ReadonlyArray<string>
  readonly cacheTo: string | undefined
  readonly platform: string | undefined
  readonly compression: "gzip" | "zstd"
  readonly output: string | undefined
  readonly format: "folder" | "tar" | "oci-archive" | "oci-layout" | "docker-archive"
  readonly path: string | undefined
  readonly explain: boolean
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

const contextOf = (text: string): readonly [name: string, place: string] => {
  const [name, place] = text.split(/=(.*)/s)
  return name && place ? [name, place] : invalid("--build-context", text, "NAME=PLACE")
}

/** `ID=SOCKET`, or `ID` with the agent of this user. */
const agentOf = (text: string): readonly [id: string, socket: string] => {
  const [id = "", socket = process.env.SSH_AUTH_SOCK] = text.split(/=(.*)/s)
  return [id, socket || invalid("--ssh", text, "ID=SOCKET, or ID with SSH_AUTH_SOCK in the environment")]
}

const rightOf = (text: string) =>
  text === "network.host" || text === "security.insecure"
    ? text
    : invalid("--allow", text, "network.host or security.insecure")

/** A path begins with `/` or `.`; the name of an image begins with neither. */
const cacheOf = (text: string): CachePlace => (/^[/.]/.test(text) ? { folder: text } : text)

export const build = async (options: BuildOptions, invocation: Invocation): Promise<void> => {
  const { buildArg, cacheFrom, cacheTo, compression, context, explain, file, format, network, noCache } =
    options
  const { output, path, platform, provenance, secret, tag, target } = options
  const args = environment("--build-arg", buildArg)
  const secrets = Object.fromEntries(secret.map(secretOf))
  await using berth = await openBerth(invocation)
  const { json, signal } = invocation
  const given = {
    ...{ context, file, tag, target, args, secrets, network, platform, signal, compression, provenance },
    ssh: Object.fromEntries(options.ssh.map(agentOf)),
    contexts: Object.fromEntries(options.buildContext.map(contextOf)),
    allow: options.allow.map(rightOf),
    cache: !noCache,
    cacheFrom: cacheFrom.map(cacheOf),
    cacheTo: cacheTo === undefined ? undefined : cacheOf(cacheTo)
  }
  if (explain) {
    const steps = await berth.images.explain(given)
    if (json) for (const step of steps) printEvent("step", step)
    else
      for (const { isMade, reasons, step, text } of steps)
        print(`#${step} ${messageOf(text)}: ${isMade ? "made before" : messageOf(reasons.join(", "))}`)
    return
  }
  const view = process.stderr.isTTY ? live(process.stderr) : plain(process.stderr)
  const watched = {
    ...given,
    onEvent: json ? ({ _tag, ...event }: BuildEvent) => printEvent(_tag.toLowerCase(), event) : view.show
  }
  // The view is gone before the result or the error is written.
  if (output !== undefined) {
    await berth.images.export({ ...watched, to: output, format, path }).finally(view.close)
    return json ? printEvent("exported", { to: output }) : print(output)
  }
  const image = await berth.images.build(watched).finally(view.close)
  const { config, digest, reference } = image
  if (json) printEvent("image", { reference, digest, config })
  else print(digest === undefined ? `built, without a name: give it one by --tag` : `${reference} ${digest}`)
}
