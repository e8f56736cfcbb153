/** `berth run`: a container whose streams, signals and exit code are those of this program. */
import * as path from "node:path"
import process from "node:process"
import type { ExitStatus, StartOptions } from "../Container.ts"
import type { Image } from "../Image.ts"
import type { Mount } from "../Mount.ts"
import type { Progress } from "../Progress.ts"
import type { Box, Session } from "../promise.ts"
import { environment, invalid } from "./given.ts"
import { type Invocation, openBerth, printEvent, remark } from "./invocation.ts"

export interface Options {
  readonly image: string
  readonly interactive: boolean
  readonly tty: boolean
  readonly env: ReadonlyArray<string>
  readonly volume: ReadonlyArray<string>
  readonly workdir: string | undefined
  readonly user: string | undefined
  readonly hostname: string | undefined
  readonly entrypoint: string | undefined
  readonly network: "none" | "host" | "outbound"
  readonly allow: ReadonlyArray<string>
  readonly publish: ReadonlyArray<string>
  readonly memory: string | undefined
  readonly cpus: number | undefined
  readonly pids: number | undefined
  readonly readOnly: boolean
  readonly init: boolean
  readonly userns: boolean
  readonly platform: string | undefined
  readonly pull: "missing" | "always" | "never"
}

/** `SOURCE:TARGET[:ro]` or `TARGET`; makes the volumes that it names. */
const mountOf = async (
  text: string,
  makeVolume: (name: string | undefined) => ReturnType<Session["volume"]>
): Promise<Mount> => {
  const [, source, target, access] =
    /^(?:([^:]+):)?(\/[^:]*)(?::(ro|rw))?$/.exec(text) ??
    invalid("--volume", text, "SOURCE:TARGET, SOURCE:TARGET:ro or TARGET, where TARGET begins with /")
  const readOnly = access === "ro"
  if (source !== undefined && /^[./]/.test(source))
    return { type: "bind", source: path.resolve(source), target: target!, readOnly }
  return { type: "volume", volume: await makeVolume(source), target: target!, readOnly }
}

/** Whether the text of a port leaves the choice of the host's port to the kernel: `80`, `80/udp`. */
const isAnyPort = (text: string): boolean => /^\d+(\/\w+)?$/.test(text)

const getImage = async (
  berth: Session,
  { image, platform, pull }: Options,
  { json, signal }: Invocation
): Promise<string | Image> => {
  // What `start` takes besides names has no platform to choose, and nothing to pull.
  if (image === "host" || /^(?:oci:|\/)/.test(image)) return image
  const progress = json ? (step: Progress) => printEvent("layer", step) : "auto"
  return await berth.images.get(image, { platform, pull, progress, signal })
}

const startOptions = (options: Options, command: ReadonlyArray<string>): Omit<StartOptions, "namespaces"> => {
  const { cpus, entrypoint, hostname, init, interactive, memory, pids, readOnly, tty, user, workdir } =
    options
  const limits = { memory, cpus, pids }
  return {
    command: command.length === 0 ? undefined : command,
    entrypoint: entrypoint === undefined ? undefined : entrypoint === "" ? [] : [entrypoint],
    env: environment("--env", options.env),
    cwd: workdir,
    user,
    hostname,
    init,
    readOnly,
    userns: options.userns ? "auto" : undefined,
    limits: Object.values(limits).some((limit) => limit !== undefined) ? limits : undefined,
    ports: options.publish.filter((text) => !isAnyPort(text)),
    // The container never gets this program's own descriptors: it could read a terminal, or change what a file has already.
    terminal: tty || undefined,
    stdin: tty || interactive ? "pipe" : "null",
    stdout: "pipe",
    stderr: tty ? undefined : "pipe"
  }
}

const tell = async (stream: "stdout" | "stderr", output: AsyncIterable<Uint8Array>): Promise<void> => {
  const decoder = new TextDecoder()
  const event = (text: string) => text !== "" && printEvent("output", { stream, text })
  for await (const bytes of output) event(decoder.decode(bytes, { stream: true }))
  event(decoder.decode())
}

/** The output as events, and then how it ended. */
const asEvents = async (box: Box, { interactive }: Options, { signal }: Invocation): Promise<ExitStatus> => {
  const input = interactive ? box.stdin(process.stdin, { signal }) : undefined
  const waiting = box.wait({ signal })
  await Promise.all([tell("stdout", box.stdout), tell("stderr", box.stderr), waiting])
  process.stdin.pause()
  await input
  const status = await waiting
  printEvent("exit", status)
  return status
}

/** Has the container get the signals that this program gets; the second one kills it. */
const passSignals = (box: Box, { takeSignals }: Invocation): void => {
  let passed = false
  takeSignals((signal) => {
    box.kill(passed ? "SIGKILL" : signal).catch(() => {})
    if (!passed && signal === "SIGINT" && process.stderr.isTTY)
      remark("the container has received SIGINT; press Ctrl-C again to kill it")
    passed = true
  })
}

const networkOf = async (berth: Session, { allow, network }: Options, { signal }: Invocation) => {
  if (network === "host" && allow.length > 0) invalid("--allow", allow.join(), "no --network host beside it")
  if (network !== "outbound" && allow.length === 0) return { network }
  const made = await berth.network({ outbound: allow.length > 0 ? { allow } : "proxy", signal })
  return { network: made, close: made.close }
}

export const run = async (options: Options, invocation: Invocation): Promise<number> => {
  const { command, json, signal } = invocation
  if (json && options.tty)
    invalid("--json", "with --tty", "no --tty beside it: a terminal's output is not text alone")
  const wanted = startOptions(options, command)
  const closers: Array<() => Promise<void>> = []
  const closed = <A extends { readonly close: () => Promise<void> }>(made: A): A => {
    closers.unshift(made.close)
    return made
  }
  try {
    const berth = closed(await openBerth(invocation))
    const mounts: Array<Mount> = []
    for (const text of options.volume)
      mounts.push(await mountOf(text, async (name) => closed(await berth.volume({ name, signal }))))
    const { close, network } = await networkOf(berth, options, invocation)
    if (close !== undefined) closers.unshift(close)
    const image = await getImage(berth, options, invocation)
    const box = closed(
      await berth.start(image, {
        ...wanted,
        mounts,
        network,
        pull: image === options.image ? options.pull : undefined,
        signal
      })
    )
    passSignals(box, invocation)
    if (json) printEvent("start", { id: box.id, pid: box.pid })
    for (const text of options.publish.filter(isAnyPort)) {
      const { hostname, port } = await box.publish(text)
      if (json) printEvent("port", { container: text, hostname, port })
      else remark(`${hostname}:${port} leads to port ${text} of the container`)
    }
    const status = json ? await asEvents(box, options, invocation) : await box.attach({ signal })
    if (status.outOfMemory !== undefined && !json)
      remark("the OOM killer ended the container: it reached its memory limit, see --memory")
    return status.exitCode
  } finally {
    for (const close of closers) await close()
  }
}
