/** The mounts of a RUN. */
import { posix } from "node:path"
import * as Redacted from "effect/Redacted"
import type { CacheOptions } from "../../Build.ts"
import type { File, Tmpfs } from "../../Mount.ts"
import * as Mount from "../../Mount.ts"
import { bindOf } from "../build/build.ts"
import type { Bind, Context, Node, Secret } from "../build/node.ts"
import { Unsupported } from "./options.ts"
import { SyntaxFailure } from "./parse.ts"

/** The fields of a mount: `type=cache,target=/root/.npm`. Values may be in quotes, as in a line of CSV. */
export const fieldsOf = (text: string): ReadonlyMap<string, string> => {
  const fields = text.match(/(?:"(?:[^"]|"")*"|[^,"])+/g) ?? []
  return new Map(
    fields.map((field) => {
      const plain = field.replace(/^"([\s\S]*)"$/, (_, inner: string) => inner.replaceAll('""', '"'))
      const equals = plain.indexOf("=")
      return equals < 0
        ? ([plain.trim().toLowerCase(), "true"] as const)
        : ([plain.slice(0, equals).trim().toLowerCase(), plain.slice(equals + 1)] as const)
    })
  )
}

export interface Sources {
  readonly context: Context
  readonly secrets: Readonly<Record<string, Secret>>
  /** The sockets of SSH agents, by their ids. */
  readonly ssh: Readonly<Record<string, string>>
  /** The source of `from`: an earlier stage, a named context or an image. */
  readonly sourceOf: (name: string, line: number) => Context | Node
}

export interface Mounts {
  readonly binds: Array<Bind>
  readonly mounts: Array<File | Tmpfs>
  readonly cache: Record<string, CacheOptions>
  readonly secret: Record<string, Secret>
  readonly ssh: Record<string, string>
}

/** The text of a file is part of a step's key; a redacted one says nothing of itself there. */
const redacted = (secret: Secret) => (Redacted.isRedacted(secret) ? secret : Redacted.make(secret))

const TARGETS = ["target", "dst", "destination"]

/** The mounts by their texts. Throws `SyntaxFailure` and `Unsupported`. */
export const mountsOf = (
  texts: ReadonlyArray<string>,
  around: Sources,
  line: number,
  place: string
): Mounts => {
  const made: Mounts = { binds: [], mounts: [], cache: {}, secret: {}, ssh: {} }
  const files: Array<File> = []
  for (const text of texts) {
    const fields = fieldsOf(text)
    const type = fields.get("type") ?? "bind"
    const known = (...names: ReadonlyArray<string>): void => {
      for (const name of fields.keys())
        if (!["type", ...TARGETS, ...names].includes(name))
          throw new Unsupported(`--mount: ${name} of type=${type} is not supported`)
    }
    const given = TARGETS.flatMap((name) => fields.get(name) ?? [])[0]
    const target = (): string => {
      if (given === undefined) throw new SyntaxFailure(line, `--mount=${text}: target is missing`)
      return given
    }
    const isOn = (...names: ReadonlyArray<string>): boolean =>
      names.some((name) => {
        const value = fields.get(name)
        if (value !== undefined && !/^(?:true|false|1|0)$/.test(value))
          throw new SyntaxFailure(line, `--mount=${text}: ${name} is true or false`)
        return value === "true" || value === "1"
      })
    switch (type) {
      case "bind": {
        known("from", "source", "src", "rw", "readwrite", "ro", "readonly")
        const isReadOnly = isOn("ro", "readonly")
        const writable = isOn("rw", "readwrite") && !isReadOnly
        const from = fields.get("from")
        const path = fields.get("source") ?? fields.get("src") ?? "/"
        const source = from === undefined ? around.context : around.sourceOf(from, line)
        made.binds.push(bindOf(source, path, { target: target(), writable }, place))
        break
      }
      case "cache": {
        known("id", "sharing")
        const sharing = fields.get("sharing") ?? "shared"
        if (sharing !== "shared" && sharing !== "locked")
          throw new Unsupported(`--mount: sharing=${sharing} is not supported: caches are shared or locked`)
        const name = fields.get("id") ?? posix.resolve("/", target())
        made.cache[target()] = { name: name.replace(/[^\w.-]+/g, "_").replace(/^_/, ""), sharing }
        break
      }
      case "tmpfs":
        known("size")
        made.mounts.push(Mount.tmpfs(target(), { size: fields.get("size") }) as Tmpfs)
        break
      case "secret": {
        known("id", "required")
        const id = fields.get("id") ?? (given === undefined ? undefined : posix.basename(given))
        if (id === undefined) throw new SyntaxFailure(line, `--mount=${text}: id is missing`)
        const value = Object.hasOwn(around.secrets, id) ? around.secrets[id] : undefined
        if (value === undefined) {
          if (isOn("required")) throw new Unsupported(`the secret ${id} is required: give it in secrets`)
        } else if (given === undefined) made.secret[id] = value
        else files.push(Mount.file(posix.resolve("/run/secrets", given), redacted(value)) as File)
        break
      }
      case "ssh": {
        known("id", "required", "uid", "gid", "mode")
        for (const [name, only] of Object.entries({ uid: /^0$/, gid: /^0$/, mode: /^0?600$/ }))
          if (fields.has(name) && !only.test(fields.get(name)!))
            throw new Unsupported(
              `--mount: ${name}=${fields.get(name)} of type=ssh is not supported: only root can use the socket`
            )
        const id = fields.get("id") ?? "default"
        const socket = Object.hasOwn(around.ssh, id) ? around.ssh[id] : undefined
        if (socket === undefined) {
          if (isOn("required"))
            throw new Unsupported(`the SSH agent ${id} is required: give its socket in ssh`)
        } else made.ssh[given ?? `/run/buildkit/ssh_agent.${Object.keys(made.ssh).length}`] = socket
        break
      }
      default:
        throw new Unsupported(
          `--mount=type=${type} is not supported: the types are bind, cache, secret, ssh and tmpfs`
        )
    }
  }
  made.mounts.push(...files)
  return made
}
