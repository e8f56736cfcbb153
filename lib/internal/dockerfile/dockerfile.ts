/** `Build.dockerfile`: reads a Dockerfile, and makes a build of the stages that its target needs. */
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth } from "../../Berth.ts"
import { type BerthError, BuildFailed, InvalidOption } from "../../BerthError.ts"
import type { Build, DockerfileOptions } from "../../Build.ts"
import type { Context } from "../../BuildStep.ts"
import * as Image from "../../Image.ts"
import { gitBuild, isBuild, local, of } from "../build/build.ts"
import { baseOf } from "../build/evaluate.ts"
import { DiskFull, diskDetail, inPlace } from "../build/failure.ts"
import type { From, Node } from "../build/node.ts"
import { rawConfigOf } from "../image/derive.ts"
import type * as Oci from "../oci/documents.ts"
import { parsePlatform, printPlatform } from "../oci/layout.ts"
import { hostPlatform } from "../oci/platform.ts"
import * as Store from "../store/store.ts"
import { defaultPath } from "../util/defaultPath.ts"
import { nearest } from "../util/didYouMean.ts"
import { isRepository } from "../util/gitAddress.ts"
import { gitOf } from "./copy.ts"
import { fieldsOf } from "./mounts.ts"
import { flagsOf, Unsupported } from "./options.ts"
import { originOf } from "./origin.ts"
import { type Instruction, parse, SyntaxFailure } from "./parse.ts"
import { add, type Stage, type Surroundings, stageOf } from "./stage.ts"
import * as words from "./words.ts"

/** The instructions of each stage, the first of which is its FROM, and those before the first stage. */
const stagesOf = (instructions: ReadonlyArray<Instruction>) => {
  const before: Array<Instruction> = []
  const stages: Array<ReadonlyArray<Instruction>> = []
  for (const instruction of instructions) {
    if (instruction.keyword === "FROM") stages.push([instruction])
    else if (stages.length > 0) stages[stages.length - 1] = [...stages.at(-1)!, instruction]
    else if (instruction.keyword === "ARG") before.push(instruction)
    else
      throw new SyntaxFailure(
        instruction.line,
        `${instruction.keyword} is before the first FROM: only ARG may be there`
      )
  }
  return { before, stages }
}

interface Header {
  readonly source: string
  readonly name: string | undefined
  readonly platform: string | undefined
  readonly line: number
}

/** The arguments of the platforms that BuildKit has: that of the image, and that of this machine. */
const platformArguments = (target: Oci.Platform): ReadonlyArray<readonly [string, string]> => {
  const of = (prefix: string, platform: Oci.Platform): ReadonlyArray<readonly [string, string]> => [
    [`${prefix}PLATFORM`, printPlatform(platform)],
    [`${prefix}OS`, platform.os],
    [`${prefix}ARCH`, platform.architecture],
    [`${prefix}VARIANT`, platform.variant ?? ""]
  ]
  return [...of("TARGET", target), ...of("BUILD", hostPlatform())]
}

const globalsOf = (
  before: ReadonlyArray<Instruction>,
  args: Readonly<Record<string, string>>,
  escape: string,
  platform: Oci.Platform
): Map<string, string | undefined> => {
  const globals = new Map<string, string | undefined>(platformArguments(platform))
  const lexer = { escape, get: (name: string) => globals.get(name) }
  for (const { rest } of before)
    for (const part of words.split(rest, escape)) {
      const equals = part.indexOf("=")
      const name = equals < 0 ? part : part.slice(0, equals)
      const own = equals < 0 ? globals.get(name) : words.expand(part.slice(equals + 1), lexer)
      globals.set(name, Object.hasOwn(args, name) ? args[name] : own)
    }
  return globals
}

const headerOf = (instruction: Instruction, lexer: words.Lexer): Header => {
  const { line, rest } = instruction
  const flags = flagsOf(instruction, ["platform"])
  const [source = "", as, name, ...more] = words.split(rest, lexer.escape)
  if (more.length > 0 || (as !== undefined && (as.toUpperCase() !== "AS" || name === undefined)))
    throw new SyntaxFailure(line, `FROM ${rest}: expected FROM IMAGE, or FROM IMAGE AS NAME`)
  const expanded = words.expand(source, lexer)
  if (expanded === "")
    throw new SyntaxFailure(
      line,
      `FROM ${rest}: the name of the image is empty: give the arguments in it a value`
    )
  const platform = flags.one("platform")
  return {
    source: expanded,
    name: name?.toLowerCase(),
    platform: platform === undefined ? undefined : words.expand(platform, lexer) || undefined,
    line
  }
}

/** The failure of a Dockerfile, with its place. */
const failedAt =
  (file: string, text: string, line: number) =>
  (error: unknown): BerthError => {
    const failed = (reason: BuildFailed["reason"], at: number, detail: string) =>
      new BuildFailed({
        reason,
        step: text,
        place: `${file}:${at}`,
        detail,
        exitCode: undefined,
        log: [],
        cause: error
      })
    if (error instanceof SyntaxFailure) return failed("Syntax", error.line, error.message)
    if (error instanceof words.WordFailure) return failed("Syntax", line, error.message)
    if (error instanceof Unsupported) return failed("Unsupported", line, error.message)
    if (error instanceof DiskFull) return failed("Storage", line, error.message)
    throw error
  }

const attemptAt = <A>(
  file: string,
  text: string,
  line: number,
  evaluate: () => A
): Effect.Effect<A, BerthError> => Effect.try({ try: evaluate, catch: failedAt(file, text, line) })

/** Named contexts that are images begin with these: one by its name, and one of a folder that is an OCI layout. */
const DOCKER_IMAGE = "docker-image://"
const OCI_LAYOUT = "oci-layout://"

/** The image of a layout: `PATH`, `PATH:TAG` or `PATH@DIGEST`. */
const layoutImage = (
  text: string,
  platform: string | undefined
): Effect.Effect<Image.Image, BerthError, Berth> => {
  const [, path = "", tag, digest] = /^(.*?)(?::([^:/@]+))?(?:@([^@/]+))?$/s.exec(text)!
  return Image.fromLayout(path, { tag, digest, platform })
}

/** A folder with texts as its files, for here-documents. Equal texts have one folder. */
const textsIn =
  (berth: Berth) =>
  (files: Readonly<Record<string, string>>): Context => {
    const digest = createHash("sha256").update(JSON.stringify(files)).digest("hex")
    // Removed with the state of this program.
    const folder = `${berth.supervisor.folder}/texts-${digest}`
    try {
      fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
      for (const [name, text] of Object.entries(files))
        fs.writeFileSync(`${folder}/${name}`, text, { mode: 0o644 })
    } catch (error) {
      fs.rmSync(folder, { recursive: true, force: true })
      const detail = diskDetail(error, berth.folder)
      throw detail === undefined ? error : new DiskFull(detail, { cause: error })
    }
    return { _tag: "Context", folder, ignore: [] }
  }

const strings = (value: unknown): ReadonlyArray<string> | undefined =>
  Array.isArray(value) && value.every((item) => typeof item === "string") ? value : undefined

interface Inherited {
  readonly environment: Readonly<Record<string, string>>
  readonly onBuild: ReadonlyArray<string>
  readonly shell: ReadonlyArray<string> | undefined
}

/** What a build's configuration says for instructions that follow it. No step runs for it. */
const inherited = (last: Node, options: DockerfileOptions): Effect.Effect<Inherited, BerthError, Berth> => {
  const configOf = (
    node: Node
  ): Effect.Effect<
    { config: Image.ImageConfig; raw: Readonly<Record<string, unknown>> },
    BerthError,
    Berth
  > =>
    node._tag === "From"
      ? Effect.gen(function* () {
          const base = yield* baseOf(node, options)
          const environment = { ...base.config.environment, ...node.environment }
          return { config: { ...base.config, environment }, raw: yield* rawConfigOf(base) }
        })
      : Effect.map(configOf(node.parent), ({ config, raw }) =>
          node._tag === "Configure"
            ? { config: { ...config, ...node.change(config) }, raw: { ...raw, ...node.raw } }
            : { config, raw }
        )
  return Effect.map(configOf(last), ({ config: { environment }, raw }) => ({
    environment,
    onBuild: strings(raw.OnBuild) ?? [],
    shell: strings(raw.Shell)
  }))
}

export const dockerfile = (options: DockerfileOptions): Effect.Effect<Build, BerthError, Berth> =>
  Effect.gen(function* () {
    const berth = yield* Berth
    const { allow = [], args = {}, contexts = {}, knownHosts, secrets = {}, ssh = {}, target } = options
    const platform = yield* parsePlatform(options.platform)
    const { context, file, text } = yield* originOf(options)
    const { escape, instructions } = yield* attemptAt(file, "read", 1, () => parse(text))
    const { before, stages } = yield* attemptAt(file, "read", 1, () => stagesOf(instructions))
    if (stages.length === 0)
      return yield* Effect.fail(failedAt(file, "read", 1)(new SyntaxFailure(1, "it has no FROM")))
    const globals = yield* attemptAt(file, "ARG", before[0]?.line ?? 1, () =>
      globalsOf(before, args, escape, platform)
    )
    const lexer = { escape, get: (name: string) => globals.get(name) }
    const headers = yield* Effect.forEach(stages, ([from]) =>
      attemptAt(file, `FROM ${from!.rest}`, from!.line, () => headerOf(from!, lexer))
    )
    const earlier = (name: string, index: number): number =>
      headers.findLastIndex((header, k) => k < index && header.name === name.toLowerCase())

    const made = new Map<number, Stage>()

    /** The stages that a stage needs, by their numbers. */
    const needsOf = (index: number): ReadonlyArray<number> => {
      const named = [
        headers[index]!.source,
        ...stages[index]!.flatMap(({ flags }) =>
          flags.flatMap(({ name, value = "" }) =>
            name === "from" ? [value] : name === "mount" ? (fieldsOf(value).get("from") ?? []) : []
          )
        )
      ]
      return named.flatMap((name) => {
        const found = /^\d+$/.test(name) && Number(name) < index ? Number(name) : earlier(name, index)
        return found < 0 ? [] : [found]
      })
    }

    const contextOf = (of: string | Build, line: number, platform?: string): Context | Node => {
      const from = (source: From["source"]): From => ({ _tag: "From", source, platform })
      if (typeof of === "string" && of.startsWith(DOCKER_IMAGE)) return from(of.slice(DOCKER_IMAGE.length))
      if (typeof of === "string" && of.startsWith(OCI_LAYOUT))
        return from(layoutImage(of.slice(OCI_LAYOUT.length), platform ?? options.platform))
      if (platform !== undefined)
        throw new SyntaxFailure(
          line,
          `--platform=${platform}: the context of that name is no image, so it has no other platform`
        )
      if (isBuild(of)) return of.node
      return isRepository(of) ? gitBuild(gitOf(of, { knownHosts, secrets, ssh }, line)).node : local(of)
    }

    const sourceOf =
      (index: number) =>
      (name: string, line: number): Context | Node => {
        const number = /^\d+$/.test(name) ? Number(name) : earlier(name, index)
        if (number >= 0 && number < index) return made.get(number)!.node
        if (Object.hasOwn(contexts, name)) return contextOf(contexts[name]!, line)
        if (/^\d+$/.test(name) || headers.some((header) => header.name === name.toLowerCase()))
          throw new SyntaxFailure(line, `--from=${name}: there is no earlier stage ${name}`)
        return { _tag: "From", source: name }
      }

    /** The image that a stage begins with, with what its configuration says for later instructions. */
    const beginning = (index: number): Effect.Effect<Stage, BerthError, Berth> =>
      Effect.gen(function* () {
        const { line, platform, source: name } = headers[index]!
        const from = { text: `FROM ${name}`, place: `${file}:${line}` }
        const number = earlier(name, index)
        if (number >= 0) {
          const { environment, node, onBuild, shell } = made.get(number)!
          return stageOf(node, { environment, onBuild, shell })
        }
        if (Object.hasOwn(contexts, name)) {
          const of = yield* attemptAt(file, `FROM ${name}`, line, () =>
            contextOf(contexts[name]!, line, platform)
          )
          if (of._tag !== "Context")
            return stageOf(of, yield* Effect.mapError(inherited(of, options), inPlace(from)))
          const wrong = new SyntaxFailure(
            line,
            `FROM ${name}: the context of that name is a folder, not a build`
          )
          return yield* Effect.fail(failedAt(file, `FROM ${name}`, line)(wrong))
        }
        if (name === "scratch") {
          const environment = { PATH: defaultPath }
          return stageOf({ _tag: "From", source: Image.scratch, environment, platform }, { environment })
        }
        const image = yield* Image.get(name, {
          pull: options.pull,
          platform: platform ?? options.platform
        }).pipe(Effect.mapError(inPlace(from)))
        const node: From = { _tag: "From", source: image }
        return stageOf(node, yield* inherited(node, options))
      })

    const build = (index: number): Effect.Effect<void, BerthError, Berth> =>
      Effect.gen(function* () {
        if (made.has(index)) return
        yield* Effect.forEach(needsOf(index), build, { discard: true })
        const stage = yield* beginning(index)
        const around: Surroundings = {
          escape,
          file,
          context,
          args,
          globals,
          secrets,
          ssh,
          knownHosts,
          allow: new Set([...allow, ...(options.network === "host" ? ["network.host"] : [])]),
          texts: textsIn(berth),
          sourceOf: sourceOf(index)
        }
        const [from, ...rest] = stages[index]!
        const apply = (instruction: Instruction) =>
          attemptAt(file, `${instruction.keyword} ${instruction.rest}`, instruction.line, () =>
            add(stage, instruction, around)
          )
        const triggers = stage.onBuild
        if (triggers.length > 0) {
          stage.onBuild = []
          stage.node = {
            _tag: "Configure",
            parent: stage.node,
            change: () => ({}),
            raw: { OnBuild: undefined },
            text: "FROM",
            place: `${file}:${from!.line}`
          }
          for (const trigger of triggers)
            for (const instruction of yield* attemptAt(
              file,
              `ONBUILD ${trigger}`,
              from!.line,
              () => parse(trigger).instructions
            ))
              yield* apply({ ...instruction, line: from!.line })
        }
        for (const instruction of rest) yield* apply(instruction)
        made.set(index, stage)
      })

    const wanted =
      target === undefined
        ? stages.length - 1
        : /^\d+$/.test(target) && Number(target) < stages.length
          ? Number(target)
          : headers.findIndex(({ name }) => name === target.toLowerCase())
    if (wanted < 0) {
      const names = headers.flatMap(({ name }) => name ?? [])
      const similar = names.length === 0 ? "" : `; the most similar one is ${nearest(target!, names)}`
      return yield* new InvalidOption({
        option: "target",
        value: JSON.stringify(target),
        expected: `a stage of ${file}${similar}`
      })
    }
    yield* build(wanted)
    return of(made.get(wanted)!.node)
  }).pipe(Store.keeping)
