/** What every benchmark needs: the machine's facts, samples that are taken in turns, their statistics, and tables. */
import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import * as NodeContext from "@effect/platform-node/NodeContext"
import { Berth, Container, Image, type Plan } from "berth"
import type * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

/** Why something was not measured. */
export class Unmeasured extends Data.TaggedError("Unmeasured")<{ readonly message: string }> {}

export const unmeasured = (cause: unknown): Unmeasured =>
  new Unmeasured({ message: cause instanceof Error ? cause.message : String(cause) })

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url))

// Statistics

export interface Summary {
  readonly samples: number
  readonly median: number
  readonly p90: number
  readonly min: number
}

/** The value that the fraction `q` of the samples is not above. */
export const quantile = (samples: ReadonlyArray<number>, q: number): number => {
  const sorted = samples.toSorted((a, b) => a - b)
  const at = (sorted.length - 1) * q
  const low = sorted[Math.floor(at)] ?? Number.NaN
  const high = sorted[Math.ceil(at)] ?? Number.NaN
  return low + (high - low) * (at - Math.floor(at))
}

export const median = (samples: ReadonlyArray<number>): number => quantile(samples, 0.5)

export const summarize = (samples: ReadonlyArray<number>): Summary => ({
  samples: samples.length,
  median: median(samples),
  p90: quantile(samples, 0.9),
  min: Math.min(...samples)
})

// Measuring

/** What is compared: `run` does it once and gives the milliseconds that it took. */
export interface Contender {
  readonly name: string
  readonly run: Effect.Effect<number, Unmeasured>
}

/** The milliseconds that an effect takes. */
export const timed = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<number, E, R> =>
  Effect.suspend(() => {
    const started = performance.now()
    return Effect.map(effect, () => performance.now() - started)
  })

// A small generator with a fixed seed (Numerical Recipes): the same order in every run.
const shuffler = () => {
  let state = 1
  return <A>(items: ReadonlyArray<A>): ReadonlyArray<A> => {
    const shuffled = [...items]
    for (let k = shuffled.length - 1; k > 0; k--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      const other = Math.floor((state / 2 ** 32) * (k + 1))
      ;[shuffled[k], shuffled[other]] = [shuffled[other]!, shuffled[k]!]
    }
    return shuffled
  }
}

export type Summaries = Readonly<Record<string, Summary>>

export interface Measured {
  /** The milliseconds of each contender. */
  readonly summaries: Summaries
  /** Contenders that failed, and why. */
  readonly skipped: ReadonlyMap<string, string>
}

/**
 * Runs each contender once a round. What one leaves for the kernel to clean up falls to the next, and other programs
 * come and go: so the order is another in each round, and only figures of one run are compared.
 */
export const interleave = (
  contenders: ReadonlyArray<Contender>,
  options: { readonly rounds: number; readonly warmups: number }
): Effect.Effect<Measured> =>
  Effect.gen(function* () {
    const shuffle = shuffler()
    const samples = new Map<string, Array<number>>(contenders.map(({ name }) => [name, []]))
    const skipped = new Map<string, string>()
    for (let round = -options.warmups; round < options.rounds; round++) {
      for (const { name, run } of shuffle(contenders)) {
        if (skipped.has(name)) continue
        const result = yield* Effect.either(run)
        if (result._tag === "Right") {
          if (round >= 0) samples.get(name)!.push(result.right)
        } else {
          skipped.set(name, result.left.message)
          samples.delete(name)
        }
      }
    }
    return {
      summaries: Object.fromEntries([...samples].map(([name, values]) => [name, summarize(values)])),
      skipped
    }
  })

// Programs

/** A program that does one thing for each line that it is sent, and answers with one line. */
export interface LineProgram {
  readonly ask: (line: string) => Effect.Effect<string, Unmeasured>
}

/** Starts such a program; it is told that there are no more lines, and waited for, when the scope closes. */
export const lineProgram = (
  command: string,
  args: ReadonlyArray<string>
): Effect.Effect<LineProgram, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const child: ChildProcessWithoutNullStreams = spawn(command, args)
        const answers: Array<string> = []
        let errors = ""
        let waiting: (() => void) | undefined
        const wake = (): void => waiting?.()
        const ended = new Promise<void>((resolve) => {
          child.on("error", (cause) => {
            errors += `${cause.message}\n`
            resolve()
          })
          child.on("close", () => resolve())
        })
        let gone = false
        ended.then(() => {
          gone = true
          wake()
        })
        child.stdin.on("error", () => {})
        child.stderr.setEncoding("utf8").on("data", (text: string) => {
          errors += text
        })
        createInterface({ input: child.stdout }).on("line", (line) => {
          answers.push(line)
          wake()
        })
        const ask = (line: string): Effect.Effect<string, Unmeasured> =>
          Effect.async((resume) => {
            waiting = () => {
              const answer = answers.shift()
              if (answer === undefined && !gone) return
              waiting = undefined
              resume(
                answer === undefined
                  ? Effect.fail(unmeasured(errors.trim() || `${command} ended`))
                  : Effect.succeed(answer)
              )
            }
            if (line !== "") child.stdin.write(`${line}\n`)
            wake()
          })
        return { ask, child, ended }
      }),
      ({ child, ended }) =>
        Effect.promise(() => {
          child.stdin.end()
          return ended
        })
    ),
    ({ ask }) => ({ ask })
  )

/** Runs a program to its end; gives what it printed. */
export const capture = (command: string, args: ReadonlyArray<string>): Effect.Effect<string, Unmeasured> =>
  Effect.async((resume) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] })
    let out = ""
    let errors = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      out += text
    })
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors += text
    })
    child.on("error", (cause) => resume(Effect.fail(unmeasured(cause))))
    child.on("close", (code) =>
      resume(
        code === 0
          ? Effect.succeed(out)
          : Effect.fail(unmeasured(errors.trim() || `${command} ended with ${code}`))
      )
    )
  })

/** The path of a program, or undefined where it is not installed. */
export const findProgram = (name: string): string | undefined =>
  `${process.env.PATH ?? ""}:/usr/sbin:/sbin`
    .split(":")
    .map((folder) => `${folder}/${name}`)
    .find((path) => fs.existsSync(path))

/** A folder that is gone when the scope closes. */
export const temporaryFolder: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(`${os.tmpdir()}/berth-bench-`)),
  (path) => Effect.sync(() => fs.rmSync(path, { recursive: true, force: true }))
)

/** Has the C programs load the filter that a container of this plan has: see filter.h. */
export const shareFilter = ({ operations }: Plan.Plan): Effect.Effect<void, never, Scope.Scope> =>
  Effect.map(temporaryFolder, (folder) => {
    const operation = operations.find(({ op }) => op === "seccomp")
    if (operation?.op !== "seccomp") return
    fs.writeFileSync(`${folder}/filter`, operation.program)
    process.env.BENCH_SECCOMP = `${folder}/filter`
  })

/** Compiles bench/NAME.c where it is newer than what was made of it; gives the program's path. */
export const build = (name: string): Effect.Effect<string, Unmeasured> =>
  Effect.try({
    try: () => {
      const source = here(`${name}.c`)
      const program = here(`../native/build/bench-${name}`)
      const made = fs.statSync(program, { throwIfNoEntry: false })
      if (made === undefined || made.mtimeMs < fs.statSync(source).mtimeMs) {
        fs.mkdirSync(here("../native/build"), { recursive: true })
        const warnings = ["-Wall", "-Wextra", "-Werror"]
        const flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-static", ...warnings]
        execFileSync(process.env.CC ?? "cc", [...flags, "-o", program, source], { stdio: "inherit" })
      }
      return program
    },
    catch: unmeasured
  })

/** A contender that is a program: for each line it does its work once and answers with the microseconds. */
export const program = (
  name: string,
  command: string,
  args: ReadonlyArray<string>
): Effect.Effect<Contender, never, Scope.Scope> =>
  Effect.map(lineProgram(command, args), ({ ask }) => ({
    name,
    run: Effect.flatMap(ask("go"), (answer) =>
      Number.isFinite(Number(answer))
        ? Effect.succeed(Number(answer) / 1000)
        : Effect.fail(unmeasured(answer))
    )
  }))

// Containers

/** A container of the host's files that runs `true`, until its end is known and nothing of it is left. */
export const oneContainer = (options: Container.StartOptions): Effect.Effect<void, Unmeasured, Berth.Berth> =>
  Effect.flatMap(Image.host, (image) =>
    Effect.scoped(
      Effect.flatMap(Container.start(image, { ...options, command: ["true"] }), ({ exit }) => exit)
    )
  ).pipe(
    Effect.mapError(unmeasured),
    Effect.flatMap(({ exitCode }) =>
      exitCode === 0 ? Effect.void : Effect.fail(unmeasured(`exit code ${exitCode}`))
    )
  )

/** A contender that does something with a Berth. */
export const onThisBerth = (
  name: string,
  effect: Effect.Effect<unknown, Unmeasured, Berth.Berth>
): Effect.Effect<Contender, never, Berth.Berth> =>
  Effect.map(Effect.context<Berth.Berth>(), (context) => ({
    name,
    run: Effect.provide(timed(effect), context)
  }))

// Output

export const milliseconds = (value: number): string => value.toFixed(2)

/** Columns of text: the first to the left, the others to the right. */
export const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  return rows
    .map((row) =>
      row
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
        .join("   ")
        .trimEnd()
    )
    .join("\n")
}

/** How the median of one is to that of another; not a number where one of them is not there. */
export const ratio = (summaries: Summaries, a: string, b: string): number =>
  (summaries[a]?.median ?? Number.NaN) / (summaries[b]?.median ?? Number.NaN)

/** The times of each, and how they are to those of `base`. */
export const timesTable = (summaries: Summaries, base: string): string =>
  table([
    ["milliseconds", "p50", "p90", "min", `to ${base}`],
    ...Object.entries(summaries).map(([name, { median, p90, min }]) => [
      name,
      ...[median, p90, min].map(milliseconds),
      ratio(summaries, name, base).toFixed(2)
    ])
  ])

/** A figure that a benchmark is to reach. */
export interface Target {
  readonly what: string
  readonly value: number
  readonly atMost?: number
  readonly atLeast?: number
}

export const isMet = ({ value, atMost, atLeast }: Target): boolean =>
  value <= (atMost ?? Number.POSITIVE_INFINITY) && value >= (atLeast ?? Number.NEGATIVE_INFINITY)

export const targetsTable = (targets: ReadonlyArray<Target>, title = "ratio of medians"): string =>
  table([
    [title, "value", "target", ""],
    ...targets.map((target) => [
      target.what,
      Number.isNaN(target.value) ? "-" : target.value.toFixed(2),
      target.atMost === undefined ? `>= ${target.atLeast}` : `<= ${target.atMost}`,
      Number.isNaN(target.value) ? "not measured" : isMet(target) ? "met" : "not met"
    ])
  ])

export interface Machine {
  readonly kernel: string
  readonly architecture: string
  readonly cpus: number
  readonly cpu: string
  readonly memoryBytes: number
  readonly runtime: string
  /** The number of processes that wanted to run, at the start of the run: a busy machine says so. */
  readonly load: number
}

export const machine = (): Machine => ({
  kernel: os.release(),
  architecture: process.arch,
  cpus: os.cpus().length,
  cpu: os.cpus()[0]?.model ?? "unknown",
  memoryBytes: os.totalmem(),
  runtime: `node ${process.version}`,
  load: os.loadavg()[0] ?? Number.NaN
})

/** Writes bench/results/NAME.json; gives its path. */
export const writeResults = (name: string, results: unknown): string => {
  const folder = here("results")
  fs.mkdirSync(folder, { recursive: true })
  const path = `${folder}/${name}.json`
  fs.writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`)
  return path
}

/** A Berth of its own, in a folder that is gone with the scope. */
export const berthOfItsOwn: Effect.Effect<
  Context.Context<Berth.Berth | NodeContext.NodeContext>,
  never,
  Scope.Scope
> = Effect.flatMap(temporaryFolder, (folder) =>
  Effect.orDie(
    Layer.build(Layer.fresh(Berth.layerWith({ folder }).pipe(Layer.provideMerge(NodeContext.layer))))
  )
)

/** Runs a benchmark on a Berth of its own, in a folder that is gone afterwards. */
export const onBerth = <E>(measure: Effect.Effect<void, E, Berth.Berth | Scope.Scope>): Effect.Effect<void> =>
  Effect.flatMap(temporaryFolder, (folder) =>
    Effect.provide(measure, Berth.layerWith({ folder }).pipe(Layer.provideMerge(NodeContext.layer)))
  ).pipe(Effect.scoped, Effect.orDie)
