/**
 * The only walk over a tree that a container may have made: depth first, without recursion, with few descriptors at any
 * depth, and with pauses for other work in folders of any size. All functions throw as `inRoot` does.
 */

import { native, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS } from "../system/addon.ts"
import { ESTALE } from "../util/errno.ts"
import * as asRoot from "./namespaceRoot.ts"
import * as inRoot from "./rooted.ts"

/** The number of folders of a path that stay open. */
const KEPT = 32

interface Level {
  /** -1 while the folder is closed. */
  fd: number
  /** The identity of the folder, checked when it is opened again. */
  identity: string
}

/**
 * Nested opened folders; the last one is the current folder. Of a long path, only the lowest stay open: a parent is
 * opened again by its `..`, and must be the same folder as before, because a container may have moved the lower one
 * elsewhere.
 */
export class Descent {
  private readonly levels: Array<Level>

  /** The caller keeps the first folder's descriptor. */
  constructor(top: number) {
    this.levels = [{ fd: top, identity: "" }]
  }

  get fd(): number {
    return this.levels.at(-1)!.fd
  }

  /** Enters a folder of the current one. It takes over the descriptor unless it fails. */
  down(fd: number): void {
    const above = this.levels.at(-1)!
    if (this.levels.length >= KEPT) {
      above.identity = inRoot.identity(above.fd)
      native().close(above.fd)
      above.fd = -1
    }
    this.levels.push({ fd, identity: "" })
  }

  up(): void {
    const left = this.levels.pop()!
    const above = this.levels.at(-1)!
    inRoot.using(left.fd, () => {
      if (above.fd >= 0) return
      const resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
      above.fd = asRoot.openIn(left.fd, "..", inRoot.O_FOLDER, resolve, 0)
      if (above.fd < 0) inRoot.fail(-above.fd, "open", "..")
      if (inRoot.identity(above.fd) !== above.identity)
        inRoot.fail(ESTALE, "open", "a folder that was moved to another while it was being read")
    })
  }

  /** Closes all folders but the first. */
  close(): void {
    for (const { fd } of this.levels.splice(1)) if (fd >= 0) native().close(fd)
  }
}

/** An entry in an opened folder. */
export interface Visit<Name, State> {
  readonly folder: number
  readonly name: Name
  /** Data about the folder. */
  readonly state: State
  /**
   * Makes the walk enter the folder at the name. It takes over the descriptor unless it fails; the caller may close
   * `folder` afterwards. `leave` is called with the opened folder when all its entries have been visited.
   */
  readonly enter: (fd: number, state: State, leave?: (folder: number) => void) => void
}

export interface Options<Name, State> {
  /** The opened folder in which the walk begins; the caller keeps it. */
  readonly top: number
  readonly state: State
  /** The names in it to visit. */
  readonly names: ReadonlyArray<Name>
  /** The names of a folder that is entered. */
  readonly namesIn: (folder: number, state: State) => Promise<ReadonlyArray<Name>>
  readonly signal: AbortSignal
}

export async function* walk<Name, State>(options: Options<Name, State>): AsyncGenerator<Visit<Name, State>> {
  const way = new Descent(options.top)
  const nothing = (): void => {}
  const levels = [
    { names: options.names, next: 0, state: options.state, leave: nothing as (fd: number) => void }
  ]
  try {
    for (let level = levels.at(-1); level !== undefined; level = levels.at(-1)) {
      await inRoot.turn(options.signal)
      if (level.next === level.names.length) {
        levels.pop()
        if (levels.length === 0) return
        way.up()
        level.leave(way.fd)
        continue
      }
      let entered: { readonly state: State; readonly leave: (folder: number) => void } | undefined
      yield {
        folder: way.fd,
        name: level.names[level.next++]!,
        state: level.state,
        enter: (fd, state, leave = nothing) => {
          entered = { state, leave }
          way.down(fd)
        }
      }
      if (entered === undefined) continue
      const { leave, state } = entered
      levels.push({ names: await options.namesIn(way.fd, state), next: 0, state, leave })
    }
  } finally {
    way.close()
  }
}

/** The results of `take` for each entry of an opened folder. */
const listed = async <A>(
  folder: number,
  path: string,
  signal: AbortSignal,
  take: (entry: inRoot.Entry) => A
): Promise<ReadonlyArray<A>> => {
  const all: Array<A> = []
  for (const part of inRoot.entryParts(folder, path)) {
    for (const entry of part) all.push(take(entry))
    await inRoot.turn(signal)
  }
  return all
}

/** The names in an opened folder, as bytes, which need not be UTF-8. */
export const namesOf = (
  folder: number,
  path: string,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> => listed(folder, path, signal, ({ name }) => name)

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })

/** The same, with U+FFFD for bytes that are not UTF-8. */
export const textsOf = (folder: number, path: string, signal: AbortSignal): Promise<ReadonlyArray<string>> =>
  listed(folder, path, signal, ({ name }) => utf8.decode(name))

/** The same, with whether the entry may be a folder. */
export const entriesOf = (
  folder: number,
  path: string,
  signal: AbortSignal
): Promise<ReadonlyArray<{ readonly name: string; readonly mayBeFolder: boolean }>> =>
  listed(folder, path, signal, ({ mayBeFolder, name }) => ({ name: utf8.decode(name), mayBeFolder }))

/** The number of names that are sorted at once. */
const RUN = 4096

const merged = async (
  a: ReadonlyArray<Uint8Array>,
  b: ReadonlyArray<Uint8Array>,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> => {
  const all: Array<Uint8Array> = []
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    const first = j === b.length || (i < a.length && Buffer.compare(a[i]!, b[j]!) <= 0)
    all.push(first ? a[i++]! : b[j++]!)
    if (all.length % RUN === 0) await inRoot.turn(signal)
  }
  return all
}

/** Compares names by their bytes. */
export const sorted = async (
  names: ReadonlyArray<Uint8Array>,
  signal: AbortSignal
): Promise<ReadonlyArray<Uint8Array>> => {
  let runs: Array<ReadonlyArray<Uint8Array>> = []
  for (let at = 0; at < names.length; at += RUN) {
    runs.push(names.slice(at, at + RUN).sort(Buffer.compare))
    await inRoot.turn(signal)
  }
  while (runs.length > 1) {
    const longer: Array<ReadonlyArray<Uint8Array>> = []
    for (let k = 0; k < runs.length; k += 2)
      longer.push(k + 1 < runs.length ? await merged(runs[k]!, runs[k + 1]!, signal) : runs[k]!)
    runs = longer
  }
  return runs[0] ?? []
}
