// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
/** The words of Dockerfiles, compared with a shell where a shell says the same. */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import { test } from "node:test"
import * as fc from "fast-check"
import { compile } from "../../lib/internal/build/ignore.ts"
import { parse, SyntaxFailure } from "../../lib/internal/dockerfile/parse.ts"
import { expand, expandText, split, WordFailure } from "../../lib/internal/dockerfile/words.ts"

const variables: Readonly<Record<string, string>> = {
  A: "1",
  EMPTY: "",
  PATHS: "/usr/lib/x.tar.gz",
  WORDS: "one two"
}
const lexer = { escape: "\\", get: (name: string) => variables[name] }

test("variables are expanded in each form", () => {
  for (const [text, expected] of [
    ["$A", "1"],
    ["${A}b", "1b"],
    ["$AB", ""],
    ["a$", "a$"],
    ["\\$A", "$A"],
    ["'$A'", "$A"],
    ['"$A \\"x\\" \\y"', '1 "x" \\y'],
    ["${EMPTY:-x}${EMPTY-x}", "x"],
    ["${NONE:-x}${NONE-y}", "xy"],
    ["${A:+x}${EMPTY:+x}${EMPTY+y}${NONE+z}", "xy"],
    ["${NONE:-${A}}", "1"],
    ['${NONE:-"a b"}', "a b"],
    ["${PATHS#*/}", "usr/lib/x.tar.gz"],
    ["${PATHS##*/}", "x.tar.gz"],
    ["${PATHS%.*}", "/usr/lib/x.tar"],
    ["${PATHS%%.*}", "/usr/lib/x"],
    ["${PATHS/\\//-}", "-usr/lib/x.tar.gz"],
    ["${PATHS//\\//-}", "-usr-lib-x.tar.gz"],
    ["${A:?no}", "1"]
  ] as const)
    assert.equal(expand(text, lexer), expected, text)
})

test("a word that cannot be read, and a required variable that is not set, are errors", () => {
  for (const text of ["${A", "${", "'a", '"a', "${A!x}", "${NONE:?give it}", "${NONE?}"])
    assert.throws(() => expand(text, lexer), WordFailure, text)
  assert.throws(() => expand("${NONE:?give it}", lexer), /NONE: give it/)
})

test("the text of a here-document keeps its quotes", () => {
  assert.equal(expandText("'$A' \"$A\" \\$A \\n", lexer), "'1' \"1\" $A \\n")
})

test("words are split at spaces outside of quotes", () => {
  assert.deepEqual(split('a \'b c\' "d \\" e" f\\ g', "\\"), ["a", "'b c'", '"d \\" e"', "f\\ g"])
  assert.throws(() => split("a 'b", "\\"), WordFailure)
})

test("expansions are those of a shell", () => {
  const name = fc.constantFrom("A", "EMPTY", "PATHS", "NONE", "WORDS")
  const plain = fc.stringMatching(/^[a-z/.]{0,4}$/)
  const pattern = fc.stringMatching(/^[a-z/.*?]{1,4}$/)
  const piece = fc.oneof(
    plain,
    name.map((of) => `\${${of}}`),
    fc
      .tuple(name, fc.constantFrom(":-", "-", ":+", "+"), plain)
      .map(([of, operator, word]) => `\${${of}${operator}${word}}`),
    fc
      .tuple(name, fc.constantFrom("#", "##", "%", "%%"), pattern)
      .map(([of, operator, word]) => `\${${of}${operator}${word}}`)
  )
  fc.assert(
    fc.property(fc.array(fc.array(piece, { maxLength: 4 }), { minLength: 20, maxLength: 20 }), (texts) => {
      const all = texts.map((pieces) => pieces.join(""))
      const script = all.map((text) => `printf '%s\\n' "${text}"`).join("\n")
      const { stdout } = spawnSync("sh", ["-c", script], { env: { ...variables }, encoding: "utf8" })
      assert.deepEqual(all.map((text) => expand(`"${text}"`, lexer)).join("\n"), stdout.slice(0, -1))
    }),
    { numRuns: 25 }
  )
})

test("replacements are those of bash", () => {
  const name = fc.constantFrom("A", "PATHS", "WORDS")
  const replacement = fc
    .tuple(
      name,
      fc.constantFrom("/", "//"),
      fc.stringMatching(/^[a-z.*?]{1,4}$/),
      fc.stringMatching(/^[a-z. ]{0,3}$/)
    )
    .map(([of, operator, pattern, by]) => `\${${of}${operator}${pattern}/${by}}`)
  fc.assert(
    fc.property(fc.array(replacement, { minLength: 30, maxLength: 30 }), (texts) => {
      const script = texts.map((text) => `printf '%s\\n' "${text}"`).join("\n")
      const { stdout } = spawnSync("bash", ["-c", script], { env: { ...variables }, encoding: "utf8" })
      assert.deepEqual(texts.map((text) => expand(`"${text}"`, lexer)).join("\n"), stdout.slice(0, -1))
    }),
    { numRuns: 20 }
  )
})

test("the escape character of the directive is that of patterns too", () => {
  const other = { escape: "`", get: (name: string) => ({ S: "a*b*c", D: "c:\\x\\y" })[name] }
  for (const [text, expected] of [
    ["${S#*`*}", "b*c"],
    ["${S%`**}", "a*b"],
    ["${S//`*/-}", "a-b-c"],
    ["${D##*\\}", "y"],
    ["${D%\\*}", "c:\\x"]
  ] as const)
    assert.equal(expand(text, other), expected, text)
})

test("instructions have their flags, their JSON form, here-documents and lines", () => {
  const { escape, instructions } = parse(
    [
      "# escape=`",
      "# a comment",
      "from a as b",
      "",
      "RUN --mount=type=cache,target=/x --network=none one `",
      "  # between",
      "",
      "  two",
      'CMD ["a", "b\\n"]',
      "COPY <<A <<-'B' /to/",
      "first $X",
      "A",
      "\tsecond",
      "\tB",
      "RUN echo <<<no"
    ].join("\n")
  )
  assert.equal(escape, "`")
  assert.deepEqual(
    instructions.map(({ keyword, line }) => [keyword, line]),
    [
      ["FROM", 3],
      ["RUN", 5],
      ["CMD", 9],
      ["COPY", 10],
      ["RUN", 15]
    ]
  )
  const [, run, cmd, copy, last] = instructions
  assert.deepEqual(run!.flags, [
    { name: "mount", value: "type=cache,target=/x" },
    { name: "network", value: "none" }
  ])
  assert.equal(run!.rest, "one   two")
  assert.deepEqual(cmd!.json, ["a", "b\n"])
  assert.deepEqual(copy!.heredocs, [
    { name: "A", expands: true, text: "first $X\n" },
    { name: "B", expands: false, text: "second\n" }
  ])
  assert.deepEqual(last!.heredocs, [])
})

test("a text that cannot be read is an error with its line", () => {
  for (const [text, line] of [
    ["FROM a\nRUN <<EOF\nx", 2],
    ["FROM a\n\nCMD", 3],
    ["# escape=x\nFROM a", 1],
    ["# escape=`\n# escape=`\nFROM a", 2]
  ] as const)
    assert.throws(
      () => parse(text),
      (error) => error instanceof SyntaxFailure && error.line === line,
      text
    )
})

test("any text is read, or refused with a line", () => {
  const line = fc.oneof(
    fc.string(),
    fc.constantFrom(
      "FROM a",
      "RUN x \\",
      "RUN <<E",
      "E",
      "# escape=`",
      'CMD ["',
      "COPY --from=0 a b",
      "${",
      "ENV A=$"
    )
  )
  fc.assert(
    fc.property(fc.array(line, { maxLength: 12 }), (lines) => {
      try {
        for (const { rest } of parse(lines.join("\n")).instructions)
          for (const word of split(rest, "\\")) expand(word, lexer)
      } catch (error) {
        assert.ok(error instanceof SyntaxFailure || error instanceof WordFailure, String(error))
      }
    }),
    { numRuns: 300 }
  )
})

test("ignored files are those of a .dockerignore", () => {
  for (const [patterns, path, ignored] of [
    [["*.md"], "a.md", true],
    [["*.md"], "sub/a.md", false],
    [["**/*.md"], "sub/deep/a.md", true],
    [["**/*.md"], "a.md", true],
    [["node_modules"], "node_modules/x/y", true],
    [["/node_modules/"], "node_modules", true],
    [["*", "!src"], "src/a", false],
    [["*", "!src", "src/b"], "src/b", true],
    [["a?c", "[x-z]"], "abc", true],
    [["[^a]"], "b", true],
    [["a\\*"], "a*", true],
    [["a\\*"], "ab", false],
    [["sub/**"], "sub/x", true],
    [["sub/**"], "sub", false],
    [["./a/../b"], "b", true]
  ] as const)
    assert.equal(compile(patterns).isIgnored(path), ignored, `${patterns} ${path}`)
})

test("a pattern takes no more time for many stars", () => {
  const { isIgnored } = compile([`${"*a".repeat(40)}b`, `${"**/".repeat(40)}x`, `${"**".repeat(40)}y`])
  const path = "a/".repeat(1000)
  assert.equal(isIgnored(`${"a".repeat(250)}c`), false)
  assert.equal(isIgnored(`${path}z`), false)
  assert.equal(isIgnored(`${path}x`), true)
})

test("patterns match as a shell's do, where both have the same", () => {
  const pattern = fc.stringMatching(/^[ab*?]{1,5}$/).filter((text) => !text.includes("**"))
  const name = fc.stringMatching(/^[abc]{1,6}$/)
  fc.assert(
    fc.property(fc.array(fc.tuple(pattern, name), { minLength: 30, maxLength: 30 }), (pairs) => {
      const script = pairs
        .map(([of, text]) => `case ${text} in ${of}) echo yes;; *) echo no;; esac`)
        .join("\n")
      const { stdout } = spawnSync("sh", ["-c", script], { encoding: "utf8" })
      const found = pairs.map(([of, text]) => (compile([of]).isIgnored(text) ? "yes" : "no"))
      assert.deepEqual(found, stdout.trim().split("\n"))
    }),
    { numRuns: 20 }
  )
})
