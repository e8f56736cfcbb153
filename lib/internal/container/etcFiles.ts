/**
 * What a container is given as /etc/hosts, /etc/hostname and /etc/resolv.conf, whatever its image has: names for its own
 * addresses, and the servers that know all other names.
 */
import { isIP } from "node:net"
import type { RootOptions } from "../../Container.ts"
import type { File } from "../../Mount.ts"
import type * as Plan from "../../Plan.ts"
import type { Joined } from "../network/join.ts"
import { RESOLVER } from "../network/names.ts"
import { hostAddressesAt } from "../network/network.ts"
import { MOUNT_ATTR_RDONLY } from "../util/mountAttributes.ts"
import { read } from "../util/readFile.ts"
import { invalid } from "../util/validate.ts"

/** The files, in the order of `textsOf`. */
export const paths = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] as const

/** Which names a container knows, and which servers it asks for others. */
export interface Names {
  /** Undefined if it is not known: nothing is said of it. */
  readonly hostname: string | undefined
  /** Lines of /etc/hosts before the other ones: the names of loopback, or the host's file. */
  readonly baseHosts: string
  /** Lines of /etc/hosts: an address and its names. The hostname is a name of loopback unless a line has it. */
  readonly hosts: ReadonlyArray<string>
  /** The addresses that stand for the program's machine; none where there is no network. */
  readonly machine: ReadonlyArray<string>
  /** The /etc/resolv.conf that the two below change; empty without a network of the host's. */
  readonly baseResolvConf: string
  /** Addresses of name servers, and domains that are searched; undefined: those of `baseResolvConf`. */
  readonly nameservers: ReadonlyArray<string> | undefined
  readonly search: ReadonlyArray<string> | undefined
}

const loopbackHosts = `127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
`

// The host's files may be of any size, and the kernel takes a path's components of 255 bytes: no name needs as much.
const HOST_FILE_MAX = 256 * 1024

const ofHost = (path: string): string => read(path).replaceAll("\0", "").slice(0, HOST_FILE_MAX)

/** The names of a container that shares the network of another one. */
export const sharing = (other: Names, hostname: string | undefined): Names => ({
  ...other,
  hostname,
  baseHosts: hostsOf(other),
  hosts: []
})

/**
 * A network of the host's has the host's names. Any other one has loopback's, and the server of Berth's networks: it answers from
 * when the container joins the first of them, whether programs have read the file before or not.
 */
export const namesOf = (hostname: string | undefined, usesHostNetwork: boolean): Names => ({
  hostname,
  baseHosts: usesHostNetwork ? ofHost("/etc/hosts") : loopbackHosts,
  hosts: [],
  machine: usesHostNetwork ? ["127.0.0.1"] : [],
  baseResolvConf: usesHostNetwork ? ofHost("/etc/resolv.conf") : "",
  nameservers: usesHostNetwork ? undefined : [RESOLVER],
  search: undefined
})

/** The container's own addresses on networks, and those of the program's machine. */
export const onNetworks = (
  { addresses, station }: Pick<Joined, "addresses" | "station">,
  names: Names
): Names => ({
  ...names,
  hosts: names.hostname === undefined ? [] : addresses.map((address) => `${address}\t${names.hostname}`),
  machine: addresses.length === 0 || station === undefined ? names.machine : hostAddressesAt(station)
})

const lines = (text: string): ReadonlyArray<string> => text.split("\n").filter((line) => line !== "")

const names = (line: string): ReadonlyArray<string> =>
  line
    .replace(/#.*/, "")
    .split(/\s+/)
    .filter((word) => word !== "")
    .slice(1)

const hostsOf = ({ baseHosts, hostname, hosts }: Names): string => {
  const all = [...lines(baseHosts), ...hosts]
  const isNamed = hostname === undefined || all.some((line) => names(line).includes(hostname))
  const short = hostname?.split(".", 1)[0]
  const own = isNamed ? [] : [`127.0.0.1\t${hostname}${short === hostname ? "" : ` ${short}`}`]
  return [...all, ...own].map((line) => `${line}\n`).join("")
}

const resolvConfOf = ({ baseResolvConf, nameservers, search }: Names): string => {
  const kept = lines(baseResolvConf).filter(
    (line) =>
      !(nameservers !== undefined && /^\s*nameserver\b/.test(line)) &&
      !(search !== undefined && /^\s*(search|domain)\b/.test(line))
  )
  const all = [
    ...kept,
    ...(nameservers ?? []).map((address) => `nameserver ${address}`),
    ...(search === undefined || search.length === 0 ? [] : [`search ${search.join(" ")}`])
  ]
  return all.length === 0 ? "# There is no name server.\n" : `${all.join("\n")}\n`
}

/** The texts of the three files. */
export const textsOf = (names: Names): readonly [hosts: string, hostname: string, resolvConf: string] => [
  hostsOf(names),
  names.hostname === undefined ? "" : `${names.hostname}\n`,
  resolvConfOf(names)
]

/** The lines of an entry of `extraHosts`; throws. */
const extraHost = (machine: ReadonlyArray<string>, entry: string, index: number): ReadonlyArray<string> => {
  const [, name = "", address = ""] = /^([^:=\s#]+)[:=](.*)$/.exec(entry) ?? []
  const bare = address.replace(/^\[(.*)\]$/, "$1")
  const refuse = (expected: string) => invalid(`extraHosts[${index}]`, entry, expected)
  if (name === "" || (isIP(bare) === 0 && bare !== "host-gateway"))
    return refuse('a name and an address, as "db:10.0.0.2" or "db:[fd00::2]", or "host-gateway"')
  if (bare !== "host-gateway") return [`${bare}\t${name}`]
  if (machine.length === 0)
    return refuse(
      "an address: host-gateway needs `network`, a network of Network.make on which Network.expose gives ports of this machine"
    )
  return machine.map((one) => `${one}\t${name}`)
}

const server = (address: string, index: number): string =>
  isIP(address) === 0 ? invalid(`dns[${index}]`, address, "the address of a name server") : address

const domain = (name: string, index: number): string =>
  /^[A-Za-z0-9_]([A-Za-z0-9_.-]*)$/.test(name) && name.length <= 253
    ? name
    : invalid(`dnsSearch[${index}]`, name, 'a domain, as "example.com"; [] for none')

type Options = Pick<RootOptions, "etcFiles" | "extraHosts" | "dns" | "dnsSearch">

/** The names with what the options add, undefined if the container keeps the files of its image; throws. */
export const withOptions = (given: Names, options: Options): Names | undefined => {
  const { dns, dnsSearch, etcFiles = true, extraHosts } = options
  if (!etcFiles) {
    const needed = Object.entries({ extraHosts, dns, dnsSearch }).find(([, value]) => value !== undefined)
    if (needed !== undefined) invalid(needed[0], needed[1], "undefined beside etcFiles: false")
    return undefined
  }
  if (extraHosts === undefined && dns === undefined && dnsSearch === undefined) return given
  return {
    ...given,
    hosts: [
      ...given.hosts,
      ...(extraHosts ?? []).flatMap((entry, index) => extraHost(given.machine, entry, index))
    ],
    nameservers: dns?.map(server) ?? given.nameservers,
    search: dnsSearch?.map(domain) ?? given.search
  }
}

/** Whether one of the mounts covers a path. */
export const isCovered = (path: string, targets: ReadonlyArray<string>): boolean =>
  targets.some((target) => path === target || path.startsWith(`${target}/`))

/**
 * Where the files are: in the memory of the container's own /dev, which costs a start less than a file system of their own,
 * and below the mount that covers this folder.
 */
export const folder = "/dev/shm"

/**
 * The operations that mount the files beside the container's own mounts, before `folder` is covered. They are writable unless the root is not. A file
 * that an option changes has to have a place in the root; the other ones are left out where they have none.
 */
export const operations = (
  names: Names | undefined,
  { dns, dnsSearch, extraHosts }: Options,
  targets: ReadonlyArray<string>,
  readOnly: boolean
): ReadonlyArray<Plan.Operation> => {
  if (names === undefined) return []
  const texts = textsOf(names)
  const required = [extraHosts !== undefined, false, (dns ?? dnsSearch) !== undefined]
  const files = paths.map((path, k) => ({ path, text: texts[k]!, required: required[k] ? 1 : 0 }))
  const given = files.filter(({ path, text }) => text !== "" && !isCovered(path, targets))
  return [0, 1].flatMap((group): ReadonlyArray<Plan.Operation> => {
    const these = given.filter((file) => file.required === group)
    if (these.length === 0) return []
    return [
      {
        op: "files",
        folder,
        targets: these.map(({ path }) => path),
        contents: these.map(({ text }) => text),
        attributes: readOnly ? MOUNT_ATTR_RDONLY : 0,
        required: group,
        ...{ uid: 0, gid: 0, mode: 0o644 }
      }
    ]
  })
}

/**
 * The operations for files with a given text among the mounts. Each is written in a folder of its own beside the files of names, as
 * their names may be equal.
 */
export const ofMounts = (files: ReadonlyArray<File>): ReadonlyArray<Plan.Operation> =>
  files.flatMap(({ gid = 0, mode = 0o444, target, text, uid = 0 }, index): ReadonlyArray<Plan.Operation> => {
    const own = `${folder}/${index}`
    const contents = [text as string]
    const attributes = MOUNT_ATTR_RDONLY
    return [
      { op: "directory", path: own, mode: 0o700 },
      { op: "files", folder: own, targets: [target], contents, attributes, required: 1, uid, gid, mode }
    ]
  })
