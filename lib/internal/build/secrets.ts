/** The secrets of a step: where its command finds them. Their values go into the mounts and the variables of a start alone. */
import { posix } from "node:path"
import * as Redacted from "effect/Redacted"
import { InvalidOption } from "../../BerthError.ts"
import * as Mount from "../../Mount.ts"
import * as check from "../util/validate.ts"
import type { Run, Secret } from "./node.ts"

const FOLDER = "/run/secrets"

const MODE = 0o400

/** What a key may have of a step's secrets: everything but the values. */
export const placesOf = ({ secrets }: Run) =>
  secrets.map(({ env, gid = 0, mode = MODE, name, target, uid = 0 }) => ({
    name,
    env,
    target: target ?? (env === undefined ? name : undefined),
    ids: [uid, gid, mode]
  }))

const valueOf = ({ name, value }: Secret): string => {
  const text = Redacted.isRedacted(value) ? Redacted.value(value) : value
  return typeof text === "string" && !text.includes("\0")
    ? text
    : check.invalid(`secret.${name}`, "a value that is not shown", "a text without NUL")
}

/** The files of the secrets; throws. */
export const mountsOf = (node: Run): ReadonlyArray<Mount.Mount> => {
  const places = placesOf(node)
  return node.secrets.flatMap((secret, k) => {
    const { ids, name, target } = places[k]!
    if (!/^[\w.-]+$/.test(name) || /^\.+$/.test(name))
      throw new InvalidOption({
        option: "secret",
        value: JSON.stringify(name),
        expected: "names of letters, digits, _, . and -"
      })
    if (target === undefined) return []
    const [uid, gid, mode] = ids
    check.id(`secret.${name}.uid`, uid)
    check.id(`secret.${name}.gid`, gid)
    check.mode(`secret.${name}.mode`, mode, 0o777)
    return Mount.file(posix.resolve(FOLDER, target), valueOf(secret), { uid, gid, mode })
  })
}

/** The variables of the secrets; throws. */
export const variablesOf = ({ secrets }: Run): Readonly<Record<string, string>> =>
  Object.fromEntries(
    secrets.flatMap((secret) => (secret.env === undefined ? [] : [[secret.env, valueOf(secret)] as const]))
  )
