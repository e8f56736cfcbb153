/**
 * The checkout's TypeScript as JavaScript, with npm's packages in it: it is loaded in a fifth of the time that the modules
 * take one by one, and the tests start two hundred processes.
 */
import * as fs from "node:fs"
import { SourceMap } from "node:module"
import * as path from "node:path"
import { build, type Plugin } from "esbuild"

/** Each module goes on knowing where its source is: a chunk holds several of them. */
const sourceUrls = (from: string, to: string): Plugin => ({
  name: "source-urls",
  setup: ({ onLoad }) => {
    onLoad({ filter: /\.ts$/ }, async ({ path: file }) => {
      const text = await fs.promises.readFile(file, "utf8")
      const url = JSON.stringify(`file://${path.join(to, path.relative(from, file))}`)
      return { loader: "ts", contents: text.replaceAll("import.meta.url", url) }
    })
  }
})

/** Half of what would be loaded, and only used by layers of platform-node that neither Berth nor its tests use. */
const withoutUndici: Plugin = {
  name: "without-undici",
  setup: ({ onResolve, onLoad }) => {
    onResolve({ filter: /^undici$/ }, ({ importer, path }) =>
      importer.includes("/node_modules/") ? { path, namespace: "nothing" } : undefined
    )
    onLoad({ filter: /./, namespace: "nothing" }, () => ({ contents: "module.exports = {}" }))
  }
}

/** It has an addon of its own, which it looks for beside its package. */
const libsqlFrom = (at: string): Plugin => ({
  name: "libsql",
  setup: ({ onResolve }) => {
    onResolve({ filter: /^libsql$/ }, () => ({
      path: path.join(at, "node_modules/libsql/index.js"),
      external: true
    }))
  }
})

/**
 * Writes to `out` each of these files of the checkout at its own place, with `.js` for `.ts`, and what they share into
 * `chunks`. `at` is where the checkout will be when they run.
 */
export const bundle = async (
  checkout: string,
  files: ReadonlyArray<string>,
  at: string,
  out: string
): Promise<void> => {
  await build({
    absWorkingDir: checkout,
    entryPoints: [...files],
    outbase: checkout,
    outdir: out,
    chunkNames: "chunks/[hash]",
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    sourcemap: true,
    sourcesContent: false,
    // What packages of CommonJS call to have Node's own modules.
    banner: {
      js: 'import { createRequire as $createRequire } from "node:module"; const require = $createRequire(import.meta.url);'
    },
    // They load parts that are not installed, and nothing that runs from a bundle imports them.
    external: ["esbuild", "vite"],
    plugins: [sourceUrls(checkout, at), withoutUndici, libsqlFrom(at)],
    logLevel: "error"
  })
}

/**
 * A text with the places in the source instead of those in the JavaScript that `bundle` has written to `out`. Node does so itself
 * with `--enable-source-maps`, and reads the maps in each process, which takes as long as half of the modules.
 */
export const withSources = (out: string, text: string): string => {
  const maps = new Map<string, SourceMap>()
  const mapOf = (file: string): SourceMap => {
    const map = maps.get(file) ?? new SourceMap(JSON.parse(fs.readFileSync(`${file}.map`, "utf8")))
    maps.set(file, map)
    return map
  }
  const places = new RegExp(`(${out}/[^\\s:'"()]+\\.js):(\\d+):(\\d+)`, "g")
  return text.replaceAll(places, (place, file, line, column) => {
    if (!fs.existsSync(`${file}.map`)) return place
    const entry = mapOf(file).findEntry(Number(line) - 1, Number(column) - 1)
    return "originalSource" in entry
      ? `${path.resolve(path.dirname(file), entry.originalSource)}:${entry.originalLine + 1}:${entry.originalColumn + 1}`
      : place
  })
}
