/** The help of the program and of its commands, and what is said about a wrong command line. */
import { stripVTControlCharacters } from "node:util"
import * as HelpDoc from "@effect/cli/HelpDoc"
import type { ValidationError } from "@effect/cli/ValidationError"
import { commands, common, type Entry } from "./commands.ts"
import type { Parts } from "./options.ts"

const WIDTH = 100

/** Lines of at most `WIDTH` characters, the first one after `head` and the others below it. */
const wrapped = (head: string, text: string): ReadonlyArray<string> => {
  const lines: Array<string> = []
  let line = head
  for (const word of text.split(" ")) {
    if (line.length + 1 + word.length > WIDTH && line !== head) {
      lines.push(line)
      line = " ".repeat(head.length)
    }
    line += line.endsWith(" ") || line === "" ? word : ` ${word}`
  }
  return [...lines, line]
}

/** Lines of two columns. */
const listed = (rows: ReadonlyArray<readonly [head: string, text: string]>): ReadonlyArray<string> => {
  const width = Math.min(28, Math.max(...rows.map(([head]) => head.length)))
  return rows.flatMap(([head, text]) => {
    const indent = " ".repeat(width + 4)
    return head.length > width
      ? [`  ${head}`, ...wrapped(indent, text)]
      : wrapped(`  ${head.padEnd(width)}  `, text)
  })
}

const rowsOf = (parts: Parts) => Object.values(parts).map(({ help, usage }) => [usage, help] as const)

const section = (title: string, lines: ReadonlyArray<string>): ReadonlyArray<string> =>
  lines.length === 0 ? [] : ["", `${title}:`, ...lines]

const helpOfCommand = ({ examples, name, operands, parts, summary }: Entry): ReadonlyArray<string> => {
  const isOption = ([usage]: readonly [string, string]) => usage.startsWith("-")
  const rows = rowsOf(parts)
  return [
    `Usage: berth ${name} [OPTION...]${operands === "" ? "" : ` ${operands}`}`,
    "",
    ...wrapped("", summary),
    ...section("Arguments", listed(rows.filter((row) => !isOption(row)))),
    ...section("Options", listed([...rows.filter(isOption), ...rowsOf(common)])),
    ...section(
      "Examples",
      examples.map((example) => `  ${example}`)
    ),
    ...(name === "run" ? ["", ...wrapped("", runExits)] : [])
  ]
}

const runExits =
  "The exit code is the container's; 125 if Berth fails, 126 if the command cannot be executed, 127 if it does not exist. SIGINT, SIGTERM, SIGHUP and SIGQUIT go to the container; the second one kills it."

const noDaemon =
  "There is no daemon: a container belongs to the program that started it and ends with it. So there is no exec into the container of another program, no ps, and nothing for --rm to do."

const exits =
  "Exit codes: 0; 1 for a failure, 2 for a wrong command line, 3 for something that does not exist, 4 for a feature that this machine lacks, 5 for a registry. run has its own: see berth run --help."

const helpOfProgram = (): ReadonlyArray<string> => [
  "Usage: berth COMMAND [OPTION...]",
  "",
  "Containers without a daemon.",
  ...section("Commands", listed(commands.map(({ name, summary }) => [name, summary]))),
  ...section(
    "Options",
    listed([
      ["-h, --help", "Explains the program, or a command: berth run --help."],
      ["--version", "Prints the version."],
      ["--completions bash|zsh|fish", "Prints completions for a shell: source <(berth --completions bash)"]
    ])
  ),
  "",
  ...wrapped("", noDaemon),
  "",
  ...wrapped("", exits)
]

/** The help of a command, or of the program. */
export const helpOf = (name: string | undefined): string => {
  const entry = commands.find((command) => command.name === name)
  return (entry === undefined ? helpOfProgram() : helpOfCommand(entry)).join("\n")
}

/** The options that these words have and the command does not. */
const unknownOption = (words: ReadonlyArray<string>, { parts }: Entry): string | undefined => {
  const known = Object.values({ ...parts, ...common }).flatMap(
    ({ usage }) => usage.match(/(?<![\w-])--?[\w-]+/g) ?? []
  )
  return words.find((word) => {
    const [long] = word.split("=")
    if (/^--[\w-]/.test(word)) return !known.includes(long!)
    return /^-\w+$/.test(word) && !known.includes(word.slice(0, 2))
  })
}

/** One line of what is wrong with a command line, and where to read more. */
export const adviceOn = (
  { error }: ValidationError,
  name: string | undefined,
  words: ReadonlyArray<string>
): string => {
  const entry = commands.find((command) => command.name === name)
  if (entry === undefined)
    return name === undefined
      ? `${words.join(" ")} is no option of berth; see berth --help`
      : `${name} is no command of berth; see berth --help`
  const unknown = unknownOption(words, entry)
  const text = stripVTControlCharacters(HelpDoc.toAnsiText(error))
    .replace(/\s+/g, " ")
    .trim()
    .replace(/\.$/, "")
  const what = unknown === undefined ? text : `${unknown} is no option of berth ${name}`
  const isOther = name === "run" && (unknown !== undefined || /unknown argument/i.test(text))
  const hint = isOther ? ": write -- before the container's command" : ""
  return `${what}${hint}; see berth ${name} --help`
}
