/** The addresses of git repositories: `https://host/path#ref:folder`. */

/** The name of a commit. */
export const COMMIT = /^(?:[0-9a-f]{40}|[0-9a-f]{64})$/

/** As BuildKit tells repositories: by their schemes, as `git@host:path`, and addresses of HTTP by the ending of their paths. */
export const isRepository = (source: string): boolean =>
  /^(?:git|ssh):\/\//i.test(source) ||
  /^[\w.-]+@[\w.-]+:/.test(source) ||
  /^https?:\/\/[^?#]*\.git(?:[?#]|$)/i.test(source)

/** As git-check-ref-format(1) has names, without those that begin like an option. */
const REF = /^(?![-/.])(?!.*(?:\.\.|@\{|\/\/))[^\s~^:?*[\\\p{Cc}]+(?<![./])$/u

/** The parts of `https://host/path#ref:folder`. */
export interface Address {
  readonly url: string
  readonly ref: string | undefined
  readonly folder: string
}

/** The parts of an address; a text that says what is wrong with it. */
export const parse = (address: string): Address | string => {
  const [base = "", fragment = ""] = address.split(/#(.*)/s)
  if (!URL.canParse(base) || !/^https?:$/.test(new URL(base).protocol))
    return "the address of a git repository begins with https:// or http://"
  const { password, username } = new URL(base)
  if (username !== "" || password !== "") return "an address has no password: give it as token"
  const [ref = "", folder = ""] = fragment.split(/:(.*)/s)
  if (ref !== "" && !REF.test(ref)) return `${JSON.stringify(ref)} is no name of a branch, a tag or a commit`
  return { url: base, ref: ref || undefined, folder: folder || "." }
}
