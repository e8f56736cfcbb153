/** The options of one instruction's flags and mounts: every one that is not known is refused by name. */
import type { Instruction } from "./parse.ts"
import { SyntaxFailure } from "./parse.ts"

/** The Dockerfile asks for something that Berth does not do. */
export class Unsupported extends Error {}

/** The flags by name; each may be there once, except for those in `repeated`. */
export const flagsOf = (
  { flags, keyword, line }: Instruction,
  known: ReadonlyArray<string>,
  repeated: ReadonlyArray<string> = []
): {
  readonly one: (name: string) => string | undefined
  readonly all: (name: string) => ReadonlyArray<string>
} => {
  const found = new Map<string, Array<string>>()
  for (const { name, value } of flags) {
    if (!known.includes(name)) {
      const expected = known.length === 0 ? "none" : known.map((flag) => `--${flag}`).join(", ")
      throw new Unsupported(`${keyword} --${name} is not supported: the flags are ${expected}`)
    }
    const before = found.get(name)
    if (before !== undefined && !repeated.includes(name))
      throw new SyntaxFailure(line, `the flag --${name} is there twice`)
    found.set(name, [...(before ?? []), value ?? "true"])
  }
  return { one: (name) => found.get(name)?.[0], all: (name) => found.get(name) ?? [] }
}

/** Go's durations, in milliseconds: `1m30s`, `500ms`; undefined for any other text. */
export const millisOf = (text: string): number | undefined => {
  const units: Readonly<Record<string, number>> = {
    ns: 1e-6,
    us: 1e-3,
    µs: 1e-3,
    ms: 1,
    s: 1000,
    m: 60_000,
    h: 3_600_000
  }
  if (!/^(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+$/.test(text)) return undefined
  return [...text.matchAll(/([\d.]+)(ns|us|µs|ms|s|m|h)/g)].reduce(
    (sum, [, number, unit]) => sum + Number(number) * units[unit!]!,
    0
  )
}
