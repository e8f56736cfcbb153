/** One stage of a Dockerfile while its instructions become steps of a build. */
import * as Duration from "effect/Duration"
import type { Context } from "../../BuildStep.ts"
import type { Healthcheck, ImageConfig } from "../../Image.ts"
import type { File } from "../../Mount.ts"
import * as Mount from "../../Mount.ts"
import type { Node } from "../build/node.ts"
import { copyOf } from "./copy.ts"
import { mountsOf, type Sources } from "./mounts.ts"
import { flagsOf, millisOf, Unsupported } from "./options.ts"
import { type Instruction, jsonOf, SyntaxFailure } from "./parse.ts"
import * as words from "./words.ts"

/** Arguments that every build has without ARG, for the commands of a RUN alone. */
const proxies = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"].flatMap((name) => [
  name,
  name.toLowerCase()
])

export interface Surroundings extends Sources {
  readonly escape: string
  /** The name of the file, for places. */
  readonly file: string
  /** The values of arguments that the caller gives. */
  readonly args: Readonly<Record<string, string>>
  /** The arguments before the first FROM, and those of the platform. */
  readonly globals: ReadonlyMap<string, string | undefined>
  /** What instructions may ask for besides the rights of a container. */
  readonly allow: ReadonlySet<string>
  /** A context with these texts as its files. */
  readonly texts: (files: Readonly<Record<string, string>>) => Context
}

export interface Stage {
  node: Node
  environment: Record<string, string>
  /** The arguments that the stage has declared. */
  readonly declared: Map<string, string | undefined>
  shell: ReadonlyArray<string>
  onBuild: ReadonlyArray<string>
  /** Whether the stage has set a command, which an ENTRYPOINT then keeps. */
  hasCommand: boolean
}

const DEFAULT_SHELL = ["/bin/sh", "-c"]

export const stageOf = (
  node: Node,
  {
    environment,
    onBuild = [],
    shell = DEFAULT_SHELL
  }: {
    readonly environment?: Readonly<Record<string, string>>
    readonly onBuild?: ReadonlyArray<string>
    readonly shell?: ReadonlyArray<string> | undefined
  }
): Stage => ({
  node,
  environment: { ...environment },
  declared: new Map(),
  shell,
  onBuild,
  hasCommand: false
})

type Raw = Readonly<Record<string, unknown>>

/** Adds the steps of an instruction to its stage. Throws `SyntaxFailure`, `WordFailure` and `Unsupported`. */
export const add = (stage: Stage, instruction: Instruction, around: Surroundings): void => {
  const { heredocs, json, keyword, line, rest } = instruction
  const place = `${around.file}:${line}`
  const lexer: words.Lexer = {
    escape: around.escape,
    get: (name) =>
      Object.hasOwn(stage.environment, name) ? stage.environment[name] : stage.declared.get(name)
  }
  const expand = (text: string): string => words.expand(text, lexer)
  const all = (text: string): ReadonlyArray<string> => words.split(text, around.escape).map(expand)
  const list = (): ReadonlyArray<string> => json?.map(expand) ?? all(rest)
  const text = `${keyword} ${rest}`
  const configure = (change: (config: ImageConfig) => Partial<ImageConfig>, raw?: Raw): void => {
    stage.node = { _tag: "Configure", parent: stage.node, change, raw, text, place }
  }
  const noFlags = (): void => void flagsOf(instruction, [])
  const command = (): ReadonlyArray<string> => json ?? [...stage.shell, rest]

  /** The pairs of ENV and LABEL: `A=1 B="2 3"`, or the old `A the rest`. */
  const pairs = (): ReadonlyArray<readonly [name: string, value: string]> => {
    const parts = words.split(rest, around.escape)
    if (!parts[0]!.includes("=")) {
      const [, name = "", value] = /^(\S+)\s+([\s\S]*)$/.exec(rest) ?? []
      if (value === undefined)
        throw new SyntaxFailure(line, `${keyword} ${rest}: a value is missing, as in ${keyword} NAME=VALUE`)
      return [[expand(name), expand(value)]]
    }
    return parts.map((part) => {
      const equals = part.indexOf("=")
      if (equals < 1) throw new SyntaxFailure(line, `${part} is no pair, as in ${keyword} NAME=VALUE`)
      return [expand(part.slice(0, equals)), expand(part.slice(equals + 1))]
    })
  }

  const run = (): void => {
    const flags = flagsOf(instruction, ["mount", "network", "security"], ["mount"])
    const security = flags.one("security") ?? "sandbox"
    if (security !== "sandbox" && security !== "insecure")
      throw new SyntaxFailure(line, `--security=${security}: expected sandbox or insecure`)
    const network = flags.one("network")
    if (network !== undefined && network !== "default" && network !== "none" && network !== "host")
      throw new SyntaxFailure(line, `--network=${network}: expected default, none or host`)
    const allowed = (what: string, flag: string): void => {
      if (!around.allow.has(what))
        throw new Unsupported(`${flag} needs the consent of who builds: give ${what} in allow`)
    }
    if (security === "insecure") allowed("security.insecure", "--security=insecure")
    if (network === "host") allowed("network.host", "--network=host")
    const { agents, binds, caches, mounts, secrets } = mountsOf(
      flags.all("mount"),
      around,
      line,
      place,
      expand
    )
    const declared = [...stage.declared].filter((pair): pair is [string, string] => pair[1] !== undefined)
    const given = proxies.flatMap((name) =>
      Object.hasOwn(around.args, name) ? [[name, around.args[name]!] as const] : []
    )
    const env = Object.fromEntries(
      [...given, ...declared].filter(([name]) => !Object.hasOwn(stage.environment, name))
    )
    const files: Array<File> = []
    const script = (): ReadonlyArray<string> => {
      const [first] = heredocs
      if (first === undefined) return command()
      if (heredocs.length > 1 || !/^<<-?(["']?)[\w.-]+\1$/.test(rest))
        return [...stage.shell, [rest, ...heredocs.map(({ name, text }) => `${text}${name}`), ""].join("\n")]
      const interpreter = /^#!\s*(\S+)(?:[ \t]+(\S+))?/.exec(first.text)
      if (interpreter === null) return [...stage.shell, first.text]
      const target = `/run/heredocs/${first.name}`
      files.push(Mount.file(target, first.text) as File)
      return [...interpreter.slice(1).filter((word) => word !== undefined), target]
    }
    stage.node = {
      _tag: "Run",
      parent: stage.node,
      command: script(),
      options: {
        env,
        mounts: [...mounts, ...files],
        security,
        ...(network === "none" || network === "host" ? { network } : {})
      },
      binds,
      caches,
      secrets,
      agents,
      text,
      place
    }
  }

  const healthcheck = (): Healthcheck => {
    const flags = flagsOf(instruction, ["interval", "timeout", "start-period", "start-interval", "retries"])
    const [, kind = "", after = ""] = /^(\S+)\s*([\s\S]*)$/.exec(rest) ?? []
    const duration = (name: string): Duration.Duration | undefined => {
      const value = flags.one(name)
      if (value === undefined) return undefined
      const millis = millisOf(expand(value))
      if (millis === undefined) throw new SyntaxFailure(line, `--${name}=${value} is no duration, as 1m30s`)
      return Duration.millis(millis)
    }
    const retries = flags.one("retries")
    if (retries !== undefined && !/^\d+$/.test(retries))
      throw new SyntaxFailure(line, `--retries=${retries} is no number`)
    const timing = {
      interval: duration("interval"),
      timeout: duration("timeout"),
      startPeriod: duration("start-period"),
      startInterval: duration("start-interval"),
      retries: retries === undefined ? undefined : Number(retries)
    }
    if (kind.toUpperCase() === "NONE") {
      if (after !== "" || Object.values(timing).some((value) => value !== undefined))
        throw new SyntaxFailure(line, "HEALTHCHECK NONE takes nothing else")
      return { test: ["NONE"], ...timing }
    }
    if (kind.toUpperCase() !== "CMD" || after === "")
      throw new SyntaxFailure(line, "HEALTHCHECK needs CMD with a command, or NONE")
    const exec = jsonOf(after)
    return { test: exec === undefined ? ["CMD-SHELL", after] : ["CMD", ...exec], ...timing }
  }

  switch (keyword) {
    case "RUN":
      return run()
    case "COPY":
    case "ADD":
      stage.node = copyOf(stage.node, instruction, around, lexer, text, place)
      return
    case "ARG": {
      noFlags()
      for (const part of words.split(rest, around.escape)) {
        const equals = part.indexOf("=")
        const name = equals < 0 ? part : part.slice(0, equals)
        if (!/^[A-Za-z_]\w*$/.test(name))
          throw new SyntaxFailure(line, `ARG ${name}: this is no name of a variable`)
        const given = Object.hasOwn(around.args, name) ? around.args[name] : undefined
        stage.declared.set(
          name,
          given ?? (equals < 0 ? around.globals.get(name) : expand(part.slice(equals + 1)))
        )
      }
      return
    }
    case "ENV": {
      noFlags()
      const environment = Object.fromEntries(pairs())
      stage.environment = { ...stage.environment, ...environment }
      return configure((config) => ({ environment: { ...config.environment, ...environment } }))
    }
    case "LABEL": {
      noFlags()
      const labels = Object.fromEntries(pairs())
      return configure((config) => ({ labels: { ...config.labels, ...labels } }))
    }
    case "WORKDIR":
      noFlags()
      stage.node = { _tag: "Workdir", parent: stage.node, path: expand(rest), text, place }
      return
    case "USER": {
      noFlags()
      const user = expand(rest)
      return configure(() => ({ user }))
    }
    case "VOLUME": {
      noFlags()
      const volumes = list()
      return configure((config) => ({ volumes: [...new Set([...config.volumes, ...volumes])] }))
    }
    case "EXPOSE": {
      noFlags()
      const ports = all(rest).flatMap((port) => {
        const [, first, last, protocol = "tcp"] = /^(\d+)(?:-(\d+))?(?:\/(tcp|udp|sctp))?$/i.exec(port) ?? []
        if (first === undefined)
          throw new SyntaxFailure(line, `EXPOSE ${port}: this is no port, as 8080 or 53/udp`)
        const [from, to] = [Number(first), Number(last ?? first)]
        if (to < from || to > 65_535) throw new SyntaxFailure(line, `EXPOSE ${port}: ports are 1 to 65535`)
        return Array.from({ length: to - from + 1 }, (_, k) => `${from + k}/${protocol.toLowerCase()}`)
      })
      return configure((config) => ({ exposedPorts: [...new Set([...config.exposedPorts, ...ports])] }))
    }
    case "STOPSIGNAL": {
      noFlags()
      const stopSignal = expand(rest)
      return configure(() => ({ stopSignal }))
    }
    case "CMD": {
      noFlags()
      const made = command()
      stage.hasCommand = true
      return configure(() => ({ command: made }))
    }
    case "ENTRYPOINT": {
      noFlags()
      const made = command()
      const { hasCommand } = stage
      // The command of the base would be arguments of an entrypoint that it was not written for.
      return configure(() => ({ entrypoint: made, ...(hasCommand ? {} : { command: [] }) }))
    }
    case "HEALTHCHECK": {
      const check = healthcheck()
      return configure(() => ({ healthcheck: check }))
    }
    case "SHELL": {
      noFlags()
      if (json === undefined || json.length === 0)
        throw new SyntaxFailure(line, 'SHELL needs the JSON form, as ["/bin/bash", "-c"]')
      stage.shell = json
      return configure(() => ({}), { Shell: json })
    }
    case "ONBUILD": {
      const [trigger = ""] = rest.toUpperCase().split(/\s/)
      if (["ONBUILD", "FROM", "MAINTAINER"].includes(trigger))
        throw new SyntaxFailure(line, `ONBUILD ${trigger} is not allowed`)
      stage.onBuild = [...stage.onBuild, rest]
      return configure(() => ({}), { OnBuild: stage.onBuild })
    }
    case "MAINTAINER":
      noFlags()
      stage.node = {
        _tag: "Configure",
        parent: stage.node,
        change: () => ({}),
        author: expand(rest),
        text,
        place
      }
      return
    default:
      throw new SyntaxFailure(line, `${keyword} is no instruction`)
  }
}
