/** `berth fleet`: the runners at some addresses or of a database, with their room and their containers. */
import process from "node:process"
import { stripVTControlCharacters } from "node:util"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { Berth } from "../Berth.ts"
import * as Fleet from "../fleet.ts"
import type { BerthError } from "../promise.ts"
import { ExitCode } from "./exitCode.ts"
import { messageOf } from "./failure.ts"
import { invalid } from "./given.ts"
import { type IdentityOptions, identityOf, secretIn } from "./identity.ts"
import { type Invocation, print, printEvent, printJson, settled, tableOf } from "./invocation.ts"
import { makePanel } from "./panel.ts"

export interface FleetOptions extends IdentityOptions {
  readonly runner: ReadonlyArray<string>
  readonly databaseFile: string | undefined
  readonly watch: boolean
}

/** What is known of the runner at an address. */
interface Seen {
  readonly address: string
  /** Undefined while it does not answer. */
  readonly runner?: Fleet.Runner | undefined
  readonly containers: ReadonlyArray<Fleet.RunnerContainer>
  /** Why it does not answer. */
  readonly error?: BerthError | undefined
}

const look = (address: string): Effect.Effect<Seen, BerthError, Berth> =>
  Effect.map(Effect.all([Fleet.runners, Fleet.containers]), ([[runner], containers]) => ({
    address,
    runner,
    containers
  }))

/** Uses the runner at an address. A wrong option fails; why a runner cannot be used is given to `failed`. */
const at =
  (address: string, identity: Fleet.Identity) =>
  <A>(use: Effect.Effect<A, BerthError, Berth>, failed: (seen: Seen) => A): Effect.Effect<A, BerthError> =>
    Effect.scoped(use).pipe(
      Effect.provide(Layer.provide(Fleet.layer({ ...identity, runners: [address] }), NodeFileSystem.layer)),
      Effect.catchIf(
        ({ _tag }) => _tag !== "InvalidOption",
        (error) => Effect.sync(() => failed({ address, containers: [], error }))
      )
    )

// Names and labels are texts of another machine: what a terminal would obey is left out.
const safe = (text: string): string => stripVTControlCharacters(text).replace(/[\x00-\x1f\x7f-\x9f]/g, "")

const size = (bytes: number): string =>
  bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`

const cpus = (count: number): string => String(Number(count.toFixed(2)))

const linesOf = (all: ReadonlyArray<Seen>): ReadonlyArray<string> => {
  const rows = all.map(({ address, error, runner }) => {
    if (runner === undefined)
      return ["", address, error === undefined ? "does not answer" : safe(messageOf(error)), "", "", "", ""]
    const { architecture, kernel, labels, name, room } = runner
    return [
      name,
      address,
      `${architecture}, Linux ${kernel}`,
      `${size(room.usedMemoryBytes)} of ${size(room.memoryBytes)}`,
      `${cpus(room.usedCpus)} of ${cpus(room.cpus)}`,
      String(room.containers),
      Object.entries(labels)
        .map((label) => label.join("="))
        .join(" ")
    ].map(safe)
  })
  const containers = all.flatMap((seen) =>
    seen.containers.map(({ cpus: used, id, image, memoryBytes, runner }) =>
      [
        id.slice(0, 12),
        runner,
        image,
        memoryBytes === 0 ? "" : size(memoryBytes),
        used === 0 ? "" : cpus(used)
      ].map(safe)
    )
  )
  return [
    ...tableOf(["RUNNER", "ADDRESS", "MACHINE", "MEMORY", "CPUS", "CONTAINERS", "LABELS"], rows),
    ...(containers.length === 0
      ? []
      : ["", ...tableOf(["CONTAINER", "RUNNER", "IMAGE", "MEMORY", "CPUS"], containers)])
  ]
}

const jsonOf = ({ address, containers, error, runner }: Seen): object => ({
  address,
  ...(runner === undefined ? { error: error === undefined ? "does not answer" : messageOf(error) } : runner),
  running: containers
})

const REFRESH = "1 second"

/** The addresses of the runners, now and after each change. */
const addressesOf = ({
  databaseFile,
  runner
}: FleetOptions): Stream.Stream<ReadonlyArray<string>, BerthError> => {
  if (databaseFile === undefined)
    return runner.length === 0
      ? invalid("--runner", "", "the address of a runner, tcp://host:7411, or --database-file")
      : Stream.succeed(runner)
  return Fleet.addresses(secretIn("--database-file", databaseFile)).pipe(
    Stream.map((all) => [...new Set([...runner, ...all])])
  )
}

/** Shows the runners until a signal ends this program. */
const watch = (
  addresses: Stream.Stream<ReadonlyArray<string>, BerthError>,
  identity: Fleet.Identity,
  { json }: Invocation
): Effect.Effect<unknown, BerthError> => {
  const known = new Map<string, Seen>()
  const panel = process.stdout.isTTY ? makePanel(process.stdout) : undefined
  let shown = ""
  const draw = (): void => {
    const lines = linesOf([...known.values()])
    const text = JSON.stringify(lines)
    if (text === shown) return
    shown = text
    if (panel === undefined) print(`${lines.join("\n")}\n`)
    else panel.draw(lines.map(panel.cut))
  }
  const show = (seen: Seen): void => {
    const before = known.get(seen.address)
    known.set(seen.address, seen)
    if (!json) draw()
    else if (JSON.stringify(before) !== JSON.stringify(seen)) printEvent("runner", jsonOf(seen))
  }
  const changesAt = (address: string) =>
    at(address, identity)(
      Stream.merge(Fleet.runnerChanges, Stream.tick(REFRESH)).pipe(
        // What was missed while the runner was asked is seen by asking once more.
        Stream.buffer({ capacity: 1, strategy: "sliding" }),
        Stream.runForEach(() => Effect.map(look(address), show))
      ),
      show
    ).pipe(Effect.repeat(Schedule.spaced(REFRESH)))
  return addresses.pipe(
    Stream.flatMap(
      (all) => {
        for (const address of known.keys()) if (!all.includes(address)) known.delete(address)
        for (const address of all) if (!known.has(address)) known.set(address, { address, containers: [] })
        return Stream.fromEffect(Effect.forEach(all, changesAt, { concurrency: "unbounded", discard: true }))
      },
      { switch: true }
    ),
    Stream.runDrain
  )
}

export const fleet = async (options: FleetOptions, invocation: Invocation): Promise<number> => {
  const addresses = addressesOf(options)
  const identity = identityOf(options)
  if (options.watch) {
    await settled(watch(addresses, identity, invocation), invocation)
    return 0
  }
  const all = await settled(
    Stream.runHead(addresses).pipe(
      Effect.map(Option.getOrElse((): ReadonlyArray<string> => [])),
      Effect.flatMap((some) =>
        Effect.forEach(some, (address) => at(address, identity)(look(address), (seen) => seen), {
          concurrency: "unbounded"
        })
      )
    ),
    invocation
  )
  if (invocation.json) printJson(all.map(jsonOf))
  else linesOf(all).forEach(print)
  return all.every(({ runner }) => runner !== undefined) ? 0 : ExitCode.other
}
