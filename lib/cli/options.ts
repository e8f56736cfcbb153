/** Options and arguments of commands: how they are parsed, and their lines in the help. */
import * as Args from "@effect/cli/Args"
import type * as Command from "@effect/cli/Command"
import * as Options from "@effect/cli/Options"
import * as Option from "effect/Option"

/** An option or an argument. */
export interface Part<A> {
  readonly parser: Options.Options<A> | Args.Args<A>
  /** How it is written: `-e, --env KEY=VALUE`. */
  readonly usage: string
  readonly help: string
}

export type Parts = Readonly<Record<string, Part<unknown>>>

/** The values of parsed parts. */
export type Values<All extends Parts> = {
  readonly [Name in keyof All]: All[Name] extends Part<infer A> ? A : never
}

export const configOf = (parts: Parts): Command.Command.Config =>
  Object.fromEntries(Object.entries(parts).map(([name, { parser }]) => [name, parser]))

interface Text {
  /** The option's long name, or both: `"e, env"`. */
  readonly name: string
  /** What its value is called. */
  readonly value: string
  readonly help: string
}

const part = <A, B>(
  { help, name, value }: Omit<Text, "value"> & { readonly value?: string },
  make: (name: string) => Options.Options<A>,
  finish: (option: Options.Options<A>) => Options.Options<B>
): Part<B> => {
  const [long, short] = name.split(", ").reverse() as [string, string?]
  const valued = value === undefined ? make(long) : Options.withPseudoName(make(long), value)
  // The first sentence is enough for completions, which nothing else shows.
  const described = Options.withDescription(valued, help.split(". ")[0]!)
  const usage = `${short === undefined ? "" : `-${short}, `}--${long}${value === undefined ? "" : ` ${value}`}`
  return {
    parser: finish(short === undefined ? described : Options.withAlias(described, short)),
    usage,
    help
  }
}

const orUndefined = <A>(option: Options.Options<A>): Options.Options<A | undefined> =>
  Options.map(Options.optional(option), Option.getOrUndefined)

export const flag = (name: string, help: string): Part<boolean> =>
  part({ name, help }, Options.boolean, (option) => option)

export const text = (of: Text): Part<string | undefined> => part(of, Options.text, orUndefined)

export const texts = (of: Text): Part<ReadonlyArray<string>> => part(of, Options.text, Options.repeated)

export const number = (of: Text): Part<number | undefined> => part(of, Options.float, orUndefined)

/** One of some words; the first is the default. */
export const choice = <const Words extends readonly [string, ...ReadonlyArray<string>]>(
  name: string,
  all: Words,
  help: string
): Part<Words[number]> => {
  const first: Words[number] = all[0]
  const described = `${help} Default: ${first}.`
  // Without a name of its own the value is called by the words, which completions offer.
  const make = (long: string): Options.Options<Words[number]> => Options.choice(long, all)
  const { parser } = part({ name, help: described }, make, Options.withDefault(first))
  return { parser, usage: `--${name} ${all.join("|")}`, help: described }
}

export const word = (name: string, help: string): Part<string> => ({
  parser: Args.withDescription(Args.text({ name }), help),
  usage: name,
  help
})

export const optionalWord = (name: string, help: string): Part<string | undefined> => ({
  parser: Args.map(Args.optional(Args.withDescription(Args.text({ name }), help)), Option.getOrUndefined),
  usage: `[${name}]`,
  help
})

export const words = (name: string, help: string): Part<ReadonlyArray<string>> => ({
  parser: Args.atLeast(Args.withDescription(Args.text({ name }), help), 1),
  usage: `${name}...`,
  help
})
