/** Makes the JavaScript of npm's package: `tsx .bundle.ts FOLDER`. `berth/promise` has Effect in it; the modules for Effect import it. */
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { type BuildOptions, build, type Plugin } from "esbuild"
import { parseAst } from "vite"

const root = fileURLToPath(new URL(".", import.meta.url))

/**
 * Leaves the schemas of errors out: a program without Effect cannot use them, and they are a tenth of all that it would load. The
 * errors of @effect/platform become classes of the same names and fields.
 */
export const withoutSchemas: Plugin = {
  name: "without-schemas",
  setup: ({ onLoad }) => {
    onLoad({ filter: /\/lib\/internal\/util\/errorSchema\.ts$/ }, () => ({
      contents: "export const giveSchema = () => {}"
    }))
    onLoad({ filter: /\/@effect\/platform\/dist\/esm\/Error\.js$/ }, async ({ path }) => {
      const text = await fs.promises.readFile(path, "utf8")
      const none = `const none = () => {}
const Schema = { Literal: none, Union: none, optional: none, TaggedError: () => Data.TaggedError }`
      return { contents: text.replace('import * as Schema from "effect/Schema";', none) }
    })
  }
}

const WHOLE = "whole"

/**
 * Puts all that the imports of `core` load into one file: each entry with this prefix, and each part that loads later, imports it.
 * Otherwise esbuild makes a file for each set of entries and parts that share a module, and Node takes 2 ms for a file.
 */
const inOneFile = (core: ReadonlyArray<string>): Plugin => ({
  name: "in-one-file",
  setup: ({ onLoad, onResolve, resolve }) => {
    onResolve({ filter: RegExp(`^${WHOLE}:`) }, ({ path }) => ({
      path: `${root}${path.slice(WHOLE.length + 1)}`,
      namespace: WHOLE
    }))
    onResolve({ filter: /./ }, async ({ importer, kind, path, resolveDir }) => {
      if (kind !== "dynamic-import") return undefined
      const part = await resolve(path, { importer, kind: "import-statement", resolveDir })
      return part.external || part.errors.length > 0 ? part : { path: part.path, namespace: WHOLE }
    })
    onLoad({ filter: /./, namespace: WHOLE }, ({ path }) => ({
      contents: `${core.map((name) => `import "./lib/${name}.ts"\n`).join("")}export * from ${JSON.stringify(path)}`,
      resolveDir: root
    }))
  }
})

interface Node {
  readonly type: string
  readonly start: number
  readonly end: number
}

interface Arrow extends Node {
  readonly async: boolean
  readonly params: ReadonlyArray<Node>
  readonly body: Node
}

const childrenOf = (node: Node): ReadonlyArray<Node> =>
  Object.values(node)
    .flat()
    .filter((value) => typeof value?.type === "string")

/** Whether code has another meaning in a function of its own. A class counts as well, although its fields have a `this` of their own. */
const isBound = (node: Node): boolean =>
  /^(ThisExpression|Super|MetaProperty)$/.test(node.type) ||
  (node as { readonly name?: string }).name === "arguments" ||
  (!/^Function/.test(node.type) && childrenOf(node).some(isBound))

/**
 * Writes arrow functions as functions: V8 parses them in four fifths of the time, because it knows at their first word that they are
 * functions, whose bodies it need not read before they are called. The lines stay as they are, so that source maps still lead to them.
 */
const withoutArrows = (text: string): string => {
  const edits: Array<{ readonly from: number; readonly to: number; readonly by: string }> = []
  const visit = (node: Node): void => {
    if (node.type === "ArrowFunctionExpression" && !childrenOf(node).some(isBound)) {
      const { async, body, end, params, start } = node as Arrow
      const last = params.at(-1)
      const arrow = text.indexOf("=>", last?.end ?? start)
      const space = /[\w$]/.test(text[start - 1] ?? "") ? " " : ""
      const isBlock = body.type === "BlockStatement"
      edits.push(
        { from: start, to: params[0]?.start ?? arrow, by: `${space}${async ? "async " : ""}function(` },
        { from: last?.end ?? arrow, to: arrow + 2, by: isBlock ? ")" : "){return " }
      )
      if (!isBlock) edits.push({ from: end, to: end, by: "}" })
    }
    childrenOf(node).forEach(visit)
  }
  visit(parseAst(text))
  let written = ""
  let at = 0
  for (const { by, from, to } of edits.sort((a, b) => a.from - b.from || a.to - b.to)) {
    written += text.slice(at, from) + by
    at = to
  }
  written += text.slice(at)
  parseAst(written)
  return written
}

/** The text of it in a module, apart, so that a bundler of this file leaves it alone. */
const META_URL = ["import", "meta", "url"].join(".")

/** The prefix of the module that Node loads by `codeCache.ts`: see `imports` in `package.json`. */
const LOADED = "#bundle/"

interface Names {
  readonly specifiers: ReadonlyArray<{
    readonly local: { readonly name: string }
    readonly exported?: { readonly name: string }
  }>
}

/** Fails for a module whose exports change after it has been loaded: as a function it returns them as they are at its end. */
const assertFixed = (statements: ReadonlyArray<Node>, names: ReadonlySet<string>): void => {
  const visit = (node: Node): void => {
    const { argument, left, type } = node as Partial<
      Record<"argument" | "left", { readonly name?: string }>
    > &
      Node
    const changed =
      type === "AssignmentExpression" ? left : type === "UpdateExpression" ? argument : undefined
    if (changed?.name !== undefined && names.has(changed.name))
      throw new Error(`.bundle.ts: ${changed.name} is exported, and changes later`)
    for (const child of childrenOf(node)) visit(child)
  }
  for (const child of statements.flatMap(childrenOf)) visit(child)
}

/**
 * Has Node load the largest of these files, which are in one folder, from V8's kept code. Its imports are put on its first line, and a
 * file beside it makes a function of what follows; the lines stay as they are.
 */
const withKeptCode = async (files: ReadonlyArray<string>): Promise<void> => {
  const file = files.reduce((one, other) => (fs.statSync(one).size < fs.statSync(other).size ? other : one))
  const name = path.basename(file)
  for (const other of files.filter((other) => other !== file))
    fs.writeFileSync(other, fs.readFileSync(other, "utf8").replaceAll(`"./${name}"`, `"${LOADED}${name}"`))
  const text = fs.readFileSync(file, "utf8").replaceAll(META_URL, "$url")
  const nodes = (parseAst(text) as unknown as { readonly body: ReadonlyArray<Node & Names> }).body
  const imports = nodes.filter(({ type }) => type === "ImportDeclaration")
  const [exported, ...others] = nodes.filter(({ type }) => type.startsWith("Export"))
  if (exported === undefined || others.length > 0 || /[^\x00-\x7f]/.test(text))
    throw new Error(`.bundle.ts: ${file} is not in ASCII, or has more than one export`)
  assertFixed(nodes, new Set(exported.specifiers.map(({ local }) => local.name)))
  const textOf = ({ end, start }: Node) => text.slice(start, end)
  const imported = imports.map((node) => textOf(node).replaceAll(/\s+/g, " ")).join("")
  const first = `${imported}const $url=${META_URL};`
  let body = ""
  let at = 0
  for (const node of [...imports, exported]) {
    body += text.slice(at, node.start) + textOf(node).replaceAll(/[^\n]/g, "")
    at = node.end
  }
  fs.writeFileSync(file, `${first}${body}${textOf(exported)}${text.slice(at)}`)
  const parameters = [
    "$url",
    ...imports.flatMap(({ specifiers }) => specifiers.map(({ local }) => local.name))
  ]
  const code = {
    begin: first.length,
    end: first.length + body.length,
    head: `(function(${parameters}){"use strict";`,
    tail: `\nreturn{${exported.specifiers.map(({ exported, local }) => `${exported!.name}:${local.name}`)}}})`
  }
  const digest = createHash("sha256").update(`${code.head}${body}${code.tail}`).digest("hex").slice(0, 32)
  await build({
    stdin: {
      contents: `import{load}from"${root}lib/internal/system/codeCache.ts";${imported}
const $url=new URL("${name}",${META_URL}).href;
const{${exported.specifiers.map(({ exported }, k) => `${exported!.name}:$${k}`)}}=load({url:$url,digest:"${digest}",...${JSON.stringify(code)}})(${parameters});
export{${exported.specifiers.map(({ exported }, k) => `$${k} as ${exported!.name}`)}}`,
      resolveDir: root
    },
    bundle: true,
    format: "esm",
    platform: "node",
    target: "node20.17",
    minifySyntax: true,
    minifyWhitespace: true,
    outfile: file.replace(/js$/, "node.js"),
    plugins: [
      {
        name: "beside",
        setup: ({ onResolve }) => onResolve({ filter: /^[^/]/ }, ({ path }) => ({ path, external: true }))
      }
    ]
  })
}

/** Returns the paths of the files. */
const bundle = async (
  core: ReadonlyArray<string>,
  entries: ReadonlyArray<string>,
  options: BuildOptions
): Promise<ReadonlyArray<string>> => {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: entries.map((name) => ({ in: `${WHOLE}:lib/${name}.ts`, out: name })),
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20.17",
    metafile: true,
    logLevel: "warning",
    logLimit: 0,
    ...options,
    plugins: [inOneFile(core), ...(options.plugins ?? [])]
  })
  const files = Object.keys(metafile!.outputs)
    .filter((name) => name.endsWith(".js"))
    .map((name) => path.resolve(root, name))
  for (const file of files) fs.writeFileSync(file, withoutArrows(fs.readFileSync(file, "utf8")))
  return files
}

const main = async (out: string): Promise<void> => {
  const files = await bundle(["promise"], ["promise", "promiseFixtures"], {
    outdir: `${out}/bundle`,
    chunkNames: "[hash]",
    external: ["undici", "https-proxy-agent", "dbus-native", "cli-progress", "yaml"],
    minifySyntax: true,
    minifyWhitespace: true,
    plugins: [withoutSchemas]
  })
  await withKeptCode(files)
  const modules = fs
    .readdirSync(`${root}lib`)
    .filter((file) => /^[A-Z].*\.ts$/.test(file))
    .map((file) => file.replace(/\.ts$/, ""))
  await bundle(["Container", "Image"], ["index", "fixtures", "fleet", "fleetWorkflow", ...modules], {
    outdir: out,
    chunkNames: "chunks/[hash]",
    packages: "external",
    sourcemap: true,
    sourcesContent: false
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv[2]!)
