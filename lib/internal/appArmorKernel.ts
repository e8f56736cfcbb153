/** AppArmor as the kernel has it: whether it is on, and the profiles that Berths have loaded, and left when they were killed. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import * as Effect from "effect/Effect"
import type { Berth } from "../Berth.ts"
import { list, read } from "./hostFiles.ts"

const KERNEL = "/sys/kernel/security/apparmor"

let enabled: boolean | undefined

/** Whether the kernel has it turned on, which is decided when the machine starts. */
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
    // Somebody else has unloaded it.
    if ((cause as { code?: unknown }).code !== "ENOENT") throw cause
  }
}

/** The entry by which the kernel knows what was loaded; who loads a profile of the same name later gets another one. */
const entryOf = (name: string): string | undefined =>
  list(`${KERNEL}/policy/profiles`).find(
    (entry) => read(`${KERNEL}/policy/profiles/${entry}/name`).trim() === name
  )

interface Noted {
  /** The entries are numbered anew with each. */
  readonly boot: string
  readonly profiles: ReadonlyArray<readonly [name: string, entry: string]>
}

const thisBoot = (): string => read("/proc/sys/kernel/random/boot_id").trim()

/**
 * Notes what has been loaded; gives the file. It is not in the supervisor's folder, which is gone when only its program is
 * killed, and is named after it: no two of these ever have one name.
 */
export const note = ({ folder, supervisor }: Berth, names: ReadonlyArray<string>): string => {
  const path = `${folder}/apparmor/${basename(supervisor.folder)}.${supervisor.nextId()}`
  const profiles = names.map((name) => [name, entryOf(name) ?? ""] as const)
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  writeFileSync(path, JSON.stringify({ boot: thisBoot(), profiles } satisfies Noted), { mode: 0o600 })
  return path
}

/** Whether a process, which a profile's end would free, is in it: PROFILE, PROFILE//CHILD or several joined by //&. */
const isUsed = (name: string): boolean =>
  list("/proc")
    .filter((pid) => Number(pid) > 0)
    .flatMap((pid) =>
      read(`/proc/${pid}/attr/current`)
        .replace(/ \(\w+\)\s*$/, "")
        .split("//&")
    )
    .some((label) => label === name || label.startsWith(`${name}//`))

const sweepOne = (path: string): void => {
  const { boot, profiles } = JSON.parse(readFileSync(path, "utf8")) as Noted
  const left =
    boot !== thisBoot()
      ? []
      : profiles.filter(
          ([name, entry]) => entry !== "" && read(`${KERNEL}/policy/profiles/${entry}/name`).trim() === name
        )
  if (left.some(([name]) => isUsed(name))) return
  for (const [name] of left) unload(name)
  rmSync(path, { force: true })
}

/**
 * Unloads the profiles of Berths that are no more: those whose supervisors have left no folder, once what these have left
 * is swept. What somebody else has loaded since, and what a process is still in, stays.
 */
export const sweep = (folder: string): Effect.Effect<void> =>
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
