import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { describe, test } from "node:test"
import { commands } from "../../lib/cli/commands.ts"
import { helpOf } from "../../lib/cli/help.ts"
import { berth } from "../support/cli.ts"
import { allowTime, makeTemporaryFolder, remove } from "../support/effect.ts"
import { root } from "../support/program.ts"

allowTime()

describe("the command line", () => {
  test("the program prints the version of the package", async () => {
    const { version } = JSON.parse(fs.readFileSync(`${root}package.json`, "utf8"))
    assert.deepEqual(await berth(["--version"]), {
      code: 0,
      signal: null,
      stdout: `${version}\n`,
      stderr: ""
    })
  })

  test("the program without arguments prints its help, which has every command", async () => {
    const { code, stderr, stdout } = await berth([])
    assert.deepEqual([code, stderr], [0, ""])
    for (const { name, summary } of commands) assert.match(stdout, new RegExp(`^  ${name} +${summary}$`, "m"))
    assert.match(stdout, /There is no daemon/)
    assert.equal((await berth(["--help"])).stdout, stdout)
  })

  test("the help of a command has its options and examples", async () => {
    assert.equal((await berth(["run", "--help"])).stdout, `${helpOf("run")}\n`)
    for (const { examples, name, parts } of commands) {
      const help = helpOf(name)
      for (const { usage } of Object.values(parts)) assert.ok(help.includes(usage), `${name}: ${usage}`)
      assert.ok(examples.length > 0, name)
      for (const line of help.split("\n")) assert.ok(line.length <= 100, line)
      for (const example of examples) {
        assert.ok(help.includes(example), example)
        const used = /\bberth (\w+)/.exec(example)![1]
        assert.ok(
          commands.some((command) => command.name === used),
          example
        )
      }
    }
  })

  for (const shell of ["bash", "zsh", "fish"])
    test(`the completions for ${shell} have the commands and their options`, async () => {
      const { code, stdout } = await berth(["--completions", shell])
      assert.equal(code, 0)
      for (const { name } of commands) assert.ok(stdout.includes(name), name)
      assert.match(stdout, /read-only/)
    })

  test("bash accepts the completions and completes the name of a command", async () => {
    const { stdout } = await berth(["--completions", "bash"])
    const folder = makeTemporaryFolder()
    fs.writeFileSync(`${folder}/completions`, stdout)
    const script = `source "$0"; COMP_WORDS=(berth vol); COMP_CWORD=1; ${/complete .*-F (\S+)/.exec(stdout)![1]} berth; echo "\${COMPREPLY[@]}"`
    assert.equal(
      execFileSync("bash", ["-c", script, `${folder}/completions`], { encoding: "utf8" }),
      "volumes\n"
    )
    remove(folder)
  })

  const wrong: ReadonlyArray<readonly [args: ReadonlyArray<string>, code: number, says: RegExp]> = [
    [["frobnicate"], 2, /^berth: frobnicate is no command of berth; see berth --help$/],
    [["--frobnicate"], 2, /^berth: --frobnicate is no option of berth; see berth --help$/],
    [["pull"], 2, /^berth: Missing argument <NAME>; see berth pull --help$/],
    [["pull", "a", "b"], 2, /^berth: Received unknown argument: 'b'; see berth pull --help$/],
    [["gc", "--dry"], 2, /^berth: --dry is no option of berth gc; see berth gc --help$/],
    [["save", "--format", "zip", "a", "b"], 2, /^berth: .*docker-archive.*; see berth save --help$/],
    [["run"], 125, /^berth: Missing argument <IMAGE>; see berth run --help$/],
    [
      ["run", "host", "ls", "-a"],
      125,
      /^berth: -a is no option of berth run: write -- before the container's command/
    ],
    [["run", "--cpus", "many", "host"], 125, /^berth: 'many' is not a .*; see berth run --help$/],
    [["run", "--network", "bridge", "host"], 125, /^berth: .*none.*host.*outbound.*; see berth run --help$/]
  ]
  for (const [args, code, says] of wrong)
    test(`"berth ${args.join(" ")}" ends with ${code}, one line and nothing on stdout`, async () => {
      const ended = await berth(args)
      assert.deepEqual([ended.code, ended.stdout], [code, ""])
      assert.match(ended.stderr.trimEnd(), says)
      assert.equal(ended.stderr.trimEnd().split("\n").length, 1)
    })
})
