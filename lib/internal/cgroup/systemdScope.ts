/**
 * If systemd manages the tree of cgroups, Berth asks it for a part of the tree, because systemd allows one writer for each
 * cgroup (CGROUP_DELEGATION.md). A transient scope with Delegate=yes holds the supervisor; Berth manages the cgroups below.
 */
import { accessSync, constants, existsSync, mkdirSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import type { MessageBus } from "dbus-native"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { AT_FDCWD, native, O_PATH } from "../system/addon.ts"
import { read } from "../util/readFile.ts"
import { detect, lazily, type Tree, unifiedOf } from "./tree.ts"

/** The time limit, in milliseconds, for an answer of systemd, and again for moving the supervisor. */
const PATIENCE_MS = 5000

/** sd_booted(3). */
const isRunning = (): boolean => existsSync("/run/systemd/system")

/** The folder of the innermost unit that contains this cgroup. */
const unitOf = (cgroup: string): string | undefined => {
  for (let folder = cgroup; folder !== "/"; folder = dirname(folder))
    if (/\.(service|scope)$/.test(folder)) return folder
  return undefined
}

const hasAttribute = (folder: string, name: string): boolean => {
  const fd = native().openIn(AT_FDCWD, folder, O_PATH, 0, 0)
  if (fd < 0) return false
  const value = new Uint8Array(8)
  const length = native().xattr(fd, name, value)
  native().close(fd)
  return length === 1 && value[0] === 0x31
}

const isWritable = (unit: string): boolean => {
  try {
    accessSync(`${unit}/cgroup.procs`, constants.W_OK)
    return true
  } catch {
    return false
  }
}

// One write for each controller: a missing controller makes a common write fail.
const passOn = (folder: string): void => {
  for (const controller of read(`${folder}/cgroup.controllers`).trim().split(" "))
    try {
      writeFileSync(`${folder}/cgroup.subtree_control`, `+${controller}`)
    } catch {
      // The tree then lacks the controller, and a limit that needs it fails.
    }
}

/**
 * Prepares a delegated cgroup for cgroups below it. A cgroup with processes of its own cannot pass controllers on
 * (cgroup-v2.rst, no internal process constraint), so its processes move into one below, as with podman.
 */
const subdivide = (folder: string, inner: string): void => {
  if (read(`${folder}/cgroup.subtree_control`).trim() !== "") return
  mkdirSync(`${folder}/${inner}`, { recursive: true })
  for (const pid of read(`${folder}/cgroup.procs`).split("\n").filter(Boolean))
    try {
      writeFileSync(`${folder}/${inner}/cgroup.procs`, pid)
    } catch {
      // It has ended.
    }
  passOn(folder)
}

interface Address {
  readonly path: string
  /** systemd's own socket, for a system without a bus. */
  readonly direct: boolean
}

/** The addresses of the manager: the bus first, then its own socket. */
const addresses = (): ReadonlyArray<Address> => {
  const rootless = process.geteuid?.() !== 0
  const runtime = process.env.XDG_RUNTIME_DIR || `/run/user/${process.geteuid?.()}`
  const given = rootless ? process.env.DBUS_SESSION_BUS_ADDRESS : process.env.DBUS_SYSTEM_BUS_ADDRESS
  const bus = /(?:^|;)unix:path=([^,;]+)/.exec(given ?? "")?.[1]
  return [
    ...(bus === undefined ? [] : [{ path: bus, direct: false }]),
    { path: rootless ? `${runtime}/bus` : "/run/dbus/system_bus_socket", direct: false },
    { path: rootless ? `${runtime}/systemd/private` : "/run/systemd/private", direct: true }
  ].filter(({ path }) => existsSync(path))
}

const SYSTEMD = "org.freedesktop.systemd1"

interface Target {
  readonly path: string
  readonly interface: string
}

const MANAGER: Target = { path: "/org/freedesktop/systemd1", interface: `${SYSTEMD}.Manager` }

const call = async (
  bus: MessageBus,
  target: Target,
  member: string,
  signature: string,
  body: ReadonlyArray<unknown>
): Promise<unknown> =>
  bus.invoke(
    { ...target, destination: SYSTEMD, member, signature, body: [...body] },
    { timeout: PATIENCE_MS }
  )

const withBus = <A>(address: Address, use: (bus: MessageBus) => Promise<A>): Effect.Effect<A, string> =>
  Effect.acquireUseRelease(
    Effect.tryPromise({
      try: async () => {
        const { createClient } = (await import("dbus-native")).default
        const bus = createClient({ socket: address.path, direct: address.direct })
        const broken = new Promise<never>((_, reject) => bus.connection.on("error", reject))
        // The call that fails reports a broken connection; later it does not matter.
        broken.catch(() => {})
        return { bus, broken }
      },
      catch: String
    }),
    ({ broken, bus }) => Effect.tryPromise({ try: () => Promise.race([use(bus), broken]), catch: String }),
    ({ bus }) => Effect.sync(() => bus.connection.end())
  ).pipe(
    Effect.timeoutFail({ duration: 2 * PATIENCE_MS, onTimeout: () => "it does not answer" }),
    Effect.mapError((why) => `${address.path}: ${why}`)
  )

const UNLIMITED = "18446744073709551615"

const startScope = (scope: string, pid: number) => (bus: MessageBus) =>
  call(bus, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", [
    scope,
    "fail",
    [
      ["Description", ["s", "Containers of Berth"]],
      ["PIDs", ["au", [pid]]],
      ["Delegate", ["b", true]],
      // The scope ends with its last process, and systemd then removes it, whatever the result.
      ["CollectMode", ["s", "inactive-or-failed"]],
      ["TasksMax", ["t", UNLIMITED]]
    ],
    []
  ])

const INNER = "supervisor"

/** Tries the addresses one after the other until one answers; fails with the errors of all. */
const ask = <A>(use: (bus: MessageBus) => Promise<A>): Effect.Effect<A, string> => {
  const all = addresses()
  if (all.length === 0)
    return Effect.fail(
      process.geteuid?.() === 0
        ? "neither the system's bus nor systemd's own socket exists"
        : "this user has no systemd manager: log in, or let root run: loginctl enable-linger"
    )
  return all
    .map((address) => withBus(address, use))
    .reduce((first, next) =>
      Effect.catchAll(first, (why) => Effect.mapError(next, (other) => `${why}; ${other}`))
    )
}

const hex = (character: string): string => `_${character.charCodeAt(0).toString(16)}`

/** The property `Delegate` of a unit, whose object's path has its name in it, escaped: sd_bus_path_encode(3). */
const readDelegate = (unit: string) => async (bus: MessageBus) => {
  const { variantValue } = (await import("dbus-native")).default
  const path = `${MANAGER.path}/unit/${unit.replace(/^\d|[^a-zA-Z0-9]/g, hex)}`
  const target = { path, interface: "org.freedesktop.DBus.Properties" }
  const type = `${SYSTEMD}.${unit.endsWith(".scope") ? "Scope" : "Service"}`
  return variantValue(await call(bus, target, "Get", "ss", [type, "Delegate"])) === true
}

/**
 * Whether a cgroup is writable and delegated, so that systemd leaves the cgroups below it alone. The system's manager marks
 * such a cgroup with an attribute; a user's manager is asked.
 */
const isDelegated = (unit: string): Effect.Effect<boolean> => {
  if (!isWritable(unit)) return Effect.succeed(false)
  const marked = hasAttribute(unit, "user.delegate") || hasAttribute(unit, "trusted.delegate")
  return marked || process.geteuid?.() === 0
    ? Effect.succeed(marked)
    : Effect.orElseSucceed(ask(readDelegate(basename(unit))), () => false)
}

/** Waits until the supervisor is in the scope, which may be after systemd's answer; returns the scope's folder. */
const arrived = (scope: string, pid: number): Effect.Effect<string, string> =>
  Effect.suspend(() => {
    const unit = unitOf(unifiedOf(pid) ?? "/")
    return unit !== undefined && basename(unit) === scope
      ? Effect.succeed(unit)
      : Effect.fail(`the supervisor was not moved into ${scope}: see systemctl status ${scope}`)
  }).pipe(Effect.retry(Schedule.spaced("2 millis").pipe(Schedule.upTo(`${PATIENCE_MS} millis`))))

/** Moves a supervisor into a scope of its own. */
const enterScope = (pid: number): Effect.Effect<void, string> =>
  Effect.gen(function* () {
    const scope = `berth-${process.pid}-${pid}.scope`
    yield* ask(startScope(scope, pid))
    const folder = yield* arrived(scope, pid)
    yield* Effect.try({ try: () => subdivide(folder, INNER), catch: String })
  })

const refused = (own: string, why: string): Tree => {
  const detail = `systemd manages the tree and does not give a scope: ${why}. Run the program in a unit with Delegate=yes`
  return {
    kind: "none",
    controllers: {},
    missing: () => detail,
    why: () => ({ reason: "NotDelegated", path: own, detail }),
    hasFile: () => false
  }
}

/**
 * The tree in which a supervisor's cgroups are made, in a part of systemd's tree that is delegated: the unit of this
 * process, if it is delegated; else a scope of the system's or the user's manager. The supervisor is moved into that
 * scope, and the scope ends with it. If systemd does not run the machine, or the tree has hierarchies of version 1, it
 * is the tree of this process.
 *
 * Never fails: without a delegated part, the limits of a container fail and say why.
 */
export const delegate = (supervisor: number): Effect.Effect<() => Tree> =>
  Effect.suspend((): Effect.Effect<() => Tree> => {
    const own = isRunning() ? unifiedOf("self") : undefined
    if (own === undefined) return Effect.succeed(lazily())
    const unit = unitOf(own)
    return Effect.if(unit === undefined ? Effect.succeed(false) : isDelegated(unit), {
      onTrue: () => Effect.sync(() => subdivide(unit!, "berth-main")).pipe(Effect.as("self" as const)),
      onFalse: () => Effect.as(enterScope(supervisor), supervisor)
    }).pipe(
      Effect.match({ onFailure: (why) => refused(own, why), onSuccess: detect }),
      Effect.map((tree) => () => tree)
    )
  }).pipe(
    Effect.catchAllDefect((cause) =>
      Effect.as(Effect.logWarning(`systemd was not asked for cgroups: ${cause}`), lazily())
    ),
    Effect.withSpan("berth.systemd.delegate")
  )
