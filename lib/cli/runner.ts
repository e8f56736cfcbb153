/** `berth runner`: serves this machine to the clients of a fleet until a signal ends it. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Berth from "../Berth.ts"
import * as Fleet from "../fleet.ts"
import { ExitCode } from "./exitCode.ts"
import { invalid } from "./given.ts"
import { type IdentityOptions, identityOf, secretIn } from "./identity.ts"
import { type Invocation, print, printEvent, remark, settled } from "./invocation.ts"

export interface RunnerOptions extends IdentityOptions {
  readonly listen: string | undefined
  readonly name: string | undefined
  readonly label: ReadonlyArray<string>
  readonly memory: string | undefined
  readonly cpus: number | undefined
  readonly databaseFile: string | undefined
  readonly lease: string | undefined
  readonly allowImage: ReadonlyArray<string>
  readonly allowPush: ReadonlyArray<string>
  readonly allowHostImage: boolean
  readonly allowBind: ReadonlyArray<string>
  readonly allowHostNamespaces: boolean
  readonly allowPrivileges: boolean
  readonly maxMemory: string | undefined
  readonly maxCpus: number | undefined
  readonly maxPids: number | undefined
  readonly maxDisk: string | undefined
}

const units: Readonly<Record<string, number>> = { ms: 1, s: 1000, "": 1000, m: 60_000 }

/** `10s`, `500ms`, `2m`, or seconds without a unit. */
const millisOf = (text: string): number => {
  const [, amount, unit = ""] =
    /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(text) ?? invalid("--lease", text, "10s, 500ms or 2m")
  return Number(amount) * units[unit]!
}

const labelsOf = (texts: ReadonlyArray<string>): Readonly<Record<string, string>> =>
  Object.fromEntries(
    texts.map((text) => {
      const [, key, value] = /^([^=]+)=(.*)$/s.exec(text) ?? invalid("--label", text, "KEY=VALUE")
      return [key!, value!]
    })
  )

const runnerOptions = (options: RunnerOptions): Fleet.RunnerOptions => ({
  ...identityOf(options),
  listen: options.listen ?? invalid("--listen", "", "the address to listen on: tcp://0.0.0.0:7411"),
  name: options.name,
  labels: labelsOf(options.label),
  memory: options.memory,
  cpus: options.cpus,
  database:
    options.databaseFile === undefined ? undefined : secretIn("--database-file", options.databaseFile),
  lease: options.lease === undefined ? undefined : millisOf(options.lease),
  allow: {
    images: options.allowImage.length === 0 ? undefined : options.allowImage,
    push: options.allowPush,
    hostImage: options.allowHostImage,
    binds: options.allowBind,
    hostNamespaces: options.allowHostNamespaces,
    privileges: options.allowPrivileges,
    limits: {
      memory: options.maxMemory,
      cpus: options.maxCpus,
      pids: options.maxPids,
      disk: options.maxDisk
    }
  }
})

/** Until a signal asks this program to end. */
const asked = ({ takeSignals }: Invocation): Effect.Effect<void> =>
  Effect.async((resume) => takeSignals(() => resume(Effect.void)))

export const runner = async (options: RunnerOptions, invocation: Invocation): Promise<number> => {
  const given = runnerOptions(options)
  const serving = Effect.gen(function* () {
    const { address, ended } = yield* Fleet.serve(given)
    if (invocation.json) printEvent("listening", { address })
    else print(`the runner listens on ${address}`)
    return yield* Effect.raceFirst(Effect.as(asked(invocation), 0), Effect.as(ended, ExitCode.other))
  })
  const berth = Layer.provide(Berth.layerWith({ folder: invocation.folder }), NodeFileSystem.layer)
  const exitCode = await settled(Effect.provide(Effect.scoped(serving), berth), invocation)
  if (exitCode !== 0)
    remark("the runner's supervisor has ended, and all containers with it: start the runner anew")
  return exitCode
}
