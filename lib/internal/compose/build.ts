/** `build` of a service: its image is that of a Dockerfile. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Build from "../../Build.ts"
import type { ImageSource } from "../../Fixture.ts"
import { isRepository } from "../util/gitAddress.ts"
import type { ServiceContext } from "./service.ts"
import { fail, type Node, type Place } from "./tree.ts"
import { type Changeable, mapping, only, readKeys, setter, unsupported, type Values } from "./values.ts"

const UNSUPPORTED =
  "cache_from cache_to extra_hosts isolation labels no_cache_filter provenance pull sbom secrets shm_size tags ulimits".split(
    " "
  )

/** A folder, by a path that begins at the folder of the file, or the address of a git repository. */
const readContext = (node: Node, values: Values, folder: string): string => {
  const given = values.text(node)
  if (isRepository(given) && !/^git:/i.test(given)) return given
  if (/^[a-z]+:\/\/|^github\.com\//.test(given))
    unsupported(
      node.at,
      "give the address of a git repository as https://HOST/PATH.git or ssh://USER@HOST/PATH, or a folder"
    )
  return path.resolve(folder, given)
}

/** What a Dockerfile finds by a name: as `Build.dockerfile` takes it, with paths that begin at the folder of the file; or another service. */
const readNamedContext = (
  given: string,
  at: Place,
  { imageOf, mounts }: ServiceContext
): string | Build.Build => {
  const { folder } = mounts
  const [, kind, rest = ""] = /^(service:|target:|oci-layout:\/\/)(.*)/s.exec(given) ?? []
  if (kind === "service:") return Build.from(imageOf(rest, at))
  if (kind === "target:") unsupported(at, "name the service with that target, as service:NAME")
  if (kind !== undefined) return `${kind}${path.resolve(folder, rest)}`
  return isRepository(given) || given.startsWith("docker-image://") ? given : path.resolve(folder, given)
}

/** The sockets of SSH agents: `default`, which is that of the environment, or `ID=PATH`. */
const readAgents = (
  node: Node,
  { lookup, mounts: { folder }, values }: ServiceContext
): Readonly<Record<string, string>> =>
  Object.fromEntries(
    values.pairs(node).map(([id, given, { at }]) => {
      const socket = given ?? lookup("SSH_AUTH_SOCK")
      if (!socket)
        return fail(at, "Variable", "the agent needs SSH_AUTH_SOCK in the environment, or ID=SOCKET")
      const file = path.resolve(folder, socket)
      return fs.statSync(file, { throwIfNoEntry: false })?.isSocket() === true
        ? [id, file]
        : fail(at, "Invalid", `${file} is not the socket of an SSH agent, which alone can be given`)
    })
  )

const RIGHTS = ["network.host", "security.insecure"] as const

/**
 * The effect that builds the image, when the service starts. `tag` is the name that `image` gives it. Steps have the network `none`, as those
 * of `Build`, unless `network` says otherwise.
 */
export const readBuild = (node: Node, context: ServiceContext, tag: string | undefined): ImageSource => {
  const { lookup, mounts, values } = context
  const { folder } = mounts
  const allow = new Set<(typeof RIGHTS)[number]>()
  const options: Changeable<Build.DockerfileOptions> = { context: folder, tag }
  const set = setter<Build.DockerfileOptions>(options)
  const setContext = set("context", (value) => readContext(value, values, folder))
  if (node.kind === "scalar") setContext(node)
  else
    readKeys(
      mapping(node),
      {
        context: setContext,
        dockerfile: set("file", (value) => values.text(value)),
        dockerfile_inline: set("text", (value) => values.text(value)),
        target: set("target", (value) => values.text(value)),
        args: set("args", (value) => {
          const pairs = values.pairs(value).map(([name, given]) => [name, given ?? lookup(name)] as const)
          return Object.fromEntries(pairs.filter((pair): pair is [string, string] => pair[1] !== undefined))
        }),
        additional_contexts: set("contexts", (value) =>
          Object.fromEntries(
            values
              .pairs(value)
              .map(([name, given, { at }]) => [
                name,
                given === undefined
                  ? fail(at, "Invalid", `expected NAME=PLACE`)
                  : readNamedContext(given, at, context)
              ])
          )
        ),
        platforms: set("platform", (value) => {
          const [platform, second] = values.texts(value)
          return second === undefined ? platform : only(value.at, "one platform")
        }),
        network: set("network", (value) => values.choice(value, ["none", "host"] as const)),
        no_cache: set("cache", (value) => !values.boolean(value)),
        ssh: set("ssh", (value) => readAgents(value, context)),
        entitlements: (value) => {
          for (const item of values.list(value)) allow.add(values.choice(item, RIGHTS))
        },
        privileged: (value) => {
          if (values.boolean(value)) allow.add("security.insecure")
        }
      },
      UNSUPPORTED
    )
  if (options.text !== undefined && options.file !== undefined)
    fail(node.at, "Invalid", "dockerfile and dockerfile_inline exclude each other")
  options.allow = [...allow]
  return Build.dockerfile(options)
}
