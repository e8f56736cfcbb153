/** The checkout as a disk of the machine: the disk is a tar, which the machine reads directly. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { bundle } from "../bundle.ts"
import { compile } from "../support/attack.ts"
import type { Processor } from "./image.ts"

export const checkout: string = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "")

const compilers: Readonly<Record<Processor, string>> = {
  x64: "x86_64-linux-gnu-gcc",
  arm64: "aarch64-linux-gnu-gcc"
}

/** Programs that call the kernel as only one processor does. */
const ofOne: Readonly<Record<string, Processor>> = { "abi.c": "x64", "machine.c": "arm64" }

/** Whether a file is a program that is started in the machine. */
const isProgram = (file: string): boolean =>
  /^test\/[^/]+\/[^/]+\.test\.ts$|^test\/support\/[^/]+\.ts$/.test(file) || file === "bench/index.ts"

/**
 * Packs the files that git tracks or would track, the native part for the processor, the bundled and compiled programs, and these
 * files on top. `folder` is for intermediate files.
 */
export const pack = async (
  processor: Processor,
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
  const isSource = (file: string): boolean =>
    /^test\/support\/[^/]+\.c$/.test(file) && (ofOne[path.basename(file)] ?? processor) === processor
  for (const source of files.filter(isSource))
    compile(`${out}/${source.replace(/\.c$/, "")}`, path.basename(source), compilers[processor])
  for (const [name, content] of Object.entries(extra)) fs.writeFileSync(`${out}/${name}`, content)
  // Later entries of a tar replace earlier ones.
  const owner = ["--owner=0", "--group=0", "--mode=u=rwX,go=rX"]
  execFileSync("tar", [...owner, "-cf", tar, "-C", checkout, "--null", "--no-recursion", "-T", "-"], {
    input: files.join("\0")
  })
  const packaged = `linux-${processor}-gnu`
  const native =
    processor === process.arch
      ? ["-C", checkout, "native/build"]
      : [`--transform=s,^${packaged},native/build,`, "-C", `${checkout}/packages`, packaged]
  execFileSync("tar", [...owner, "-rf", tar, ...native, "-C", out, "."])
}
