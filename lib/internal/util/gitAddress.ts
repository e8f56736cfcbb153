/** The addresses of git repositories: `https://host/path#ref:folder`, `ssh://user@host/path`, `user@host:path`. */

/** The name of a commit. */
export const COMMIT = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/

/** As BuildKit tells repositories: by their schemes, as `git@host:path`, and addresses of HTTP by the ending of their paths. */
export const isRepository = (source: string): boolean =>
  /^(?:git|ssh):\/\//i.test(source) ||
  /^[\w.-]+@[\w.-]+:/.test(source) ||
  /^https?:\/\/[^?#]*\.git(?:[?#]|$)/i.test(source)

/** As git-check-ref-format(1) has names, without those that begin like an option. */
const REF = /^(?![-/.])(?!.*(?:\.\.|@\{|\/\/))[^\s~^:?*[\\\p{Cc}]+(?<![./])$/u

/** `user@host:path`, as scp(1) has it. */
const SCP = /^(\w[\w.-]*)@(\w[\w.-]*):[^-]/

const USER = /^(?:\w[\w.-]*)?$/
const HOST = /^(?:\w[\w.-]*|\[[\da-f:.]+\])$/i

/** How the server of an address is spoken to, and its name. */
export const serverOf = (
  url: string
): { readonly protocol: "http:" | "https:" | "ssh:"; readonly hostname: string } => {
  const [, , hostname] = SCP.exec(url) ?? []
  if (hostname !== undefined) return { protocol: "ssh:", hostname }
  const { protocol, hostname: its } = new URL(url)
  return { protocol: protocol as "http:" | "https:" | "ssh:", hostname: its }
}

/** What is wrong with an address without its fragment, which goes to git and to ssh as it is; undefined for a good one. */
const problemOf = (base: string): string | undefined => {
  if (SCP.test(base) && !/[\s\p{Cc}]/u.test(base)) return undefined
  const url = URL.canParse(base) ? new URL(base) : undefined
  if (url === undefined || !/^(?:https?|ssh):$/.test(url.protocol))
    return "the address of a git repository begins with https://, http:// or ssh://, or is USER@HOST:PATH"
  const isSsh = url.protocol === "ssh:"
  if (url.password !== "" || (url.username !== "" && !isSsh))
    return "an address has no password: give it as token"
  if (isSsh && (/[\s\p{Cc}]/u.test(base) || !USER.test(url.username) || !HOST.test(url.hostname)))
    return "an address of SSH is ssh://USER@HOST:PORT/PATH"
}

/** The parts of an address. */
export interface Address {
  readonly url: string
  readonly ref: string | undefined
  readonly folder: string
}

/** The parts of an address; a text that says what is wrong with it. */
export const parse = (address: string): Address | string => {
  const [base = "", fragment = ""] = address.split(/#(.*)/s)
  const problem = problemOf(base)
  if (problem !== undefined) return problem
  const [ref = "", folder = ""] = fragment.split(/:(.*)/s)
  if (ref !== "" && !REF.test(ref)) return `${JSON.stringify(ref)} is no name of a branch, a tag or a commit`
  return { url: base, ref: ref || undefined, folder: folder || "." }
}
