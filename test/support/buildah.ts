/** Images that buildah builds, with their configurations and files, in a store of their own. */
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { whyNotRoot } from "./effect.ts"

/** Why nothing can be compared with buildah here, or false. */
export const whyNoBuildah: string | false =
  whyNotRoot ||
  (spawnSync("buildah", ["--version"]).status === 0 ? false : "no buildah: apt-get install buildah")

/** A line for each file of the working directory, with its path, type, mode, owner and target, and then the digests of contents. */
const list = `{
  find . -mindepth 1 ! -type f -printf '%P %y %m %U:%G %l\\n'
  find . -type f -printf '%P %y %m %U:%G\\n'
}
echo
find . -type f -exec sha256sum {} +`

export type Listing = ReadonlyMap<string, string>

const listingOf = (text: string): Listing => {
  const [files = "", digests = ""] = text.split("\n\n")
  const digestOf = new Map(
    [...digests.matchAll(/^(\w{16})\w{48} {2}\.\/(.*)$/gm)].map(([, digest, path]) => [path!, digest!])
  )
  return new Map(
    [...files.matchAll(/^(.*?) ([a-z] \d+ \d+:\d+)(.*)$/gm)].map(([, path, state, target]) => [
      path!,
      `${state}${target!.trimEnd()} ${digestOf.get(path!) ?? ""}`.trimEnd()
    ])
  )
}

const outputOf = (command: string, args: ReadonlyArray<string>, cwd?: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, stdio: ["ignore", "pipe", "pipe"] })
    let [output, error] = ["", ""]
    child.stdout.on("data", (data: Buffer) => (output += data))
    child.stderr.on("data", (data: Buffer) => (error += data))
    child.on("error", reject)
    child.on("close", (code) =>
      code === 0 ? resolve(output) : reject(new Error(`${command} ended with ${code}: ${error}${output}`))
    )
  })

/** The files below a folder. */
export const listing = async (folder: string): Promise<Listing> =>
  listingOf(await outputOf("sh", ["-c", list], folder))

export interface Built {
  readonly config: Readonly<Record<string, unknown>>
  readonly tree: Listing
}

export interface Buildah {
  /** Makes the image `base` of the files in a folder. */
  readonly base: (folder: string) => Promise<void>
  readonly build: (name: string, options: ReadonlyArray<string>, context: string) => Promise<Built>
}

/** What buildah mounts ends with the mount namespace of each call. */
const inNamespace = (script: string, args: ReadonlyArray<string>): Promise<string> =>
  outputOf("unshare", ["--mount", "sh", "-ec", script, "sh", ...args])

export const buildahIn = (folder: string): Buildah => {
  const own = `buildah --root ${folder}/root --runroot ${folder}/run --storage-driver overlay`
  const build = `${own} build --isolation chroot --pull-never --format docker --layers=false --quiet`
  return {
    base: async (root) => {
      fs.mkdirSync(folder, { recursive: true })
      fs.writeFileSync(`${folder}/base`, "FROM scratch\nCOPY . /\n")
      await inNamespace(`${build} --tag base --file "$1" "$2" > /dev/null`, [`${folder}/base`, root])
    },
    build: async (name, options, context) => {
      const script = `name=$1 context=$2 files=$3
shift 3
${build} --tag "$name" --output "type=local,dest=$files" "$@" "$context" > /dev/null
${own} inspect --type image --format '{{.Config}}' "$name"
echo
cd "$files"
${list}`
      const output = await inNamespace(script, [name, context, `${folder}/${name}`, ...options])
      const end = output.indexOf("\n")
      const { author, config } = JSON.parse(output.slice(0, end)) as {
        readonly author?: string
        readonly config: Built["config"]
      }
      return { config: { ...config, Author: author }, tree: listingOf(output.slice(end + 1)) }
    }
  }
}
