/** AppArmor, apparmor(7): the profile of a process, and profiles that are loaded while a scope is open. */
import { execFile } from "node:child_process"
import { rmSync } from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Berth } from "../../Berth.ts"
import { type BerthError, InvalidData, OperationFailed, Unsupported } from "../../BerthError.ts"
import { EACCES, EEXIST } from "../util/errno.ts"
import { invalid } from "../util/validate.ts"
import { isEnabled, note, noteLoaded, unload } from "./appArmorProfiles.ts"

const off = (): Unsupported =>
  new Unsupported({
    feature: "AppArmor",
    why: "it is disabled in this kernel",
    hint: "Leave appArmor out, or boot a kernel that has it with lsm=...,apparmor"
  })

/** The longest name that the child can hold. */
const NAME_MAX = 256

const isName = (name: string): boolean =>
  /^[^\s\0"{}]+$/.test(name) && new TextEncoder().encode(name).length <= NAME_MAX

const NAME = `the name of a profile: no white space, quotes or braces, at most ${NAME_MAX} bytes`

/** The profile of the option; throws. */
export const profile = (name: string | undefined): string | undefined => {
  if (name === undefined) return name
  if (typeof name !== "string" || !isName(name)) invalid("appArmor", name, NAME)
  if (!isEnabled()) throw off()
  return name
}

/**
 * The rules of docker-default (profiles/apparmor/template.go of moby) without its included files, so that the parser alone
 * is enough.
 */
export const defaultProfile = (name: string): string => {
  if (!isName(name)) invalid("name", name, NAME)
  return `profile "${name}" flags=(attach_disconnected,mediate_deleted) {
  network,
  unix,
  capability,
  file,
  umount,

  # Signals come from the host, and go to the container's own processes.
  signal (receive) peer=unconfined,
  signal (send,receive) peer="${name}",
  ptrace (trace,read,tracedby,readby) peer="${name}",

  deny mount,

  # Below /proc only /proc/PID and /proc/sys/kernel/shm* can be written.
  deny /proc/* w,
  deny /proc/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # Below /sys only the cgroups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`
}

interface Parsed {
  readonly code: number
  /** The error of execFile for an exit code other than 0. */
  readonly cause: Error | undefined
  readonly stdout: string
  readonly stderr: string
}

/** Runs apparmor_parser(8) on this text. */
const parser = (args: ReadonlyArray<string>, text: string): Effect.Effect<Parsed, Unsupported> =>
  Effect.async<Parsed, Unsupported>((resume) => {
    // A PATH may lack the parser's folder.
    const env = { ...process.env, PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin` }
    const child = execFile(
      "apparmor_parser",
      [...args],
      { env, timeout: 30_000 },
      (error, stdout, stderr) => {
        if (error?.code === "ENOENT")
          return resume(
            Effect.fail(
              new Unsupported({
                feature: "loading an AppArmor profile",
                why: "apparmor_parser is missing",
                hint: "Install it: apt-get install apparmor",
                cause: error
              })
            )
          )
        resume(
          Effect.succeed({
            code: error === null ? 0 : Number(error.code ?? 1),
            cause: error ?? undefined,
            stdout,
            stderr: stderr.trim()
          })
        )
      }
    )
    // If the parser ends before it has read everything, its exit code says so.
    child.stdin?.on("error", () => {})
    child.stdin?.end(text)
  })

const namesOf = (text: string): Effect.Effect<ReadonlyArray<string>, BerthError> =>
  Effect.flatMap(parser(["--names"], text), ({ cause, code, stderr, stdout }) => {
    // Child profiles, written PARENT//CHILD, are loaded and unloaded with their parent.
    const names = stdout.split("\n").filter((name) => name !== "" && !name.includes("//"))
    if (code === 0 && names.length > 0) return Effect.succeed(names)
    const expected = `profiles that apparmor_parser takes; it says: ${stderr || "there is none"}`
    const value = JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text)
    return Effect.fail(new InvalidData({ format: "AppArmor profile", value, expected, cause }))
  })

const add = (text: string, names: ReadonlyArray<string>): Effect.Effect<void, BerthError> =>
  Effect.flatMap(parser(["--add", "--skip-cache"], text), ({ cause, code, stderr }) => {
    if (code === 0) return Effect.void
    const exists = /already exists/i.test(stderr)
    const operation = `load AppArmor profile ${names.join(", ")}`
    const hint = exists ? "Use the loaded profile, or choose another name" : stderr
    const errno = exists ? EEXIST : EACCES
    return Effect.fail(
      new OperationFailed({ operation, index: -1, syscall: "apparmor_parser", errno, hint, cause })
    )
  })

const remove = (names: ReadonlyArray<string>, noted: string): Effect.Effect<void> =>
  Effect.try(() => {
    names.forEach(unload)
    rmSync(noted, { force: true })
  }).pipe(
    Effect.catchAll(({ error }) =>
      Effect.logWarning(`AppArmor profiles ${names.join(", ")} could not be unloaded: ${error}`)
    )
  )

export const load: (text: string) => Effect.Effect<ReadonlyArray<string>, BerthError, Berth | Scope.Scope> =
  Effect.fn("berth.Security.appArmor")(function* (text) {
    if (!isEnabled()) return yield* off()
    if (process.geteuid?.() !== 0)
      return yield* new Unsupported({
        feature: "loading an AppArmor profile",
        why: "this process is not root",
        hint: "Let root load it (apparmor_parser --add), and use it by its name"
      })
    const berth = yield* Berth
    const names = yield* namesOf(text)
    // The note comes first, so that every loaded profile is noted.
    const loaded = Effect.flatMap(
      Effect.sync(() => note(berth, names)),
      (path) =>
        add(text, names).pipe(
          Effect.tapError(() => Effect.sync(() => rmSync(path, { force: true }))),
          Effect.zipRight(Effect.sync(() => noteLoaded(path, names))),
          Effect.as(path)
        )
    )
    yield* Effect.acquireRelease(loaded, (path) => remove(names, path))
    return names
  })
