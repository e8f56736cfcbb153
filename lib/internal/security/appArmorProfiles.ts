/** The kernel's side of AppArmor: whether it is enabled, the profiles that Berths load, and those that killed Berths leave. */
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import * as Effect from "effect/Effect"
import type { Berth } from "../../Berth.ts"
import { link, list, read } from "../util/readFile.ts"

const KERNEL = "/sys/kernel/security/apparmor"

// This is decided when the machine starts.
let enabled: boolean | undefined

/** Whether AppArmor is enabled in this kernel. */
export const isEnabled = (): boolean => {
  if (enabled === undefined) {
    try {
      enabled = readFileSync("/sys/module/apparmor/parameters/enabled", "utf8").startsWith("Y")
    } catch {
      enabled = false
    }
  }
  return enabled
}

export const unload = (name: string): void => {
  try {
    writeFileSync(`${KERNEL}/.remove`, name)
  } catch (cause) {
    // Another program has unloaded it.
    if ((cause as { code?: unknown }).code !== "ENOENT") throw cause
  }
}

const PROFILES = `${KERNEL}/policy/profiles`

const nameOf = (entry: string): string => read(`${PROFILES}/${entry}/name`).trim()

/** The kernel's entry of a loaded profile; a profile that is loaded later under the same name gets another one. */
const entryOf = (name: string): string | undefined => list(PROFILES).find((entry) => nameOf(entry) === name)

/** A line of a note; the last one counts. */
interface Noted {
  /** The entries are numbered anew with each. */
  readonly boot: string
  /** The entry is empty for a profile that is about to be loaded. */
  readonly profiles: ReadonlyArray<readonly [name: string, entry: string]>
}

const thisBoot = (): string => read("/proc/sys/kernel/random/boot_id").trim()

const lineOf = (profiles: Noted["profiles"]): string =>
  `${JSON.stringify({ boot: thisBoot(), profiles } satisfies Noted)}\n`

/**
 * Notes the profiles that are about to be loaded; returns the path of the note. The note is outside the supervisor's folder,
 * which is removed when only the program is killed. It has the supervisor's name in its own, which makes it unique.
 */
export const note = ({ folder, supervisor }: Berth, names: ReadonlyArray<string>): string => {
  const path = `${folder}/apparmor/${basename(supervisor.folder)}.${supervisor.nextId()}`
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  writeFileSync(path, lineOf(names.map((name) => [name, ""])), { mode: 0o600 })
  return path
}

/** Notes that these profiles have been loaded. */
export const noteLoaded = (path: string, names: ReadonlyArray<string>): void =>
  appendFileSync(path, lineOf(names.map((name) => [name, entryOf(name) ?? ""])))

/**
 * Whether a process is confined by a profile, so that unloading would free it: its label is PROFILE, PROFILE//CHILD or several
 * of these joined by //&. A zombie has no namespaces and does not count.
 */
const isUsed = (name: string): boolean =>
  list("/proc")
    .filter((pid) => Number(pid) > 0 && link(`/proc/${pid}/ns/mnt`) !== "")
    .flatMap((pid) =>
      read(`/proc/${pid}/attr/current`)
        .replace(/ \(\w+\)\s*$/, "")
        .split("//&")
    )
    .some((label) => label === name || label.startsWith(`${name}//`))

/** Loading takes less: the parser is ended after half of it. */
const LOADING_MILLIS = 60_000

/**
 * Whether this profile is the noted one. If the program was killed before it could note the entry, the profile counts
 * as noted if it was loaded soon after.
 */
const isNoted = (name: string, entry: string, notedMillis: number): boolean => {
  if (entry !== "") return nameOf(entry) === name
  const found = entryOf(name)
  const loadedMillis =
    found === undefined ? undefined : statSync(`${PROFILES}/${found}`, { throwIfNoEntry: false })?.mtimeMs
  return (
    loadedMillis !== undefined && loadedMillis >= notedMillis && loadedMillis < notedMillis + LOADING_MILLIS
  )
}

const sweepOne = (path: string): void => {
  const notedMillis = statSync(path).mtimeMs
  const line = readFileSync(path, "utf8").trim().split("\n").at(-1)
  // The program was killed before it could write the first line.
  const { boot, profiles }: Noted = line ? JSON.parse(line) : { boot: "", profiles: [] }
  const noted = boot === thisBoot() ? profiles : []
  const left = noted.filter(([name, entry]) => isNoted(name, entry, notedMillis))
  if (left.some(([name]) => isUsed(name))) return
  for (const [name] of left) unload(name)
  // A parser outlives the program that started it.
  const isLoading = noted.some(([, entry]) => entry === "") && Date.now() < notedMillis + LOADING_MILLIS
  if (left.length < noted.length && isLoading) return
  rmSync(path, { force: true })
}

/**
 * Unloads the profiles of dead Berths: those whose supervisor has no folder any more, after a sweep. Profiles that another
 * program has loaded since, and those that a process still uses, stay.
 */
export const sweep = (folder: string): Effect.Effect<void> =>
  Effect.suspend(() =>
    Effect.forEach(
      list(`${folder}/apparmor`).filter((file) => !existsSync(`${folder}/run/${file.replace(/\.\d+$/, "")}`)),
      (file) =>
        Effect.try(() => sweepOne(`${folder}/apparmor/${file}`)).pipe(
          Effect.catchAll((cause) =>
            Effect.logWarning(`AppArmor profiles of ${file} were not unloaded: ${cause.error}`)
          )
        ),
      { discard: true }
    )
  )
