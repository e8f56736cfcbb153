/**
 * V8's code of a large file, kept for the next program: to compile the file is more than half of the time of its import. `.bundle.ts` has Node
 * load most of `berth/promise` by this module; other runtimes, and bundlers, import the file as it is.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import { fileURLToPath } from "node:url"
import * as vm from "node:vm"

/** A module as a function: its text from `begin` to `end`, in ASCII, between `head` and `tail`. */
export interface Code {
  readonly url: string
  readonly begin: number
  readonly end: number
  readonly head: string
  readonly tail: string
  /** Of all that the function is made of: V8 looks at its length alone. */
  readonly digest: string
}

const DAY_MS = 24 * 60 * 60_000

const textOf = ({ begin, end, head, tail }: Code, file: string): string => {
  const whole = Buffer.allocUnsafe(head.length + end - begin + tail.length)
  whole.write(head, "latin1")
  const fd = fs.openSync(file, "r")
  const read = fs.readSync(fd, whole, head.length, end - begin, begin)
  fs.closeSync(fd)
  if (read !== end - begin) throw new Error(`${file} has been cut short: install the package again`)
  whole.write(tail, head.length + read, "latin1")
  return whole.toString("latin1")
}

/** V8 executes what is there: nobody but this user may have written it. */
const isOwn = ({ mode, uid }: fs.Stats): boolean => uid === process.geteuid?.() && (mode & 0o022) === 0

/** The folder of the kept code; undefined if there is none, also where the home folder is another user's, as after `sudo`. */
const folder = (): string | undefined => {
  if (process.env.NODE_DISABLE_COMPILE_CACHE) return undefined
  const parent = process.env.XDG_CACHE_HOME || `${os.homedir()}/.cache`
  const own = `${parent}/berth`
  try {
    for (const path of [parent, own]) {
      try {
        fs.mkdirSync(path, { mode: 0o700 })
      } catch {}
      if (!isOwn(fs.lstatSync(path))) return undefined
    }
    return own
  } catch {
    return undefined
  }
}

interface Kept {
  readonly data: Buffer
  readonly changed: number
}

const readKept = (path: string): Kept | undefined => {
  try {
    const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK)
    try {
      const status = fs.fstatSync(fd)
      return status.isFile() && isOwn(status)
        ? { data: fs.readFileSync(fd), changed: status.mtimeMs }
        : undefined
    } finally {
      fs.closeSync(fd)
    }
  } catch {
    return undefined
  }
}

/** Files that were written so long ago are those of other versions, or are written again. */
const OLD_MS = 30 * DAY_MS

/** Keeps the code of all that has been called so far. The file is whole or not there, also after the machine has lost its power. */
const keep = (own: string, path: string, script: vm.Script): void => {
  const now = Date.now()
  for (const name of fs.readdirSync(own)) {
    const other = `${own}/${name}`
    if (now - fs.statSync(other).mtimeMs > OLD_MS) fs.rmSync(other, { recursive: true, force: true })
  }
  const part = `${path}.${process.pid}`
  try {
    fs.writeFileSync(part, script.createCachedData(), { flag: "wx", mode: 0o600, flush: true })
    fs.renameSync(part, path)
  } catch (error) {
    fs.rmSync(part, { force: true })
    throw error
  }
}

/** The function that a module has become. What its import needs is compiled, or comes from the folder of the kept code. */
export const load = (code: Code): ((...args: ReadonlyArray<unknown>) => Record<string, unknown>) => {
  const file = fileURLToPath(code.url)
  const text = textOf(code, file)
  const own = folder()
  const path = `${own}/${code.digest}-${process.version}-${process.arch}`
  const kept = own === undefined ? undefined : readKept(path)
  const script = new vm.Script(text, {
    filename: file,
    cachedData: kept?.data,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER
  })
  // Of programs with other options of V8, one alone has its code there.
  const isStale = kept === undefined || (script.cachedDataRejected && Date.now() - kept.changed > DAY_MS)
  if (own !== undefined && isStale)
    process.once("exit", () => {
      try {
        keep(own, path, script)
      } catch {}
    })
  const made = script.runInThisContext()
  // A test runner may have put this module into another realm, whose objects are not those of the script.
  // biome-ignore lint/security/noGlobalEval: it is the package's own file
  return made instanceof Function ? made : globalThis.eval(text)
}
