/** The checkout as a disk of the machine: the disk is a tar, which the machine reads directly. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { bundle } from "../bundle.ts"
import { compile } from "../support/attack.ts"

export const checkout: string = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "")

/** Whether a file is a program that is started in the machine. */
const isProgram = (file: string): boolean =>
  /^test\/[^/]+\/[^/]+\.test\.ts$|^test\/support\/[^/]+\.ts$/.test(file) || file === "bench/index.ts"

/**
 * Packs the files that git tracks or would track, the native build, the bundled and compiled programs, and these files on top.
 * `folder` is for intermediate files.
 */
export const pack = async (
  tar: string,
  folder: string,
  extra: Readonly<Record<string, string>>
): Promise<void> => {
  const listed = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
    cwd: checkout,
    encoding: "utf8",
    maxBuffer: 2 ** 26
  })
  const files = listed.split("\0").filter((file) => file !== "" && fs.existsSync(`${checkout}/${file}`))
  const out = `${folder}/out`
  await bundle(checkout, files.filter(isProgram), "/berth", out)
  for (const source of files.filter((file) => /^test\/support\/[^/]+\.c$/.test(file)))
    compile(`${out}/${source.replace(/\.c$/, "")}`, path.basename(source))
  for (const [name, content] of Object.entries(extra)) fs.writeFileSync(`${out}/${name}`, content)
  // Later entries of a tar replace earlier ones.
  const owner = ["--owner=0", "--group=0", "--mode=u=rwX,go=rX"]
  execFileSync("tar", [...owner, "-cf", tar, "-C", checkout, "--null", "--no-recursion", "-T", "-"], {
    input: files.join("\0")
  })
  execFileSync("tar", [...owner, "-rf", tar, "-C", checkout, "native/build", "-C", out, "."])
}
