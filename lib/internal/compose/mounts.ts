/** The volumes and tmpfs of a service. */
import * as os from "node:os"
import * as path from "node:path"
import type { ServiceMount } from "../../Fixture.ts"
import { fail, type Node, type Place } from "./tree.ts"
import { get, mapping, only, readKeys, unsupported, type Values } from "./values.ts"

/** What a mount of a service refers to. */
export interface MountContext {
  readonly values: Values
  /** The folder that relative paths begin at. */
  readonly folder: string
  /** Says that a volume of the file is used; throws if it is not declared. */
  readonly useVolume: (name: string, at: Place) => void
  /** The name of a volume without a name, for a target. */
  readonly anonymous: (target: string) => string
}

/** Options that say what holds in any case: nothing is relabelled without SELinux, nothing is copied, there is no cache. */
const WITHOUT_EFFECT = ["rw", "z", "Z", "nocopy", "cached", "delegated", "consistent"]

const isPath = (source: string): boolean => /^[./~]/.test(source)

const hostPath = (source: string, folder: string): string =>
  source === "~" || source.startsWith("~/")
    ? path.join(os.homedir(), source.slice(1))
    : path.resolve(folder, source)

const checkTarget = (node: Node, target: string): string =>
  target.startsWith("/")
    ? target
    : fail(node.at, "Invalid", `expected an absolute path in the container, found ${JSON.stringify(target)}`)

const ofVolume = (
  { anonymous, useVolume }: MountContext,
  at: Place,
  source: string | undefined,
  target: string,
  readOnly: boolean
): ServiceMount => {
  const volume = source ?? anonymous(target)
  if (source !== undefined) useVolume(source, at)
  return { type: "volume", volume, target, ...(readOnly ? { readOnly } : {}) }
}

const ofBind = (source: string, target: string, readOnly: boolean): ServiceMount => ({
  type: "bind",
  source,
  target,
  ...(readOnly ? { readOnly } : {})
})

/** `[SOURCE:]TARGET[:OPTIONS]` */
const shortMount = (node: Node, context: MountContext): ServiceMount => {
  const text = context.values.text(node)
  const parts = text.split(":")
  if (parts.length > 3 || parts.includes(""))
    return fail(node.at, "Invalid", `expected [SOURCE:]TARGET[:OPTIONS], found ${JSON.stringify(text)}`)
  const [source, target, options = ""] =
    parts.length === 1 ? [undefined, parts[0]!] : (parts as [string, string, string?])
  checkTarget(node, target)
  const modes = options.split(",").filter((mode) => mode !== "")
  const readOnly = modes.includes("ro")
  for (const mode of modes)
    if (mode !== "ro" && !WITHOUT_EFFECT.includes(mode))
      unsupported(node.at, `remove the option ${JSON.stringify(mode)}`)
  return source !== undefined && isPath(source)
    ? ofBind(hostPath(source, context.folder), target, readOnly)
    : ofVolume(context, node.at, source, target, readOnly)
}

const longMount = (given: Node, context: MountContext): ServiceMount => {
  const node = mapping(given)
  const { values } = context
  const typeNode =
    get(node, "type") ?? fail(node.at, "Invalid", "a mount has to have a type: volume, bind or tmpfs")
  const type = values.text(typeNode)
  if (type !== "volume" && type !== "bind" && type !== "tmpfs")
    only(typeNode.at, "a mount of type volume, bind or tmpfs")
  const targetNode = get(node, "target") ?? fail(node.at, "Invalid", "a mount has to have a target")
  const target = checkTarget(targetNode, values.text(targetNode))
  let source: string | undefined
  let readOnly = false
  let size: number | undefined
  let mode: number | undefined
  /** Options of one type of mount. */
  const of =
    (own: string, readers: Readonly<Record<string, (value: Node) => void>>, others: ReadonlyArray<string>) =>
    (value: Node): void => {
      if (type !== own) fail(value.at, "Invalid", `it is for mounts of type ${own}`)
      readKeys(mapping(value), readers, others)
    }
  const flag = (is: boolean, hint: string) => (value: Node) => {
    if (values.boolean(value) !== is) unsupported(value.at, hint)
  }
  readKeys(
    node,
    {
      type: () => {},
      target: () => {},
      source: (value) => {
        source = values.text(value)
        if (type === "tmpfs") fail(value.at, "Invalid", "a tmpfs has no source")
      },
      read_only: (value) => {
        readOnly = values.boolean(value)
        if (readOnly && type === "tmpfs") unsupported(value.at)
      },
      consistency: (value) => void values.text(value),
      volume: of("volume", { nocopy: (value) => void values.boolean(value) }, ["subpath", "labels"]),
      bind: of(
        "bind",
        {
          create_host_path: flag(false, "Berth makes no folder of the host"),
          propagation: (value) => {
            if (values.text(value) !== "rprivate") only(value.at, "rprivate")
          },
          selinux: (value) => void values.choice(value, ["z", "Z"])
        },
        ["recursive"]
      ),
      tmpfs: of(
        "tmpfs",
        {
          size: (value) => {
            size = values.bytes(value)
          },
          mode: (value) => {
            mode = octal(value, values.word(value))
          }
        },
        []
      )
    },
    ["image", "cluster"]
  )
  if (type === "tmpfs") return tmpfsOf(target, size, mode)
  if (type === "volume") return ofVolume(context, node.at, source, target, readOnly)
  if (source === undefined) return fail(node.at, "Invalid", "a bind has to have a source")
  return ofBind(hostPath(source, context.folder), target, readOnly)
}

const octal = (node: Node, text: string): number =>
  /^(0o?)?[0-7]{1,4}$/.test(text)
    ? Number.parseInt(text.replace(/^0o?/, "") || "0", 8)
    : fail(node.at, "Invalid", `expected an octal mode such as 1777, found ${JSON.stringify(text)}`)

const tmpfsOf = (target: string, size: number | undefined, mode: number | undefined): ServiceMount => ({
  type: "tmpfs",
  target,
  ...(size === undefined ? {} : { size }),
  ...(mode === undefined ? {} : { mode })
})

/** `TARGET[:OPTIONS]` of the key `tmpfs`. */
const shortTmpfs = (node: Node, { values }: MountContext): ServiceMount => {
  const [target = "", options = "", ...rest] = values.text(node).split(":")
  if (rest.length > 0) fail(node.at, "Invalid", "expected TARGET[:OPTIONS]")
  let size: number | undefined
  let mode: number | undefined
  for (const option of options.split(",").filter((one) => one !== "")) {
    const [name = "", value = ""] = option.split("=")
    if (name === "size") size = values.bytes({ ...node, kind: "scalar", value, source: value })
    else if (name === "mode") mode = octal(node, value)
    else if (!["rw", "noexec", "nosuid", "nodev"].includes(option))
      unsupported(node.at, `remove the option ${JSON.stringify(option)}`)
  }
  return tmpfsOf(checkTarget(node, target), size, mode)
}

export const readMounts = (node: Node, context: MountContext): ReadonlyArray<ServiceMount> =>
  context.values
    .list(node)
    .map((item) => (item.kind === "map" ? longMount(item, context) : shortMount(item, context)))

export const readTmpfs = (node: Node, context: MountContext): ReadonlyArray<ServiceMount> =>
  context.values.oneOrMore(node).map((item) => shortTmpfs(item, context))
