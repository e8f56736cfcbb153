/** Images with C programs that try what a container must not be able to do. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import { Berth, Image } from "../../lib/index.ts"
import { makeRoot } from "./rootfs.ts"

/** The compiled program of a source, which test/vm/checkout.ts puts into the virtual machine, as that has no compiler. */
const compiledBefore = (source: string): string => source.replace(/\.c$/, "")

/** Compiles a program of this folder to `path`: statically, because the images have no libraries. */
export const compile = (path: string, name = "attack.c", cc = process.env.CC ?? "cc"): void => {
  const source = fileURLToPath(new URL(name, import.meta.url))
  // The path may be a link to busybox.
  fs.rmSync(path, { force: true })
  if (fs.existsSync(compiledBefore(source))) return fs.copyFileSync(compiledBefore(source), path)
  execFileSync(cc, ["-O1", "-std=gnu17", "-D_GNU_SOURCE", "-static", "-o", path, source])
}

const imageWith = (name: string) =>
  Effect.flatMap(Berth.Berth, ({ folder }) => {
    const root = `${folder}/${name}`
    if (!fs.existsSync(root)) {
      makeRoot(root)
      compile(`${root}/bin/${name}`, `${name}.c`)
    }
    return Image.fromRootfs(root)
  })

/** An image of busybox and the program `attack`, which is made once in each Berth's folder. */
export const attackImage = imageWith("attack")

/** The same with `plant`, which makes files that harm their readers. */
export const plantImage = imageWith("plant")

/** The same with `joining`, which attacks processes that join its pid namespace. */
export const joiningImage = imageWith("joining")

/** The same with `echo`, a server. */
export const echoImage = imageWith("echo")

/** The same with `spoof`, which sends with the address of another. */
export const spoofImage = imageWith("spoof")

/** The outcome of each word of a program, from its output. */
export const outcomes = (stdout: string): Readonly<Record<string, string>> =>
  Object.fromEntries(
    stdout
      .trim()
      .split(/\r?\n/)
      .map((line) => /^(killed by \d+: )?(\S+) (.*)$/.exec(line))
      .map((match) => [match?.[2] ?? "", `${match?.[1] ?? ""}${match?.[3]}`])
  )
