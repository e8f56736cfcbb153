/**
 * The files that a step copies: which they are, a digest of all that a copy takes from them, and the copy itself. Paths are resolved
 * below an opened folder, so that no link leads out of it, and a link that is itself in a folder is copied as a link.
 */
import { createHash, type Hash } from "node:crypto"
import * as fs from "node:fs"
import { contents, copyTo, inside } from "../files/archiveCopy.ts"
import { type Metadata, metadataOf, setMetadata } from "../files/metadata.ts"
import { chown, makeFolder } from "../files/mutations.ts"
import * as inRoot from "../files/rooted.ts"
import { textsOf, walk } from "../files/walk.ts"
import { native, O_NOFOLLOW, O_PATH } from "../system/addon.ts"
import { ENOENT, ENOTDIR } from "../util/errno.ts"
import { cleaned, type Ignore, matcherOf } from "./ignore.ts"

/** A file or folder that a pattern names. */
export interface Source {
  /** Its path without links, from the top. */
  readonly path: string
  /** Its name where the pattern found it: the copy of a file has this name. */
  readonly name: string
  readonly isFolder: boolean
  /** The folders that the copy is in, below the target, with the paths that have their metadata; for a folder, itself the last. */
  readonly above: ReadonlyArray<{ readonly name: string; readonly path: string }>
}

/** Which files of a context a step copies. */
export interface Wanted {
  readonly patterns: ReadonlyArray<string>
  readonly ignore: Ignore
  /** Patterns of files that are not copied, from the copied folder. */
  readonly exclude: Ignore
  /** Whether copies keep the folders that their patterns name, after `/./` if it is there. */
  readonly parents: boolean
}

export interface Selection {
  readonly sources: ReadonlyArray<Source>
  /** The state of each entry when it was read, by its path from the top. */
  readonly taken: ReadonlyMap<string, string>
  /** What the digest has of each entry, by its path from the top. */
  readonly files: ReadonlyMap<string, string>
  /** Of the paths below the sources, and for each the type, mode, content or target, and extended attributes. */
  readonly digest: string
}

/** A pattern has no file. */
export class NoMatch extends Error {
  readonly pattern: string
  constructor(pattern: string) {
    super(`there is no file ${pattern}`)
    this.pattern = pattern
  }
}

/** A file has changed between its digest and the end of its copy. */
export class Changed extends Error {
  readonly path: string
  constructor(path: string) {
    super(`${path} changed while it was copied`)
    this.path = path
  }
}

/** Digests of files by their states, so that a file is read once as long as it does not change. */
export interface Index {
  readonly get: (state: string) => string | undefined
  readonly set: (state: string, digest: string, changedMillis: number) => void
}

const magic = /[*?[\\]/

const existing = (top: number, path: string): number | undefined => {
  try {
    return inRoot.open(top, path === "" ? "." : path, O_PATH)
  } catch (error) {
    if (inRoot.isErrno(error, ENOENT, ENOTDIR)) return undefined
    throw error
  }
}

/** The names in a folder; none if it is no folder. */
const namesAt = (top: number, path: string, signal: AbortSignal): Promise<ReadonlyArray<string>> => {
  const folder = existing(top, path)
  if (folder === undefined) return Promise.resolve([])
  return inRoot.using(folder, async (fd) =>
    fs.statSync(inRoot.via(fd)).isDirectory()
      ? inRoot.using(inRoot.openHost(inRoot.via(fd), inRoot.O_FOLDER), (opened) =>
          textsOf(opened, path, signal)
        )
      : []
  )
}

const isLinkAt = (top: number, path: string): boolean =>
  inRoot.using(inRoot.open(top, path, O_PATH | O_NOFOLLOW), (fd) =>
    fs.statSync(inRoot.via(fd)).isSymbolicLink()
  )

/**
 * The paths that match a pattern below one of these, in the order of their names. A pattern without special characters is one path. `**`
 * stands for any number of folders, if it is wanted.
 */
const expand = async (
  top: number,
  starts: ReadonlyArray<string>,
  pattern: string,
  hasDeep: boolean,
  signal: AbortSignal
): Promise<ReadonlyArray<string>> => {
  let paths = starts
  for (const segment of cleaned(pattern).split("/")) {
    const below: Array<string> = []
    const deep = async (path: string): Promise<void> => {
      below.push(path)
      for (const name of [...(await namesAt(top, path, signal))].sort()) {
        const at = path === "" ? name : `${path}/${name}`
        if (!isLinkAt(top, at) && isFolderIn(top, at)) await deep(at)
      }
    }
    for (const path of paths) {
      const at = (name: string): string => (path === "" || name === "" ? `${path}${name}` : `${path}/${name}`)
      if (hasDeep && segment === "**") await deep(path)
      else if (!magic.test(segment)) below.push(at(segment))
      else below.push(...(await namesAt(top, path, signal)).filter(matcherOf(segment)).sort().map(at))
    }
    paths = [...new Set(below)]
  }
  return paths.filter((path) => {
    const found = existing(top, path)
    if (found !== undefined) native().close(found)
    return found !== undefined
  })
}

/** What changes when a file is written to. */
const stateOf = (fd: number): string => {
  const { ctimeNs, dev, ino, mtimeNs, size } = fs.statSync(inRoot.via(fd), { bigint: true })
  return [dev, ino, size, mtimeNs, ctimeNs].join(":")
}

const contentDigest = async (
  fd: number,
  status: fs.Stats,
  state: string,
  index: Index,
  signal: AbortSignal
): Promise<string> => {
  const known = index.get(state)
  if (known !== undefined) return known
  const hash = createHash("sha256")
  for await (const [offset, bytes] of contents(fd, status.size, signal)) {
    hash.update(`${offset}:${bytes.length}\0`)
    hash.update(bytes)
  }
  const digest = hash.digest("hex")
  index.set(state, digest, Math.max(status.mtimeMs, status.ctimeMs))
  return digest
}

const typeOf = (status: fs.Stats): string =>
  status.isFile() ? "file" : status.isDirectory() ? "folder" : status.isSymbolicLink() ? "link" : "fifo"

interface Reading {
  readonly taken: Map<string, string>
  readonly files: Map<string, string>
  readonly index: Index
  readonly signal: AbortSignal
  readonly hash: Hash
  /** Whether owners are copied, and so count. */
  readonly withOwners: boolean
}

/** Adds one entry to the digest. */
const take = async (
  { files, hash, index, signal, taken, withOwners }: Reading,
  fd: number,
  path: string,
  relative: string
): Promise<fs.Stats> => {
  const status = fs.statSync(inRoot.via(fd))
  const state = stateOf(fd)
  const { gid, mode, uid, xattrs } = metadataOf(fd, status, path)
  const content = status.isFile()
    ? await contentDigest(fd, status, state, index, signal)
    : status.isSymbolicLink()
      ? inRoot.linkText(fd, path)
      : ""
  taken.set(path, state)
  const attributes = xattrs.map(([name, value]) => [name, Buffer.from(value).toString("base64")])
  const owner = withOwners ? [uid, gid] : []
  const entry = JSON.stringify([relative, typeOf(status), mode, owner, attributes, content, status.size])
  files.set(path, entry)
  hash.update(`${entry}\n`)
  return status
}

/** Adds all entries of a folder that are not ignored. */
const takeBelow = async (reading: Reading, top: number, folder: string, ignore: Ignore): Promise<void> => {
  const { signal } = reading
  // Folders that are ignored, and are part of it after all if an exception is below them.
  const waiting = new Map<string, number>()
  const namesIn = async (fd: number, path: string) => [...(await textsOf(fd, path, signal))].sort()
  const start = cleaned(folder)
  const relativeTo = (path: string): string => (start === "" ? path : path.slice(start.length + 1))
  try {
    for await (const { enter, folder: at, name, state } of walk({
      top,
      state: start,
      names: await namesIn(top, start),
      namesIn,
      signal
    })) {
      const path = state === "" ? name : `${state}/${name}`
      const isIgnored = ignore.isIgnored(path)
      if (isIgnored && !ignore.hasExceptions) continue
      const fd = inRoot.openPlace(inRoot.place(at, name, path))
      await inRoot.orClose(fd, async () => {
        const isFolder = fs.statSync(inRoot.via(fd)).isDirectory()
        if (isIgnored && isFolder) waiting.set(path, native().duplicate(fd))
        if (!isIgnored) {
          for (const [above, waited] of waiting)
            if (path.startsWith(`${above}/`)) {
              await take(reading, waited, above, relativeTo(above))
              native().close(waited)
              waiting.delete(above)
            }
          if (!fs.statSync(inRoot.via(fd)).isSocket()) await take(reading, fd, path, relativeTo(path))
        }
        if (isFolder)
          enter(fd, path, () => {
            const waited = waiting.get(path)
            if (waited !== undefined) native().close(waited)
            waiting.delete(path)
          })
        else native().close(fd)
      })
    }
  } finally {
    for (const waited of waiting.values()) native().close(waited)
  }
}

/** Where the files of a pattern begin that keep their folders, and the pattern from there. */
const pivotOf = (pattern: string): readonly [start: string, rest: string] => {
  const at = pattern.indexOf("/./")
  return at < 0 ? ["", pattern] : [pattern.slice(0, at), pattern.slice(at + 3)]
}

/** The paths that a pattern matches, each with the path where its kept folders begin; undefined if it keeps none. */
const matchesOf = async (
  top: number,
  pattern: string,
  parents: boolean,
  signal: AbortSignal
): Promise<ReadonlyArray<{ readonly found: string; readonly start: string | undefined }>> => {
  if (!parents)
    return (await expand(top, [""], pattern, false, signal)).map((found) => ({ found, start: undefined }))
  const [before, rest] = pivotOf(pattern)
  const matches = []
  for (const start of await expand(top, [""], before, true, signal))
    for (const found of await expand(top, [start], rest, true, signal)) matches.push({ found, start })
  return matches
}

/** Selects the files of patterns below an opened folder, and reads them. Throws `NoMatch`, `SyntaxError`, `Failure`. */
export const select = async (
  top: number,
  { exclude, ignore, parents, patterns }: Wanted,
  options: Pick<Reading, "index" | "withOwners" | "signal">
): Promise<Selection> => {
  const reading: Reading = { ...options, taken: new Map(), files: new Map(), hash: createHash("sha256") }
  const sources: Array<Source> = []
  const { hash, taken } = reading
  for (const pattern of patterns) {
    let isFound = false
    for (const { found, start } of await matchesOf(top, pattern, parents, options.signal)) {
      const path = cleaned(inRoot.realPath(top, found === "" ? "/" : found))
      const isIgnored = path !== "" && (ignore.isIgnored(path) || ignore.isIgnored(found))
      if (isIgnored && !ignore.hasExceptions) continue
      const { name } = inRoot.split(found)
      const relative = start === undefined ? name : cleaned(found.slice(start.length))
      const count = taken.size
      await inRoot.using(inRoot.open(top, path === "" ? "." : path, O_PATH | O_NOFOLLOW), async (fd) => {
        const isFolder = fs.statSync(inRoot.via(fd)).isDirectory()
        const isKept = start !== undefined && relative !== ""
        if (!isFolder && exclude.isIgnored(relative)) {
          isFound ||= !isIgnored
          return
        }
        const names = isKept ? relative.split("/") : []
        const above = (isFolder ? names : names.slice(0, -1)).map((one, k) => ({
          name: one,
          path: cleaned(inRoot.realPath(top, [start, ...names.slice(0, k + 1)].join("/")))
        }))
        hash.update(`${JSON.stringify([name, isKept ? relative : ""])}\n`)
        for (const folder of above)
          await inRoot.using(inRoot.open(top, folder.path, O_PATH | O_NOFOLLOW), (opened) =>
            take(reading, opened, folder.path, folder.name)
          )
        if (isFolder)
          await inRoot.using(inRoot.openHost(inRoot.via(fd), inRoot.O_FOLDER), (folder) =>
            takeBelow(reading, folder, path, {
              // Patterns are from the copied folder, or from where the kept folders begin.
              isIgnored: (at) => {
                const below = at.slice(path === "" ? 0 : path.length + 1)
                return ignore.isIgnored(at) || exclude.isIgnored(isKept ? `${relative}/${below}` : below)
              },
              hasExceptions: ignore.hasExceptions || exclude.hasExceptions
            })
          )
        else if (!isIgnored) await take(reading, fd, path, name)
        if (isIgnored && taken.size === count) return
        isFound = true
        sources.push({ path, name, isFolder, above })
      })
    }
    if (!isFound) throw new NoMatch(pattern)
  }
  return { sources, taken, files: reading.files, digest: hash.digest("hex") }
}

export interface Target {
  /** The opened root. */
  readonly root: number
  /** An absolute path in it; with a slash at the end, a folder. */
  readonly path: string
  /** Whether the path is a folder because several files are copied, or it ends with a slash. */
  readonly isFolder: boolean
  readonly keep: (metadata: Metadata, isFolder: boolean) => Metadata
  /** The owner of folders that are made for the copies, with ids of the host. Default: root of the image. */
  readonly owner: Owner | undefined
  readonly signal: AbortSignal
}

export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** Makes a folder and those above it that are missing. */
export const makeFolders = (root: number, path: string, owner: Owner | undefined): void =>
  makeFolder(root, path, 0o755, true, (made) => {
    if (owner !== undefined)
      inRoot.using(inRoot.open(root, made, inRoot.O_FOLDER), (fd) => chown(fd, owner.uid, owner.gid, made))
  })

const isFolderIn = (root: number, path: string): boolean => {
  const found = existing(root, path)
  return found !== undefined && inRoot.using(found, (fd) => fs.statSync(inRoot.via(fd)).isDirectory())
}

/** Makes the folders that a copy keeps, with the metadata of their sources, and gives the path of the last one. */
const makeKept = (top: number, { above }: Source, { keep, owner, path, root }: Target): string =>
  above.reduce((at, folder) => {
    const next = inRoot.join(at, folder.name)
    const isThere = isFolderIn(root, next)
    makeFolders(root, next, owner)
    if (!isThere)
      inRoot.using(inRoot.open(top, folder.path, O_PATH | O_NOFOLLOW), (source) =>
        inRoot.using(inRoot.open(root, next, inRoot.O_FOLDER), (made) =>
          setMetadata(
            made,
            keep(metadataOf(source, fs.statSync(inRoot.via(source)), folder.path), true),
            next,
            true
          )
        )
      )
    return next
  }, path)

/** Copies a file or folder of a selection. */
export const copy = async (
  top: number,
  { taken }: Selection,
  source: Source,
  target: Target
): Promise<void> => {
  const { isFolder, keep, owner, root, signal } = target
  const how = { keep, signal, gives: true, isTaken: (at: string) => taken.has(cleaned(at)) }
  const path = makeKept(top, source, target)
  if (source.isFolder) {
    makeFolders(root, path, owner)
    return inRoot.using(inRoot.open(top, source.path === "" ? "." : source.path, inRoot.O_FOLDER), (folder) =>
      copyTo({ folder, name: undefined, path: `/${source.path}` }, inside(root), path, how)
    )
  }
  const isInto = isFolder || source.above.length > 0 || isFolderIn(root, path)
  const at = isInto ? inRoot.join(path, source.name) : path
  makeFolders(root, isInto ? path : inRoot.split(at).folder, owner)
  if (isFolderIn(root, at)) return inRoot.fail(inRoot.EISDIR, "open", at)
  const { folder, name } = inRoot.split(`/${source.path}`)
  await inRoot.using(inRoot.open(top, folder, inRoot.O_FOLDER), (opened) =>
    copyTo({ folder: opened, name, path: `/${source.path}` }, inside(root), at, how)
  )
}

/** Copies what is in an opened folder into the target. */
export const copyContents = (folder: number, target: Target): Promise<void> => {
  const { keep, owner, path, root, signal } = target
  makeFolders(root, path, owner)
  const how = { keep, signal, gives: true }
  return copyTo({ folder, name: undefined, path: "/" }, inside(root), path, how)
}

/** Throws `Changed` if a file of a selection is not as it was when its digest was taken. */
export const checkUnchanged = async (
  top: number,
  { taken }: Selection,
  signal: AbortSignal
): Promise<void> => {
  for (const [path, state] of taken) {
    await inRoot.turn(signal)
    const found = inRoot.open(top, path, O_PATH | O_NOFOLLOW)
    if (inRoot.using(found, stateOf) !== state) throw new Changed(path)
  }
}
