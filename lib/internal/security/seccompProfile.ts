/**
 * Reads a seccomp profile in Docker's form. By hand, because a program without a profile of its own would load Effect's Schema for
 * it. All sizes are limited, and an unknown key is refused instead of ignored.
 */
import { InvalidData } from "../../BerthError.ts"
import type { SeccompProfile } from "../../Security.ts"
import { invalid } from "../util/validate.ts"

// seccomp(2), SECCOMP_RET_*.
export const actions = {
  SCMP_ACT_KILL: 0x00000000,
  SCMP_ACT_KILL_THREAD: 0x00000000,
  SCMP_ACT_KILL_PROCESS: 0x80000000,
  SCMP_ACT_TRAP: 0x00030000,
  SCMP_ACT_ERRNO: 0x00050000,
  SCMP_ACT_NOTIFY: 0x7fc00000,
  SCMP_ACT_TRACE: 0x7ff00000,
  SCMP_ACT_LOG: 0x7ffc0000,
  SCMP_ACT_ALLOW: 0x7fff0000
} as const

// enum scmp_compare of seccomp.h.
export const comparisons = {
  SCMP_CMP_NE: 1,
  SCMP_CMP_LT: 2,
  SCMP_CMP_LE: 3,
  SCMP_CMP_EQ: 4,
  SCMP_CMP_GE: 5,
  SCMP_CMP_GT: 6,
  SCMP_CMP_MASKED_EQ: 7
} as const

// SECCOMP_FILTER_FLAG_*. The filter is loaded by a process of one thread: there is nothing to synchronize.
export const flags = {
  SECCOMP_FILTER_FLAG_TSYNC: 0,
  SECCOMP_FILTER_FLAG_LOG: 2,
  SECCOMP_FILTER_FLAG_SPEC_ALLOW: 4,
  SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: 32
} as const

/** A value that is not as it has to be: where it is, from the profile on, and the accepted values. */
class Mistake extends Error {
  override readonly name = "Mistake"
  readonly path: string
  readonly value: unknown

  constructor(path: string, value: unknown, expected: string) {
    super(expected)
    this.path = path
    this.value = value
  }
}

/** Gives a copy of the value that has only what it was checked for; throws a `Mistake`. */
type Reader<A> = (value: unknown, path: string) => A

const text =
  (pattern: RegExp, expected: string): Reader<string> =>
  (value, path) => {
    if (typeof value === "string" && pattern.test(value)) return value
    throw new Mistake(path, value, expected)
  }

const key =
  <Key extends string>(table: Readonly<Record<Key, unknown>>): Reader<Key> =>
  (value, path) => {
    if (typeof value === "string" && Object.hasOwn(table, value)) return value as Key
    throw new Mistake(path, value, `one of ${Object.keys(table).join(", ")}`)
  }

const integer =
  (most: number): Reader<number> =>
  (value, path) => {
    if (Number.isInteger(value) && Number(value) >= 0 && Number(value) <= most) return Number(value)
    throw new Mistake(path, value, `an integer from 0 to ${most}`)
  }

const list =
  <A>(item: Reader<A>, most: number): Reader<Array<A>> =>
  (value, path) => {
    if (Array.isArray(value) && value.length <= most)
      return Array.from(value, (each, index) => item(each, `${path}[${index}]`))
    throw new Mistake(path, value, `an array of at most ${most}`)
  }

const maybe =
  <A>(read: Reader<A>): Reader<A | null | undefined> =>
  (value, path) =>
    value === undefined || value === null ? value : read(value, path)

type Fields = Readonly<Record<string, Reader<unknown>>>

const record =
  <A>(fields: Fields): Reader<A> =>
  (value, path) => {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new Mistake(path, value, "an object")
    for (const name of Object.keys(value))
      if (!Object.hasOwn(fields, name))
        throw new Mistake(`${path}.${name}`, undefined, `one of the keys ${Object.keys(fields).join(", ")}`)
    const given = value as Readonly<Record<string, unknown>>
    const read = Object.entries(fields).map(([name, field]) => [name, field(given[name], `${path}.${name}`)])
    return Object.fromEntries(read.filter(([name]) => (name as string) in given)) as A
  }

/** As in native/addon/seccomp.h. */
export const SECCOMP_NAME_MAX = 63

const name = text(
  new RegExp(`^\\w{1,${SECCOMP_NAME_MAX}}$`),
  `a name of at most ${SECCOMP_NAME_MAX} characters`
)
const value = integer(Number.MAX_SAFE_INTEGER)
const errno = integer(4095)

const scope = record({
  caps: maybe(list(name, 64)),
  arches: maybe(list(name, 64)),
  minKernel: maybe(text(/^\d{1,4}\.\d{1,4}$/, "a version of the kernel: 5.10"))
})

const readProfile = record<SeccompProfile>({
  defaultAction: key(actions),
  defaultErrnoRet: maybe(errno),
  architectures: maybe(list(name, 32)),
  archMap: maybe(list(record({ architecture: name, subArchitectures: maybe(list(name, 32)) }), 32)),
  flags: maybe(list(key(flags), 16)),
  syscalls: maybe(
    list(
      record({
        names: list(name, 2048),
        action: key(actions),
        errnoRet: maybe(errno),
        args: maybe(
          list(record({ index: integer(5), value, valueTwo: maybe(value), op: key(comparisons) }), 64)
        ),
        includes: maybe(scope),
        excludes: maybe(scope),
        comment: maybe(text(/^/, "text"))
      }),
      2048
    )
  )
})

/** Makes the error for an invalid profile: of an option, or of a parsed text. */
type Refuse = (path: string, value: unknown, expected: string, cause: unknown) => never

const refuseText: Refuse = (path, value, expected, cause) => {
  const shown = (JSON.stringify(value) ?? String(value)).slice(0, 200)
  throw new InvalidData({ format: "seccomp profile", value: `${path} ${shown}`.trim(), expected, cause })
}

/** Decodes a profile; throws `InvalidOption`, which names the place of the mistake. */
export const decode = (
  given: unknown,
  refuse: Refuse = (path, ...rest) => invalid(`seccomp${path}`, ...rest)
): SeccompProfile => {
  try {
    return readProfile(given, "")
  } catch (cause) {
    if (!(cause instanceof Mistake)) throw cause
    return refuse(cause.path, cause.value, `a profile in Docker's form: ${cause.message}`, cause)
  }
}

const PROFILE_CHARACTERS_MAX = 1024 * 1024

/** Throws `InvalidData`. */
export const parse = (profile: string): SeccompProfile => {
  if (profile.length > PROFILE_CHARACTERS_MAX)
    return refuseText("", `${profile.length} characters`, `at most ${PROFILE_CHARACTERS_MAX}`, undefined)
  let parsed: unknown
  try {
    parsed = JSON.parse(profile)
  } catch (cause) {
    return refuseText("", profile.slice(0, 40), `JSON: ${(cause as Error).message}`, cause)
  }
  return decode(parsed, refuseText)
}
