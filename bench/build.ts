/** Builds of ten RUN steps: none of them made before, all of them, and with one changed file at the end; against buildah. */
import * as fs from "node:fs"
import { parseArgs } from "node:util"
import { Build, Container, Image } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { largeBuilds } from "./buildLarge.ts"
import { dockerBuild } from "./rivals.ts"
import {
  type Contender,
  capture,
  findProgram,
  interleave,
  machine,
  onBerth,
  onThisBerth,
  ratio,
  targetsTable,
  temporaryFolder,
  timed,
  timesTable,
  unmeasured,
  writeResults
} from "./support.ts"

const STEPS = 10
const FILES = 6000
const FILE_BYTES = 17_000

const instructions = Array.from({ length: STEPS }, (_, k) => `RUN echo ${k} $NONCE > /file-${k}`)

/** The text of a Dockerfile whose steps another nonce makes new. */
const dockerfile = ["FROM bench/base", "ARG NONCE=0", ...instructions, "COPY last /last", ""].join("\n")

const makeBase = (folder: string) => {
  fs.mkdirSync(`${folder}/root/bin`, { recursive: true })
  fs.copyFileSync("/bin/busybox", `${folder}/root/bin/busybox`)
  for (const name of ["sh", "cat"]) fs.symlinkSync("busybox", `${folder}/root/bin/${name}`)
  return Image.import(`${folder}/root`, { tag: "bench/base" })
}

let nonce = 0

/** Docker's BuildKit, with the same base. */
const buildKits = (folder: string, context: string) =>
  Effect.gen(function* () {
    const archive = `${folder}/docker.tar`
    yield* Effect.mapError(
      Image.save("bench/base", archive, { format: "docker-archive", tag: "bench/base:latest" }),
      unmeasured
    )
    fs.mkdirSync(`${folder}/docker`)
    const ask = yield* dockerBuild(`${folder}/docker`, archive, context)
    return [
      { name: "BuildKit, cold", run: Effect.suspend(() => ask(String(nonce++))) },
      { name: "BuildKit, all made before", run: ask("0") }
    ] satisfies ReadonlyArray<Contender>
  }).pipe(
    Effect.catchAll(({ message }) =>
      Effect.as(Console.log(`BuildKit is not measured: ${message}`), [] as ReadonlyArray<Contender>)
    )
  )

/** buildah in a store of its own, with the same base. */
const buildahs = (folder: string, context: string) =>
  Effect.gen(function* () {
    const buildah = findProgram("buildah")
    if (buildah === undefined) return []
    const options = [
      "--storage-driver",
      "vfs",
      "--root",
      `${folder}/buildah`,
      "--runroot",
      `${folder}/runroot`
    ]
    const archive = `${folder}/base.tar`
    yield* Image.save("bench/base", archive, { format: "docker-archive" })
    yield* capture(buildah, [...options, "pull", "--quiet", `docker-archive:${archive}`])
    const build = (args: ReadonlyArray<string>) =>
      timed(
        capture(buildah, [
          ...[...options, "build", "--quiet", "--isolation", "chroot", "--pull-never", "--layers"],
          ...[...args, context]
        ])
      )
    return [
      { name: "buildah, cold", run: Effect.suspend(() => build(["--build-arg", `NONCE=${nonce++}`])) },
      { name: "buildah, all made before", run: build([]) }
    ] satisfies ReadonlyArray<Contender>
  }).pipe(
    Effect.catchAll((error) => Effect.as(Console.log(`buildah is not measured: ${error.message}`), [])),
    Effect.orElseSucceed((): ReadonlyArray<Contender> => [])
  )

/** How long it takes to make an image of a container that wrote 100 MB. */
const commits = Effect.gen(function* () {
  const base = yield* Image.fromStore("bench/base")
  const write = [
    `mkdir -p /data; i=0; while [ $i -lt ${FILES / 100} ]; do mkdir /data/$i; j=0; while [ $j -lt 100 ]; do`,
    `/bin/busybox dd if=/dev/urandom of=/data/$i/$j bs=${FILE_BYTES / 2} count=1 2>/dev/null;`,
    `/bin/busybox head -c ${FILE_BYTES / 2} /dev/zero >> /data/$i/$j; j=$((j+1)); done; i=$((i+1)); done`
  ].join(" ")
  const box = yield* Container.start(base, { command: ["sh", "-c", write], upper: "disk" })
  yield* box.exit
  const run = Effect.scoped(Effect.mapError(Container.commit(box), unmeasured))
  return yield* onThisBerth(`Container.commit of ${Math.round((FILES * FILE_BYTES) / 1e6)} MB`, run)
})

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const folder = yield* temporaryFolder
    yield* makeBase(folder)
    const context = `${folder}/context`
    fs.mkdirSync(context)
    fs.writeFileSync(`${context}/Dockerfile`, dockerfile)
    fs.writeFileSync(`${context}/last`, "0")
    const build = (args: Readonly<Record<string, string>>) =>
      Effect.mapError(Build.dockerfile({ context, args }), unmeasured)
    const own = yield* Effect.all([
      onThisBerth(
        "Berth, cold",
        Effect.suspend(() => build({ NONCE: String(nonce++) }))
      ),
      onThisBerth("Berth, all made before", build({})),
      onThisBerth(
        "Berth, a changed file in the last COPY",
        Effect.suspend(() => {
          fs.writeFileSync(`${context}/last`, String(nonce++))
          return build({})
        })
      )
    ])
    const others = [...(yield* buildahs(folder, context)), ...(yield* buildKits(folder, context))]
    const { summaries, skipped } = yield* interleave([...own, ...others], { rounds, warmups: 1 })
    for (const [name, why] of skipped) yield* Console.log(`${name} is not measured: ${why}`)
    yield* Console.log(timesTable(summaries, "Berth, cold"))
    const { summaries: committing } = yield* interleave([yield* commits], { rounds: 3, warmups: 0 })
    yield* Console.log(timesTable(committing, Object.keys(committing)[0]!))
    const { summaries: large } = yield* interleave(yield* largeBuilds(folder), {
      rounds: Math.min(rounds, 3),
      warmups: 0
    })
    yield* Console.log(timesTable(large, Object.keys(large)[0]!))
    const targets = [
      { what: "cold, to buildah", value: ratio(summaries, "Berth, cold", "buildah, cold"), atMost: 0.1 },
      { what: "cold, to BuildKit", value: ratio(summaries, "Berth, cold", "BuildKit, cold"), atMost: 0.2 },
      { what: "all made before, in ms", value: summaries["Berth, all made before"]!.median, atMost: 30 }
    ]
    yield* Console.log(targetsTable(targets, "value"))
    const results = { machine: machine(), rounds, summaries, committing, large }
    yield* Console.log(`written: ${writeResults("build", results)}`)
  })

export const build = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "5" } } })
  return onBerth(Effect.orDie(measure(Number(values.rounds))))
}
