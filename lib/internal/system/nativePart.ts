/** Finds the folder of the native part, which has the addon and the programs, and says why the addon cannot be loaded. */
import { closeSync, existsSync, openSync, readFileSync, readSync, realpathSync } from "node:fs"
import { createRequire } from "node:module"
import { dirname, resolve } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"

/** The first bytes of a file in latin1, or nothing if it cannot be read. */
const beginning = (file: string, length: number): string => {
  try {
    const fd = openSync(file, "r")
    try {
      const bytes = Buffer.alloc(length)
      return bytes.toString("latin1", 0, readSync(fd, bytes, 0, length, 0))
    } finally {
      closeSync(fd)
    }
  } catch {
    return ""
  }
}

const parsed = (file: string): { readonly name?: string; readonly version?: string } => {
  try {
    return JSON.parse(readFileSync(file, "utf8"))
  } catch {
    return {}
  }
}

/** The machines that have a package of the native part: native/packages.mjs makes these. */
const targets: ReadonlyArray<string> = [
  "linux-x64-gnu",
  "linux-x64-musl",
  "linux-arm64-gnu",
  "linux-arm64-musl"
]

/** The kind of this machine. The program's executable names the loader of its C library in its first bytes (PT_INTERP of elf(5)). */
const target = (): string =>
  `linux-${process.arch}-${beginning(process.execPath, 4096).includes("/ld-musl-") ? "musl" : "gnu"}`

/** A bundle in the form of CommonJS has no `import.meta.url`. */
const here: string =
  import.meta.url ?? (typeof __filename === "string" ? pathToFileURL(__filename).href : "file:///")

/**
 * The folder of the package berth, unless this module is in the bundle of another package. A module of the source is one folder deeper
 * in it than a module of `dist/bundle` or `dist/chunks`.
 */
const packageFolder = (): string | undefined =>
  ["../../", "../../../"]
    .map((place) => fileURLToPath(new URL(place, here)))
    .find((folder) => parsed(`${folder}package.json`).name === "berth")

const find = (): string => {
  const at = packageFolder()
  const isHere = ["native/build", "native/setup.mjs"].some((name) => existsSync(`${at}${name}`))
  if (at !== undefined && isHere) return `${at}native/build/`
  const name = `@berth/${target()}`
  try {
    return `${dirname(createRequire(here).resolve(`${name}/package.json`))}/`
  } catch {
    return `${name}/`
  }
}

// Nothing is installed while a program runs.
let found: string | undefined

const nativeFolder = (): string => {
  const configured = process.env.BERTH_NATIVE
  if (configured !== undefined) return `${resolve(configured)}/`
  found ??= find()
  return found
}

/** The path of a file of the native part: `berth.node`, `berth-supervisor`, `berth-unpack`. */
export const programPath = (name: string): string => `${nativeFolder()}${name}`

/** What to do if a file of the native part is missing or cannot be loaded. */
export const nativeFix = (): string => {
  const name = `@berth/${target()}`
  if (process.env.BERTH_NATIVE !== undefined)
    return `Set BERTH_NATIVE, which is ${process.env.BERTH_NATIVE}, to the folder native/build of a clone of berth or to that of the package ${name}, or unset it`
  const at = packageFolder()
  if (at === undefined)
    return `Keep berth out of the bundle (esbuild: --external:berth), or set BERTH_NATIVE to a copy of the folder node_modules/${name}`
  if (existsSync(`${at}native/setup.mjs`)) return `Build it: node ${at}native/setup.mjs`
  if (existsSync(`${at}native/build`) || !targets.includes(target()))
    return "Install a berth that was built for this processor and C library: run npm pack in a clone of berth on such a machine, and npm install the file that it writes"
  const { version } = parsed(`${at}package.json`)
  return `Install it: npm install ${name}@${version}. npm leaves it out with --omit=optional or --no-optional, and with a package-lock.json or node_modules of another system`
}

/** e_machine of elf(5) → Node's name of the processor. */
const machines: Readonly<Record<number, string>> = { 62: "x64", 183: "arm64" }

/** The processor that a file is for. */
const processorOf = (file: string): string | undefined => {
  const header = beginning(file, 20)
  if (header.length < 20 || !header.startsWith("\x7fELF")) return undefined
  const machine = header.charCodeAt(18) | (header.charCodeAt(19) << 8)
  return machines[machine] ?? `processor ${machine}`
}

/** The mount point of a file, if nothing of it may be executed. */
const noexecMount = (file: string): string | undefined => {
  const path = realpathSync(file)
  const mounts = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" "))
    .filter(([, , , , point]) => point === "/" || path.startsWith(`${point}/`))
  const deepest = mounts.reduce<ReadonlyArray<string>>(
    (best, mount) => (mount[4]!.length >= (best[4] ?? "").length ? mount : best),
    []
  )
  return deepest[5]?.split(",").includes("noexec") ? deepest[4] : undefined
}

/** Why the addon could not be loaded, and what to do. */
export const whyNotLoaded = (cause: unknown): { readonly why: string; readonly hint: string } => {
  const file = programPath("berth.node")
  if (!existsSync(file)) return { why: `${file} is missing`, hint: nativeFix() }
  const processor = processorOf(file)
  if (processor === undefined) return { why: `${file} is no library of Linux`, hint: nativeFix() }
  if (processor !== process.arch)
    return { why: `${file} is for ${processor}, and this program runs on ${process.arch}`, hint: nativeFix() }
  const mount = noexecMount(file)
  if (mount === undefined) return { why: String(cause), hint: nativeFix() }
  return {
    why: `${file} may not be executed, because the file system at ${mount} is mounted with noexec`,
    hint: `Remount it (mount -o remount,exec ${mount}), or set BERTH_NATIVE to a copy of the folder ${dirname(file)} on another file system`
  }
}
