/** The mounts of a RUN. */
import { createHash } from "node:crypto"
import { posix } from "node:path"
import type { SecretOptions } from "../../Build.ts"
import type { Context } from "../../BuildStep.ts"
import type { Tmpfs } from "../../Mount.ts"
import * as Mount from "../../Mount.ts"
import { shownOf } from "../build/build.ts"
import type { Agent, Bind, Cache, Node, Secret } from "../build/node.ts"
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
  readonly context: Context | Node
  readonly secrets: Readonly<Record<string, SecretOptions["value"]>>
  /** The sockets of SSH agents, by their ids. */
  readonly ssh: Readonly<Record<string, string | undefined>>
  /** The keys of SSH servers, as in a known_hosts. */
  readonly knownHosts: string | undefined
  /** The source of `from`: an earlier stage, a named context or an image. */
  readonly sourceOf: (name: string, line: number) => Context | Node
}

export interface Mounts {
  readonly binds: Array<Bind>
  readonly mounts: Array<Tmpfs>
  readonly caches: Array<Cache>
  readonly secrets: Array<Secret>
  readonly agents: Array<Agent>
}

/** The name of a cache that has a path or any other text as its id. */
const cacheName = (id: string): string => {
  const name = id.replace(/[^\w.-]+/g, "_").replace(/^_/, "")
  if (name.length <= CACHE_NAME_MAX) return name
  return `${name.slice(0, CACHE_NAME_MAX)}.${createHash("sha256").update(id).digest("hex").slice(0, 8)}`
}

const CACHE_NAME_MAX = 64

const SOURCE = ["from", "source", "src"]

const TARGETS = ["target", "dst", "destination"]

/** As in Docker, a variable there would hide which stages are needed. */
export const checkFrom = (from: string | undefined, line: number): void => {
  if (from?.includes("$") === true)
    throw new SyntaxFailure(line, `from=${from} has no variables: name a stage after FROM, which has them`)
}

/** The mounts by their texts, in which variables are expanded by `expand`. Throws `SyntaxFailure` and `Unsupported`. */
export const mountsOf = (
  texts: ReadonlyArray<string>,
  around: Sources,
  line: number,
  place: string,
  expand: (text: string) => string
): Mounts => {
  const made: Mounts = { binds: [], mounts: [], caches: [], secrets: [], agents: [] }
  for (const text of texts) {
    checkFrom(fieldsOf(text).get("from"), line)
    const fields = fieldsOf(expand(text))
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
    const number = (name: string, pattern: RegExp, base: number, expected: string): number | undefined => {
      const value = fields.get(name)
      if (value !== undefined && !pattern.test(value))
        throw new SyntaxFailure(line, `--mount=${text}: ${name} is ${expected}`)
      return value === undefined ? undefined : Number.parseInt(value, base)
    }
    const owned = () => ({
      uid: number("uid", /^\d{1,9}$/, 10, "the number of a user"),
      gid: number("gid", /^\d{1,9}$/, 10, "the number of a group"),
      mode: number("mode", /^[0-7]{1,5}$/, 8, "a mode in octal digits")
    })
    const from = fields.get("from")
    const path = fields.get("source") ?? fields.get("src")
    switch (type) {
      case "bind": {
        known(...SOURCE, "rw", "readwrite", "ro", "readonly")
        const isReadOnly = isOn("ro", "readonly")
        const writable = isOn("rw", "readwrite") && !isReadOnly
        const source = from === undefined ? around.context : around.sourceOf(from, line)
        made.binds.push({ ...shownOf(source, path ?? "/", place), target: target(), writable })
        break
      }
      case "cache": {
        known(...SOURCE, "id", "sharing", "uid", "gid", "mode", "rw", "readwrite", "ro", "readonly")
        if (path !== undefined && from === undefined)
          throw new SyntaxFailure(line, `--mount=${text}: source needs from`)
        const sharing = fields.get("sharing") ?? "shared"
        if (sharing !== "shared" && sharing !== "private" && sharing !== "locked")
          throw new SyntaxFailure(line, `--mount=${text}: sharing is shared, private or locked`)
        const readOnly = isOn("ro", "readonly") && !isOn("rw", "readwrite")
        const name = cacheName(fields.get("id") ?? posix.resolve("/", target()))
        const base = from === undefined ? undefined : shownOf(around.sourceOf(from, line), path ?? "/", place)
        made.caches.push({ target: target(), name, sharing, readOnly, base, ...owned() })
        break
      }
      case "tmpfs":
        known("size")
        made.mounts.push(Mount.tmpfs(target(), { size: fields.get("size") }) as Tmpfs)
        break
      case "secret": {
        known("id", "required", "env", "uid", "gid", "mode")
        const id = fields.get("id") ?? (given === undefined ? undefined : posix.basename(given))
        if (id === undefined) throw new SyntaxFailure(line, `--mount=${text}: id is missing`)
        const env = fields.get("env")
        if (env !== undefined && !/^[A-Za-z_]\w*$/.test(env))
          throw new SyntaxFailure(line, `--mount=${text}: env is the name of a variable`)
        const [owner, isRequired] = [owned(), isOn("required")]
        const value = Object.hasOwn(around.secrets, id) ? around.secrets[id] : undefined
        if (value !== undefined) made.secrets.push({ name: id, value, target: given, env, ...owner })
        else if (isRequired) throw new Unsupported(`the secret ${id} is required: give it in secrets`)
        break
      }
      case "ssh": {
        known("id", "required", "uid", "gid", "mode")
        const id = fields.get("id") ?? "default"
        const isRequired = isOn("required")
        const socket = Object.hasOwn(around.ssh, id) ? around.ssh[id] : undefined
        if (socket === undefined) {
          if (isRequired) throw new Unsupported(`the SSH agent ${id} is required: give its socket in ssh`)
        } else {
          const target = given ?? `/run/buildkit/ssh_agent.${made.agents.length}`
          made.agents.push({ target, socket, ...owned() })
        }
        break
      }
      default:
        throw new Unsupported(
          `--mount=type=${type} is not supported: the types are bind, cache, secret, ssh and tmpfs`
        )
    }
  }
  return made
}
