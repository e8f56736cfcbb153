import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as path from "node:path"
import { describe, test } from "node:test"
import { root } from "../support/program.ts"

/** Each room imports from rooms before it, and from its own. Types may come from anywhere. */
const orders: Readonly<Record<string, ReadonlyArray<string>>> = {
  "lib/internal":
    "util system disk ids security files oci registry supervisor network tar cgroup store layer berth gc image volume container fixtures compose build dockerfile promise fleet".split(
      " "
    ),
  native: ["common", "supervisor", "addon", "proxy", "names", "unpack", "copy", "pack", "fuzz"]
}

const importsOf = (file: string): ReadonlyArray<string> => {
  const text = fs.readFileSync(`${root}${file}`, "utf8")
  return file.endsWith(".ts")
    ? [...text.matchAll(/^(?:import|export) (?!type )[^"]*?from "(\.[^"]+)"|import\("(\.[^"]+)"\)/gm)].map(
        (match) => match[1] ?? match[2]!
      )
    : [...text.matchAll(/^#include "([^"]+)"/gm)].map((match) => match[1]!)
}

/** The imports that go against the order, with the names of both files. */
const against = (house: string, edges: ReadonlyArray<readonly [from: string, to: string]>) => {
  const order = orders[house]!
  const place = (file: string): number => order.indexOf(path.relative(house, file).split("/")[0]!)
  return edges
    .filter(([, to]) => to.startsWith(`${house}/`) && path.relative(house, to).includes("/"))
    .filter(([from, to]) => place(from) < place(to))
    .map(([from, to]) => `${from} imports ${to}, which is in a later room`)
}

const rooms = (house: string): ReadonlyArray<string> =>
  fs
    .readdirSync(`${root}${house}`, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && `${house}/${entry.name}` !== "native/build")
    .map(({ name }) => name)

const filesOf = (house: string): ReadonlyArray<string> =>
  rooms(house).flatMap((room) =>
    fs.readdirSync(`${root}${house}/${room}`).map((name) => `${house}/${room}/${name}`)
  )

describe("the rooms of the house", () => {
  for (const house of Object.keys(orders)) {
    test(`every room of ${house} is in the order of rooms and in the table of README.md`, () => {
      assert.deepEqual([...rooms(house)].sort(), [...orders[house]!].sort())
      const map = fs.readFileSync(`${root}README.md`, "utf8")
      for (const room of rooms(house)) assert.match(map, new RegExp(`^\\| \`${house}/${room}/\` \\|`, "m"))
    })

    test(`no file of ${house} imports from a later room`, () => {
      const edges = filesOf(house).flatMap((file) =>
        importsOf(file).map((to) => [file, path.join(path.dirname(file), to)] as const)
      )
      assert.ok(edges.length > 20)
      assert.deepEqual(against(house, edges), [])
    })
  }

  test("the command line imports public modules of the house alone", () => {
    const files = fs.readdirSync(`${root}lib/cli`).map((name) => `lib/cli/${name}`)
    assert.ok(files.length > 5)
    assert.match(fs.readFileSync(`${root}README.md`, "utf8"), /^\| `lib\/cli\/` \|/m)
    for (const file of files)
      for (const to of importsOf(file)) {
        const folder = path.dirname(path.join("lib/cli", to))
        assert.ok(folder === "lib" || folder === "lib/cli", `${file} imports ${to}`)
      }
  })

  test("an import against the order of rooms is reported with the names of both files", () => {
    const wrong = ["lib/internal/util/bytes.ts", "lib/internal/container/launch.ts"] as const
    const right = ["lib/internal/container/launch.ts", "lib/internal/util/bytes.ts"] as const
    assert.deepEqual(against("lib/internal", [wrong, right]), [
      "lib/internal/util/bytes.ts imports lib/internal/container/launch.ts, which is in a later room"
    ])
  })
})
