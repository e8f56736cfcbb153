/** The numbers and the table of operations in the headers of the native part, to be compared with those of lib. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { makeTemporaryFolder, remove } from "./effect.ts"
import { root } from "./program.ts"

const readNative = (header: string): string => fs.readFileSync(`${root}native/${header}`, "utf8")

/** All names in a header of `native/` that match, in their order. */
export const namesIn = (header: string, pattern: RegExp): ReadonlyArray<string> => [
  ...new Set(readNative(header).match(pattern))
]

/** The values that the C compiler gives to names. `headers` are those of the system, or paths in `native/`. */
export const valuesOf = (
  headers: ReadonlyArray<string>,
  names: ReadonlyArray<string>
): Readonly<Record<string, number>> => {
  const folder = makeTemporaryFolder()
  const source = [
    ...["stdio.h", ...headers].map((header) => `#include <${header}>`),
    "int main(void) {",
    ...names.map((name) => `    printf("%s %lld\\n", "${name}", (long long)(${name}));`),
    "}"
  ]
  try {
    fs.writeFileSync(`${folder}/values.c`, source.join("\n"))
    const args = ["-D_GNU_SOURCE", `-I${root}native`, "-o", `${folder}/values`, `${folder}/values.c`]
    execFileSync(process.env.CC ?? "cc", args)
    const lines = execFileSync(`${folder}/values`, { encoding: "utf8" }).trim().split("\n")
    return Object.fromEntries(
      lines.map((line) => line.split(" ")).map(([name, value]) => [name, Number(value)])
    )
  } finally {
    remove(folder)
  }
}

/** The operations of plan.h. A name has "-" where C has "_". */
export const declaredOperations = [
  ...readNative("supervisor/plan.h").matchAll(/^ {4}X\((\w+), (\w+), (\w+), "(\w*)"((?:, \w+)*)\)/gm)
].map(([, code, name, phase, types, fields]) => ({
  code: code!,
  name: name!.replaceAll("_", "-"),
  phase: phase!,
  types: types!,
  fields: fields!.split(", ").slice(1)
}))
