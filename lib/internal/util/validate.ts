/**
 * Checks of options at the edge: a value that passes can be put into a plan, any other throws `InvalidOption`. They are
 * written by hand, so that a message names the option and its accepted values; `fromThrowing.ts` has the cost of the
 * alternative.
 */
import { posix } from "node:path"
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { InvalidOption } from "../../BerthError.ts"
import type { ProcessOptions, StartOptions, TerminalSize } from "../../Container.ts"
import type { Mount } from "../../Mount.ts"
import type { Kind } from "../../Namespace.ts"
import { parseBytes } from "./bytes.ts"

/** Throws. */
export const invalid = (option: string, value: unknown, expected: string, cause?: unknown): never => {
  throw new InvalidOption({
    option,
    value: abbreviate(JSON.stringify(value) ?? String(value)),
    expected,
    cause
  })
}

const abbreviate = (text: string): string => (text.length > 200 ? `${text.slice(0, 200)}…` : text)

const hasNul = (text: string): boolean => text.includes("\0")

export const strings = (option: string, values: ReadonlyArray<string>): void => {
  values.forEach((value, index) => {
    if (typeof value !== "string" || hasNul(value))
      invalid(`${option}[${index}]`, value, "text without NUL, which execve(2) cannot pass")
  })
}

export const command = (values: ReadonlyArray<string>): void => {
  if (values.length === 0 || values[0] === "") invalid("command", values, "a command and its arguments")
  strings("command", values)
}

const absolute = (option: string, path: string): string =>
  path.startsWith("/") && !hasNul(path) && path.length < 4096
    ? path
    : invalid(option, path, "an absolute path inside the container, shorter than 4096 bytes")

// An absolute path in its only spelling, so that a prefix shows whether it is below /proc, /sys or /dev.
const inContainer = (option: string, path: string): string => {
  const normal = posix.normalize(absolute(option, path))
  return normal.length > 1 && normal.endsWith("/") ? normal.slice(0, -1) : normal
}

export const paths = (option: string, values: ReadonlyArray<string>): ReadonlyArray<string> =>
  values.map((path, index) => inContainer(`${option}[${index}]`, path))

const environment = (env: Readonly<Record<string, string>>): void => {
  for (const [name, value] of Object.entries(env)) {
    if (name === "" || name.includes("=") || hasNul(name)) invalid("env", name, "a name without = and NUL")
    if (typeof value !== "string" || hasNul(value)) invalid(`env.${name}`, value, "text without NUL")
  }
}

/** The parts of an image's configuration that a plan contains: JSON can have values that no system call takes. */
export const config = (given: {
  readonly environment: Readonly<Record<string, string>>
  readonly workingDirectory: string
}): void => {
  environment(given.environment)
  strings("image.config.workingDirectory", [given.workingDirectory])
}

/** The options that a start and an exec have in common. */
export const process = (options: ProcessOptions): void => {
  if (options.env !== undefined) environment(options.env)
  if (options.cwd !== undefined) absolute("cwd", options.cwd)
  const isTerminal = options.terminal !== undefined && options.terminal !== false
  for (const [stream, accepted] of streams) {
    const how = options[stream]
    if (how === undefined) continue
    if (!accepted.includes(how)) invalid(stream, how, `one of ${accepted.join(", ")}`)
    if (isTerminal && (how === "inherit" || how === "null"))
      invalid(stream, how, "no such stream beside terminal, which takes the place of all three")
  }
}

const outputs: ReadonlyArray<string> = ["log", "pipe", "inherit", "null"]
const streams: ReadonlyArray<readonly ["stdin" | "stdout" | "stderr", ReadonlyArray<string>]> = [
  ["stdin", ["null", "pipe", "inherit"]],
  ["stdout", outputs],
  ["stderr", outputs]
]

/** The options of a start that exclude each other, and those of its log. */
export const start = ({ cgroup, limits, logs, stderr, stdout }: StartOptions): void => {
  if (cgroup !== undefined && limits !== undefined)
    invalid("limits", limits, "no limits beside cgroup: make the cgroup with them, or use Cgroup.update")
  if (logs === undefined) return
  const atLeastOne = (option: string, value = 1): void => {
    if (!Number.isInteger(value) || value < 1) invalid(option, value, "a whole number, from 1 on")
  }
  atLeastOne("logs.maxBytes", logs.maxBytes)
  atLeastOne("logs.maxFiles", logs.maxFiles)
  const isKept = (how: ProcessOptions["stdout"]): boolean => how !== "inherit" && how !== "null"
  if (!isKept(stdout) && !isKept(stderr))
    invalid("logs", logs.folder, 'stdout or stderr that is "log" or "pipe", else there is nothing to keep')
}

/** A span of time, as a number of milliseconds or as text like "5 seconds". */
export const duration = (option: string, value: Duration.DurationInput): Duration.Duration =>
  Option.getOrElse(Duration.decodeUnknown(value), () =>
    invalid(option, value, 'a duration: milliseconds as a number, or text like "5 seconds"')
  )

export const umask = (value: number | undefined): number =>
  value === undefined || (Number.isInteger(value) && value >= 0 && value <= 0o777)
    ? (value ?? 0o022)
    : invalid("umask", value, "permission bits, from 0 to 0o777")

/** A host name: gethostname(2), at most 64 bytes. Only for a uts namespace that is not the host's. */
export const hostname = (name: string | undefined, own: ReadonlyArray<Kind>): string | undefined => {
  if (name === undefined) return name
  if (!own.includes("uts"))
    return invalid("hostname", name, "no hostname in a container without a uts namespace of its own")
  return /^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$/.test(name) && name.length <= 64
    ? name
    : invalid("hostname", name, "letters, digits, dots and hyphens, at most 64 of them")
}

/** The size of this program's own terminal. */
export const ownTerminal = (): TerminalSize => {
  const { columns, rows } = globalThis.process.stdout
  return { rows: rows ?? 24, columns: columns ?? 80 }
}

/** The size of a terminal, undefined without a terminal. */
export const terminal = (asked: ProcessOptions["terminal"]): TerminalSize | undefined => {
  if (asked === undefined || asked === false) return undefined
  const size = asked === true ? ownTerminal() : { rows: asked.rows, columns: asked.columns }
  const acceptable = (n: number): boolean => Number.isInteger(n) && n >= 0 && n <= 65535
  return acceptable(size.rows) && acceptable(size.columns)
    ? size
    : invalid("terminal", asked, "rows and columns, from 0 to 65535")
}

/** Checks the option `network` beside `namespaces`, and gives the namespace that it stands for. */
export const network = (options: {
  readonly network?: unknown
  readonly namespaces?: { readonly network?: unknown } | undefined
}): "new" | "host" | undefined => {
  const { namespaces, network: asked } = options
  if (asked === undefined) return undefined
  if (namespaces?.network !== undefined)
    invalid("namespaces.network", String(namespaces.network), "nothing beside the option network")
  if (typeof asked === "string" && asked !== "none" && asked !== "host")
    invalid("network", asked, '"none", "host", a network of Network.make, or a list of networks')
  return asked === "host" ? "host" : "new"
}

const hiding = ["off", "noaccess", "invisible", "ptraceable"]

/** The option of procfs, undefined for its default. `joined`: the pid namespace is another container's. */
export const hidepid = (asked: string | undefined, joined: boolean): string | undefined => {
  if (asked === undefined || asked === "off") return undefined
  if (joined)
    invalid("hidepid", asked, "no hidepid in a joined pid namespace, whose procfs is mounted already")
  return hiding.includes(asked) ? asked : invalid("hidepid", asked, `one of ${hiding.join(", ")}`)
}

export const bytes = (option: string, value: number | string): number => {
  const parsed = parseBytes(value)
  return parsed !== undefined && Number.isSafeInteger(parsed) && parsed >= 0
    ? parsed
    : invalid(option, value, 'bytes, as a number or as text like "256MiB"')
}

/** The mode of a file or folder; throws. */
export const mode = (option: string, value: number | undefined, max = 0o7777): void => {
  if (value !== undefined && !(Number.isInteger(value) && value >= 0 && value <= max))
    invalid(option, value, `a mode, from 0 to 0o${max.toString(8)}`)
}

/** The id of a user or group; throws. The largest number stands for no id, chown(2). */
export const id = (option: string, value: number | undefined): void => {
  if (value !== undefined && !(Number.isInteger(value) && value >= 0 && value < 2 ** 32 - 1))
    invalid(option, value, "the number of a user or group, from 0 to 4294967294")
}

const FILE_BYTES_MAX = 1024 * 1024

export const mounts = (list: ReadonlyArray<Mount>): ReadonlyArray<Mount> =>
  list.map((mount, index) => {
    const at = `mounts[${index}]`
    const target = inContainer(`${at}.target`, mount.target)
    if (target === "/") invalid(`${at}.target`, mount.target, "a path below /")
    if (mount.type === "tmpfs") {
      mode(`${at}.mode`, mount.mode)
      const size = mount.size === undefined ? {} : { size: bytes(`${at}.size`, mount.size) }
      return { ...mount, ...size, target }
    }
    if (mount.type === "volume") return { ...mount, target }
    if (mount.type === "file") {
      const text = Redacted.isRedacted(mount.text) ? Redacted.value(mount.text) : mount.text
      if (typeof text !== "string" || hasNul(text) || Buffer.byteLength(text) > FILE_BYTES_MAX)
        invalid(`${at}.text`, "a text that is not shown", "at most 1 MiB of text without NUL")
      id(`${at}.uid`, mount.uid)
      id(`${at}.gid`, mount.gid)
      mode(`${at}.mode`, mount.mode, 0o777)
      return { ...mount, target, text }
    }
    if (!mount.source.startsWith("/") || hasNul(mount.source))
      invalid(`${at}.source`, mount.source, "an absolute path on the host")
    return { ...mount, target }
  })

// Kernel parameters that belong to a namespace; a write to any other would change the host (sysctl(8), namespaces(7)).
const namespaced: ReadonlyArray<readonly [name: RegExp, kind: Kind]> = [
  [/^net\./, "network"],
  [/^fs\.mqueue\./, "ipc"],
  [/^kernel\.(shm(all|max|mni|_rmid_forced)|msg(max|mnb|mni)|sem|(msg|sem|shm)_next_id)$/, "ipc"],
  [/^kernel\.(hostname|domainname)$/, "uts"]
]

export const sysctls = (
  values: Readonly<Record<string, string>>,
  own: ReadonlyArray<Kind>
): Readonly<Record<string, string>> => {
  for (const [key, value] of Object.entries(values)) {
    if (!/^[a-z0-9_]+(\.[A-Za-z0-9_-]+)+$/.test(key))
      return invalid("sysctls", key, "a name like net.ipv4.ip_forward")
    const kind = namespaced.find(([name]) => name.test(key))?.[1]
    if (kind === undefined)
      return invalid(
        "sysctls",
        key,
        "a parameter of a namespace (net.*, fs.mqueue.*, kernel.shm*, msg*, sem): this one belongs to the host"
      )
    if (!own.includes(kind)) return invalid("sysctls", key, `a container with a ${kind} namespace of its own`)
    if (hasNul(value)) return invalid(`sysctls.${key}`, value, "text without NUL")
  }
  return values
}
