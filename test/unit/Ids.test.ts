import assert from "node:assert/strict"
import { describe, test } from "node:test"
import fc from "fast-check"
import type { Namespace } from "../../lib/index.ts"
import * as Ids from "../../lib/internal/ids/idMaps.ts"

type Ranges = ReadonlyArray<Namespace.IdRange>

const outer: Ids.Ids = {
  uids: [
    { container: 0, host: 1000, size: 1 },
    { container: 1, host: 100000, size: 65536 }
  ],
  gids: [{ container: 0, host: 1000, size: 1 }]
}

const refused = (uids: Ranges, within: Ids.Ids = Ids.all): string => {
  try {
    Ids.checkMaps("ids", { uids, gids: [{ container: 0, host: 0, size: 1 }] }, within)
  } catch (error) {
    assert.equal((error as { _tag?: unknown })._tag, "InvalidOption")
    return (error as Error).message
  }
  return assert.fail(`${JSON.stringify(uids)} should be refused`)
}

describe("id maps", () => {
  const cases: ReadonlyArray<readonly [name: string, ranges: Ranges, message: RegExp]> = [
    ["no ranges", [], /1 to 340/],
    ["more ranges than the kernel takes", Array(341).fill({ container: 0, host: 0, size: 1 }), /1 to 340/],
    ["a range of no ids", [{ container: 0, host: 0, size: 0 }], /at least one id/],
    ["a negative id", [{ container: -1, host: 0, size: 5 }], /whole numbers/],
    ["half an id", [{ container: 0, host: 0.5, size: 5 }], /whole numbers/],
    ["ids beyond 2^32 - 2", [{ container: 0, host: 1, size: 2 ** 32 - 1 }], /at most/],
    ["a range that does not begin with id 0", [{ container: 1, host: 0, size: 5 }], /without a gap/],
    [
      "a gap",
      [
        { container: 0, host: 0, size: 5 },
        { container: 6, host: 10, size: 5 }
      ],
      /"container":6.*without a gap/
    ],
    [
      "container ids that overlap",
      [
        { container: 0, host: 0, size: 5 },
        { container: 4, host: 10, size: 5 }
      ],
      /container ids do not overlap/
    ],
    [
      "host ids that overlap",
      [
        { container: 0, host: 0, size: 5 },
        { container: 5, host: 4, size: 5 }
      ],
      /host ids do not overlap/
    ]
  ]
  for (const [name, ranges, message] of cases)
    test(`a map with ${name} is refused, and the message names the mistake`, () =>
      assert.match(refused(ranges), message))

  test("a non-root user's map with ids beyond the user's own is refused with a hint at /etc/subuid", () => {
    const message = refused([{ container: 0, host: 1, size: 65537 }], outer)
    assert.match(message, /from 0 to 65536.*\/etc\/subuid/)
  })

  test("a map without gaps and overlaps is accepted, whatever the order of its ranges", () => {
    const sizes = fc.array(fc.integer({ min: 1, max: 1000 }), { minLength: 1, maxLength: 20 })
    fc.assert(
      fc.property(sizes, fc.integer({ min: 0, max: 2 ** 31 }), (lengths, start) => {
        let at = 0
        const ranges = lengths.map((size) => {
          const range = { container: at, host: start + at, size }
          at += size
          return range
        })
        const shuffled = ranges.toReversed()
        const { uids } = Ids.checkMaps("ids", { uids: shuffled, gids: shuffled }, Ids.all)
        // Each id of the host maps to one of the namespace, and back.
        for (const { container, host } of ranges) assert.equal(Ids.inside(uids, host), container)
        assert.equal(Ids.inside(uids, start + at - 1), at - 1)
      })
    )
  })

  test("lines of /etc/subuid that hold no range of this user are ignored", () => {
    const text =
      "# x\nroot:1:2\nme:100000:65536\nme:1:0\nme:x:1\nme:5\nme:4294967295:2\nyou:1:1\n1000:7:8\nme:1:2:3\n"
    assert.deepEqual(Ids.parseSubIds(text, ["me", "1000"]), [
      { start: 100000, size: 65536 },
      { start: 7, size: 8 }
    ])
    assert.deepEqual(Ids.parseSubIds("", ["me"]), [])
  })

  test("the ranges read from any text can be mapped", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(..."me:0123456789-.\n ") }), (text) => {
        for (const { size, start } of Ids.parseSubIds(text, ["me"])) {
          assert.ok(Number.isInteger(start) && Number.isInteger(size) && size > 0)
          assert.ok(start + size <= 2 ** 32 - 1)
        }
      })
    )
  })
})
