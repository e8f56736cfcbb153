/** A compose file as the options of `Fixture.group`. */
import * as fs from "node:fs"
import * as path from "node:path"
import { ComposeError } from "../../BerthError.ts"
import type { Options, Project, Text } from "../../Compose.ts"
import type { ImageSource } from "../../Fixture.ts"
import type { NetworkOptions } from "../../Network.ts"
import type * as Volume from "../../Volume.ts"
import { circleOf, DEFAULT } from "../fixtures/group.ts"
import { nearest } from "../util/didYouMean.ts"
import { parseDotenv, parseRaw, Unreadable } from "./dotenv.ts"
import type { Lookup } from "./interpolate.ts"
import { always, type ReadService, readImage, readService, type ServiceContext } from "./service.ts"
import { fail, type MapNode, type Node, type Place, parse } from "./tree.ts"
import { get, isNull, mapping, only, readKeys, unsupported, Values } from "./values.ts"

const BYTES_MAX = 256 * 1024
const PROJECT_NAME = "COMPOSE_PROJECT_NAME"

/** The text of a file, which has to be a regular one; undefined if there is none. Throws. */
const readFile = (file: string, at: Place): string | undefined => {
  const refused = (detail: string, cause?: unknown): never => fail(at, "File", `${file} ${detail}`, cause)
  let descriptor: number
  try {
    // Without waiting for the writer of a fifo.
    descriptor = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    return code === "ENOENT" || code === "ENOTDIR" ? undefined : refused(`cannot be read: ${code}`, cause)
  }
  try {
    const status = fs.fstatSync(descriptor)
    if (!status.isFile()) return refused("is no regular file")
    if (status.size > BYTES_MAX) return refused(`is ${status.size} bytes; the limit is ${BYTES_MAX}`)
    return fs.readFileSync(descriptor, "utf8")
  } finally {
    fs.closeSync(descriptor)
  }
}

const readVariables = (
  file: string,
  text: string,
  lookup: Lookup,
  at: Place,
  parseText: typeof parseDotenv
): ReadonlyMap<string, string> => {
  try {
    return parseText(text, lookup)
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error
    throw new ComposeError({
      reason: "Invalid",
      file,
      line: error.line,
      column: 1,
      path: "",
      detail: `${error.message} (needed by ${at.file}:${at.line})`
    })
  }
}

/** A folder's name as the name of a project. */
const nameOf = (folder: string): string =>
  path
    .basename(folder)
    .toLowerCase()
    .replace(/[^a-z0-9_-]/g, "")
    .replace(/^[^a-z0-9]+/, "") || "default"

const checkName = (name: string, at: Place): string =>
  /^[a-z0-9][a-z0-9_-]{0,62}$/.test(name)
    ? name
    : fail(
        at,
        "Invalid",
        `expected a name of lower case letters, digits, - and _, at most 63, found ${JSON.stringify(name)}`
      )

const readNetwork = (given: Node, values: Values): NetworkOptions => {
  const options: { -readonly [Key in keyof NetworkOptions]: NetworkOptions[Key] } = { outbound: "proxy" }
  if (isNull(given)) return options
  readKeys(
    mapping(given),
    {
      name: (value) => {
        options.name = values.text(value)
      },
      driver: (value) => {
        if (!["bridge", "default"].includes(values.text(value))) only(value.at, "bridge")
      },
      internal: (value) => {
        if (values.boolean(value)) options.outbound = "none"
      },
      enable_ipv4: (value) => {
        if (!values.boolean(value)) unsupported(value.at, "each network has IPv4")
      },
      enable_ipv6: (value) => {
        options.ipv6 = values.boolean(value)
      },
      ipam: (value) =>
        readKeys(
          mapping(value),
          {
            driver: (driver) => void values.choice(driver, ["default"]),
            config: (list) => {
              const [one, ...more] = values.list(list)
              if (more.length > 0) unsupported(more[0]!.at, "a network has one range")
              if (one !== undefined)
                readKeys(
                  mapping(one),
                  {
                    subnet: (subnet) => {
                      options.range = values.text(subnet)
                      if (!/^\d+\.\d+\.0\.0\/16$/.test(options.range))
                        only(subnet.at, "a range of 16 bits, such as 10.5.0.0/16,")
                    }
                  },
                  ["aux_addresses", "gateway", "ip_range"]
                )
            }
          },
          ["options"]
        ),
      labels: (value) => void values.pairs(value)
    },
    { attachable: undefined, driver_opts: undefined, external: "a network ends with its group" }
  )
  return options
}

const readVolume = (given: Node, values: Values, name: string): Volume.Options => {
  const options = { name }
  if (isNull(given)) return options
  readKeys(
    mapping(given),
    {
      name: (value) => {
        options.name = values.text(value)
      },
      driver: (value) => {
        if (!["local", "default"].includes(values.text(value))) only(value.at, "local")
      },
      labels: (value) => void values.pairs(value)
    },
    { driver_opts: undefined, external: "name the volume of Volume.make with the key name" }
  )
  return options
}

const entriesOf = (root: MapNode, key: string): ReadonlyMap<string, Node> => {
  const node = get(root, key)
  return node === undefined ? new Map() : mapping(node).entries
}

const orDidYouMean = (name: string, names: Iterable<string>): string => {
  const all = [...names]
  return all.length === 0 ? "" : `; did you mean ${nearest(name, all)}?`
}

/** The text of a project, and where it is from. Throws. */
const open = (
  source: string | Text
): { readonly text: string; readonly file: string; readonly folder: string } => {
  if (typeof source !== "string")
    return { text: source.text, file: "compose.yaml", folder: path.resolve(source.folder ?? ".") }
  const file = path.resolve(source)
  const at: Place = { file: source, line: 1, column: 1, path: "" }
  const text = readFile(file, at) ?? fail(at, "File", "there is no such file")
  return { text, file: source, folder: path.dirname(file) }
}

const services = (root: MapNode): ReadonlyMap<string, Node> => {
  const entries = entriesOf(root, "services")
  return entries.size > 0 ? entries : fail(root.at, "Invalid", "a compose file has to have services")
}

/** The services whose profiles are active. */
const active = (
  all: ReadonlyMap<string, Node>,
  values: Values,
  profiles: ReadonlyArray<string>
): ReadonlyMap<string, MapNode> => {
  const found = new Map<string, MapNode>()
  for (const [name, value] of all) {
    const node = mapping(value)
    const own = get(node, "profiles")
    const isActive =
      own === undefined || values.texts(own).some((one) => profiles.includes(one) || profiles.includes("*"))
    if (isActive) found.set(name, node)
  }
  return found
}

const checkCircle = (read: ReadonlyMap<string, ReadService>): void => {
  const circle = circleOf(Object.fromEntries([...read].map(([name, { service }]) => [name, service])))
  if (circle !== undefined)
    fail(
      read.get(circle[0]!)!.dependencies.get(circle[1]!)!.at,
      "Invalid",
      `services wait for each other in a circle: ${circle.join(" -> ")}`
    )
}

/** What the variables of a project are, and its name, which is one of them. */
const environmentOf = (root: MapNode, folder: string, options: Options) => {
  const environment = options.env ?? process.env
  const given: Lookup = (key) => (Object.hasOwn(environment, key) ? environment[key] : undefined)
  const file = path.join(folder, ".env")
  const text = readFile(file, root.at)
  const defaults = text === undefined ? undefined : readVariables(file, text, given, root.at, parseDotenv)
  const lookup: Lookup = (key) => given(key) ?? defaults?.get(key)
  const node = get(root, "name")
  const asked = options.name ?? lookup(PROJECT_NAME) ?? (node && new Values(lookup).text(node))
  const name = checkName(asked ?? nameOf(folder), node?.at ?? root.at)
  return { name, lookup: (key: string) => (key === PROJECT_NAME ? name : lookup(key)) }
}

/** The networks and volumes that a file declares; those that its services use are there. */
class Declared<A> {
  readonly used = new Map<string, A>()
  private readonly what: string
  private readonly all: ReadonlyMap<string, Node>
  private readonly read: (node: Node, key: string) => A

  constructor(what: string, all: ReadonlyMap<string, Node>, read: (node: Node, key: string) => A) {
    this.what = what
    this.all = all
    this.read = read
    // Also what nobody uses has to be right.
    for (const [key, node] of all) read(node, key)
  }

  /** Throws for one that is not declared, unless there is a default. */
  use(key: string, at: Place, standard?: A, hint = ""): void {
    const node = this.all.get(key)
    if (node !== undefined) this.used.set(key, this.read(node, key))
    else if (standard !== undefined) this.used.set(key, standard)
    else
      fail(
        at,
        "Invalid",
        `the file declares no ${this.what} ${JSON.stringify(key)}${orDidYouMean(key, this.all.keys())}${hint}`
      )
  }
}

/** A service that another one waits for to complete has to have an end. */
const checkEnds = (read: ReadonlyMap<string, ReadService>): void => {
  for (const { dependencies, service } of read.values())
    for (const [name, node] of dependencies)
      if (service.dependsOn?.[name] === "completed" && read.get(name)?.service.restart === always)
        fail(
          node.at,
          "Invalid",
          `the service ${name} never completes, because it is always started again: use restart: on-failure`
        )
}

/** See `Compose.read`. `warn` is told of variables without a value. Throws. */
export const read = (source: string | Text, options: Options, warn: (message: string) => void): Project => {
  const { file, folder, text } = open(source)
  if (text.length > BYTES_MAX)
    fail(
      { file, line: 1, column: 1, path: "" },
      "File",
      `it is ${text.length} characters; the limit is ${BYTES_MAX}`
    )
  const root = mapping(parse(text, file))
  const { lookup, name } = environmentOf(root, folder, options)
  const missing = new Set<string>()
  const values = new Values(lookup, (key) => missing.add(key))
  const ignore = (): void => {}
  readKeys(
    root,
    { name: ignore, version: ignore, services: ignore, networks: ignore, volumes: ignore },
    {
      configs: "mount a file",
      secrets: "mount a file",
      include: "write the services into one file",
      models: undefined
    }
  )
  const networks = new Declared("network", entriesOf(root, "networks"), (node) => readNetwork(node, values))
  const volumes = new Declared<Volume.Options>("volume", entriesOf(root, "volumes"), (node, key) =>
    readVolume(node, values, `${name}_${key}`)
  )
  const useNetwork = (key: string, at: Place) =>
    networks.use(key, at, key === DEFAULT ? { outbound: "proxy" } : undefined)
  const all = services(root)
  const enabled = active(all, values, options.profiles ?? [])
  if (enabled.size === 0)
    fail(root.at, "Invalid", "no service has one of the active profiles: name one in the option profiles")

  const nodeOfOther = (service: string, other: string, at: Place): MapNode => {
    const others = [...all.keys()].filter((one) => one !== service)
    return others.includes(other)
      ? mapping(all.get(other)!)
      : fail(
          at,
          "Invalid",
          `the file has no other service ${JSON.stringify(other)}${orDidYouMean(other, others)}`
        )
  }

  const images = new Map<string, ImageSource>()
  /** `needs` are the services whose images need that of this one. */
  const contextOf = (service: string, needs: ReadonlyArray<string> = []): ServiceContext => ({
    values,
    lookup,
    mounts: {
      values,
      folder,
      useVolume: (key, at) => volumes.use(key, at, undefined, ". A path has to begin with . or /"),
      anonymous: (target) => {
        const key = `${service}:${target}`
        volumes.used.set(key, {})
        return key
      }
    },
    envFile: (node, isRequired, isRaw) => {
      const needed = path.resolve(folder, values.text(node))
      const content = readFile(needed, node.at)
      if (content !== undefined)
        return readVariables(needed, content, lookup, node.at, isRaw ? parseRaw : parseDotenv)
      return isRequired ? fail(node.at, "File", `there is no file ${needed}`) : new Map()
    },
    useNetwork,
    hasService: (other, at) => {
      nodeOfOther(service, other, at)
      return enabled.has(other)
    },
    imageOf: (other, at) => {
      const node = nodeOfOther(service, other, at)
      const path = [...needs, service]
      if (path.includes(other)) {
        const circle = [...path.slice(path.indexOf(other)), other]
        fail(at, "Invalid", `images need each other in a circle: ${circle.join(" -> ")}`)
      }
      const image = images.get(other) ?? readImage(node, contextOf(other, path))
      images.set(other, image)
      return image
    }
  })
  const read = new Map([...enabled].map(([key, node]) => [key, readService(key, node, contextOf(key))]))
  checkCircle(read)
  checkEnds(read)
  for (const { service } of read.values())
    if (Object.hasOwn(service.networks ?? { [DEFAULT]: {} }, DEFAULT)) useNetwork(DEFAULT, root.at)
  for (const key of missing) warn(`${file}: the variable ${key} has no value, and stands for an empty text`)
  return {
    name,
    services: Object.fromEntries([...read].map(([key, { service }]) => [key, service])),
    networks: Object.fromEntries(networks.used),
    volumes: Object.fromEntries(volumes.used)
  }
}
