/** COPY and ADD. */

import { changeOf } from "../build/mode.ts"
import type { Copy, Git, Node, Part } from "../build/node.ts"
import { nameOf } from "../build/remote.ts"
import { COMMIT, isRepository, parse, serverOf } from "../util/gitAddress.ts"
import { checkFrom, type Sources } from "./mounts.ts"
import { flagsOf, Unsupported } from "./options.ts"
import { type Instruction, SyntaxFailure } from "./parse.ts"
import type { Surroundings } from "./stage.ts"
import * as words from "./words.ts"

const BOTH = ["chown", "chmod", "link", "exclude"]
const OF_COPY = [...BOTH, "from", "parents"]
const OF_ADD = [...BOTH, "checksum", "keep-git-dir", "unpack"]

const isAddress = (source: string): boolean => /^https?:\/\//i.test(source)

/** The files of a repository, for whose host the caller may have given a token as a secret, or an SSH agent. Throws `SyntaxFailure` and `Unsupported`. */
export const gitOf = (
  address: string,
  { knownHosts, secrets, ssh }: Pick<Sources, "knownHosts" | "secrets" | "ssh">,
  line: number,
  {
    checksum,
    keepGitDir = false
  }: { readonly checksum?: string | undefined; readonly keepGitDir?: boolean } = {}
): Git => {
  if (/^git:/i.test(address))
    throw new Unsupported(
      `${address}: git:// is neither encrypted nor authenticated: give its https:// or ssh:// address`
    )
  const parsed = parse(address)
  if (typeof parsed === "string") throw new SyntaxFailure(line, parsed)
  const { hostname, protocol } = serverOf(parsed.url)
  const secret = `GIT_AUTH_TOKEN.${hostname}`
  const token = protocol !== "ssh:" && Object.hasOwn(secrets, secret) ? secrets[secret] : undefined
  const agent = Object.hasOwn(ssh, "default") ? ssh.default : undefined
  return { _tag: "Git", ...parsed, keepGitDir, submodules: undefined, checksum, token, agent, knownHosts }
}

/** The step of an instruction. Throws `SyntaxFailure`, `WordFailure` and `Unsupported`. */
export const copyOf = (
  parent: Node,
  instruction: Instruction,
  around: Surroundings,
  lexer: words.Lexer,
  text: string,
  place: string
): Copy => {
  const { heredocs, json, keyword, line, rest } = instruction
  const isAdd = keyword === "ADD"
  const flags = flagsOf(instruction, isAdd ? OF_ADD : OF_COPY, ["exclude"])
  const expand = (word: string): string => words.expand(word, lexer)
  const valueOf = (name: string): string | undefined => {
    const value = flags.one(name)
    return value === undefined ? undefined : expand(value)
  }
  const isOn = (name: string, otherwise: boolean): boolean => {
    const value = valueOf(name)
    if (value !== undefined && !/^(?:true|false|1|0)$/i.test(value))
      throw new SyntaxFailure(line, `--${name}=${value}: expected true or false`)
    return value === undefined ? otherwise : /^(?:true|1)$/i.test(value)
  }
  const given = [
    ...(json?.map(expand) ??
      words.split(rest, around.escape).map((word) => (word.startsWith("<<") ? word : expand(word))))
  ]
  const to = given.pop()
  if (to === undefined || given.length === 0)
    throw new SyntaxFailure(line, `${keyword} needs a source and a target`)
  const sources = given.filter((source) => !source.startsWith("<<"))
  const mode = valueOf("chmod")
  if (mode !== undefined && changeOf(mode) === undefined)
    throw new SyntaxFailure(
      line,
      `--chmod=${mode}: expected octal digits up to 7777, or symbols as u=rwX,go=rX`
    )
  const checksum = valueOf("checksum")
  if (checksum !== undefined) {
    const isCommit = sources.some(isRepository)
    if (sources.length !== 1 || given.length !== 1 || !(isAddress(sources[0]!) || isCommit))
      throw new SyntaxFailure(
        line,
        "--checksum needs one source, which is an HTTP address or a git repository"
      )
    if (!(isCommit ? COMMIT : /^sha256:[0-9a-f]{64}$/).test(checksum))
      throw new SyntaxFailure(
        line,
        `--checksum=${checksum}: expected ${isCommit ? "a whole commit" : "sha256: and 64 digits, 0 to 9 and a to f"}`
      )
  }
  isOn("link", false)
  if (flags.one("keep-git-dir") !== undefined && !sources.some(isRepository))
    throw new SyntaxFailure(line, "--keep-git-dir needs the address of a git repository")
  const from = flags.one("from")
  checkFrom(from, line)
  const origin = from === undefined ? around.context : around.sourceOf(from, line)
  const parts: Array<Part> = []
  for (const source of sources) {
    if (isRepository(source)) {
      if (!isAdd) throw new SyntaxFailure(line, `COPY ${source}: a repository needs ADD`)
      const options = { checksum, keepGitDir: isOn("keep-git-dir", false) }
      parts.push({ from: gitOf(source, around, line, options), paths: ["."], unpack: false })
      continue
    }
    if (isAddress(source)) {
      if (!isAdd) throw new SyntaxFailure(line, `COPY ${source}: an address needs ADD`)
      if (nameOf(source) === undefined && to.endsWith("/"))
        throw new SyntaxFailure(line, `ADD ${source}: the address has no name of a file: give the target one`)
      const remote = { _tag: "Remote", url: source, checksum } as const
      parts.push({ from: remote, paths: ["."], unpack: isOn("unpack", false) })
      continue
    }
    const last = parts.at(-1)
    // Files of one origin are one part.
    if (last?.from === origin) parts[parts.length - 1] = { ...last, paths: [...last.paths, source] }
    else parts.push({ from: origin, paths: [source], unpack: isOn("unpack", isAdd) })
  }
  if (heredocs.length > 0) {
    const texts = Object.fromEntries(
      heredocs.map(({ expands, name, text: body }) => [name, expands ? words.expandText(body, lexer) : body])
    )
    parts.push({ from: around.texts(texts), paths: Object.keys(texts), unpack: false })
  }
  return {
    _tag: "Copy",
    parent,
    parts,
    options: {
      to,
      owner: valueOf("chown"),
      mode,
      exclude: flags.all("exclude").map(expand),
      parents: isOn("parents", false)
    },
    text: from === undefined ? text : `${keyword} --from=${from} ${rest}`,
    place
  }
}
