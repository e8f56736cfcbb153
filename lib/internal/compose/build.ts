/** `build` of a service: its image is that of a Dockerfile. */
import * as path from "node:path"
import * as Build from "../../Build.ts"
import type { ImageSource } from "../../Fixture.ts"
import { fail, type Node } from "./tree.ts"
import { mapping, only, readKeys, unsupported, type Values } from "./values.ts"

const UNSUPPORTED =
  "cache_from cache_to entitlements extra_hosts isolation labels no_cache_filter privileged provenance pull sbom secrets shm_size ssh tags ulimits".split(
    " "
  )

type Changeable<A> = { -readonly [Key in keyof A]: A[Key] }

/** A folder, by a path that begins at the folder of the file. */
const readFolder = (node: Node, values: Values, folder: string): string => {
  const given = values.text(node)
  if (/^[a-z]+:\/\/|^git@|^github\.com\//.test(given))
    unsupported(node.at, "clone the repository, and name its folder")
  return path.resolve(folder, given)
}

/**
 * The effect that builds the image, when the service starts. `tag` is the name that `image` gives it. Steps have the network `none`, as those
 * of `Build`, unless `network` says otherwise.
 */
export const readBuild = (
  node: Node,
  {
    folder,
    lookup,
    values
  }: {
    readonly folder: string
    readonly values: Values
    readonly lookup: (name: string) => string | undefined
  },
  tag: string | undefined
): ImageSource => {
  const options: Changeable<Build.DockerfileOptions> = { context: folder, tag }
  if (node.kind === "scalar") options.context = readFolder(node, values, folder)
  else
    readKeys(
      mapping(node),
      {
        context: (value) => {
          options.context = readFolder(value, values, folder)
        },
        dockerfile: (value) => {
          options.file = values.text(value)
        },
        dockerfile_inline: (value) => {
          options.text = values.text(value)
        },
        target: (value) => {
          options.target = values.text(value)
        },
        args: (value) => {
          const pairs = values.pairs(value).map(([name, given]) => [name, given ?? lookup(name)] as const)
          options.args = Object.fromEntries(
            pairs.filter((pair): pair is [string, string] => pair[1] !== undefined)
          )
        },
        additional_contexts: (value) => {
          const pairs = values.pairs(value)
          options.contexts = Object.fromEntries(
            pairs.map(([name, given, at]) =>
              given === undefined || /^(docker-image|oci-layout|service|target):/.test(given)
                ? only(at.at, "a folder")
                : [name, path.resolve(folder, given)]
            )
          )
        },
        platforms: (value) => {
          const [platform, second] = values.texts(value)
          if (second !== undefined) only(value.at, "one platform")
          options.platform = platform
        },
        network: (value) => {
          options.network = values.choice(value, ["none", "host"] as const)
        },
        no_cache: (value) => {
          options.cache = !values.boolean(value)
        }
      },
      UNSUPPORTED
    )
  if (options.text !== undefined && options.file !== undefined)
    fail(node.at, "Invalid", "dockerfile and dockerfile_inline exclude each other")
  return Build.dockerfile(options)
}
