/** Two rules of style that the linter does not check. */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import { test } from "node:test"
import { root } from "../support/program.ts"

const rules: ReadonlyArray<readonly [expected: string, wrong: RegExp]> = [
  [
    "an early return without braces",
    /^( *)(?:.* )?if \(.*\{\n\1 {2}return\b.*\n(?:\1 {3}.*\n|\1 {2}\W.*\n)*\1\}$/gm
  ],
  [
    "a numeric constant in SCREAMING_CASE",
    /^(?:export )?const [a-z]\w*(?:: \w+)? =\s+(?:[-~(]*\d|[A-Z][A-Z\d_]* [-*/|&<])/gm
  ]
]

const wrongIn = (file: string, text: string): ReadonlyArray<string> =>
  rules.flatMap(([expected, wrong]) =>
    [...text.matchAll(wrong)].map(
      ({ index }) => `${file}:${text.slice(0, index).split("\n").length}: expected ${expected}`
    )
  )

test("early returns have no braces, and numeric constants are in SCREAMING_CASE", () => {
  const files = ["lib", "test", "bench", "examples"].flatMap((folder) =>
    fs
      .readdirSync(`${root}${folder}`, { encoding: "utf8", recursive: true })
      .map((name) => `${folder}/${name}`)
  )
  const sources = files.filter((name) => name.endsWith(".ts"))
  assert.ok(sources.length > 300)
  assert.deepEqual(
    sources.flatMap((file) => wrongIn(file, fs.readFileSync(root + file, "utf8"))),
    []
  )
})

test("a text in another dialect is reported with its file and line", () => {
  const wrong =
    "export const maxBytes: number = 4 * KIB\nconst limit = BYTES_MAX / 2\nif (x) {\n  return y\n}\n"
  const right =
    "const BYTES_MAX = 4\nif (x) return y\nif (x) {\n  return y\n} else {\n  z()\n}\nconst f = () => 4\n"
  assert.deepEqual(wrongIn("right.ts", right), [])
  assert.deepEqual(wrongIn("wrong.ts", wrong), [
    "wrong.ts:3: expected an early return without braces",
    "wrong.ts:1: expected a numeric constant in SCREAMING_CASE",
    "wrong.ts:2: expected a numeric constant in SCREAMING_CASE"
  ])
})
