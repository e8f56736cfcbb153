#!/usr/bin/env node
/** The program `berth`. Nothing else loads for its version. */
import manifest from "../package.json" with { type: "json" }

const words = process.argv.slice(2)
if (words.length === 1 && words[0] === "--version") console.log(manifest.version)
else {
  const { main } = await import("./cli/main.ts")
  process.exitCode = await main(words, manifest.version)
}
