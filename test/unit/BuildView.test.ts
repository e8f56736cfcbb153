import assert from "node:assert/strict"
import { describe, test } from "node:test"
import type { BuildEvent } from "../../lib/Build.ts"
import { live, plain } from "../../lib/cli/buildView.ts"

/** What a terminal of so many columns shows in the end, with the escape codes that the view uses. */
const shownBy = (text: string): ReadonlyArray<string> => {
  const rows = [""]
  for (const part of text.split(/(\x1b\[\d*[AJm]|\r|\n)/)) {
    const up = /^\x1b\[(\d+)A$/.exec(part)
    if (part === "\n") rows.push("")
    else if (up !== null) rows.splice(rows.length - 1 - Number(up[1]), Number(up[1]) + 1, "")
    else if (/^[^\x1b\r]/.test(part)) rows[rows.length - 1] += part
  }
  return rows.slice(0, -1)
}

const screenOf = () => {
  let text = ""
  const screen = {
    columns: 40,
    rows: 6,
    write: (part: string) => {
      text += part
    }
  }
  return { screen, shown: () => shownBy(text), text: () => text }
}

const event = (step: number, rest: object): BuildEvent =>
  ({ step, text: `RUN step ${step}`, place: undefined, ...rest }) as BuildEvent

describe("the view of a build", () => {
  test("a terminal shows the steps that run below those that have ended, and keeps the latter", () => {
    const { screen, shown } = screenOf()
    const view = live(screen)
    view.show(event(1, { _tag: "Cached" }))
    view.show(event(2, { _tag: "Started", reasons: ["the file a has changed"] }))
    view.show(event(3, { _tag: "Started", reasons: [] }))
    for (const line of ["one", "two\x1b[31m", "10 %\r20 %\r", "four", "five"])
      view.show(event(2, { _tag: "Output", stream: "stdout", line }))
    view.show(event(3, { _tag: "Done", millis: 1234 }))
    assert.deepEqual(
      shown().map((line) => line.replace(/\d\.\d s$/, "TIME")),
      [
        "#1 RUN step 1 (made before)",
        "#2 RUN step 2 (the file a has changed)",
        "#3 RUN step 3 TIME",
        "#2 RUN step 2 TIME",
        "  two",
        "  20 %",
        "  four",
        "  five"
      ]
    )
    view.show(event(2, { _tag: "Failed" }))
    view.close()
    assert.deepEqual(shown().at(-1), "#2 RUN step 2 failed")
    assert.equal(shown().length, 4)
  })

  test("no line is wider than the terminal, and no more lines are shown than it has", () => {
    const { screen, shown, text } = screenOf()
    const view = live(screen)
    for (let step = 1; step <= 9; step++) {
      view.show(event(step, { _tag: "Started", reasons: [] }))
      view.show(event(step, { _tag: "Output", stream: "stdout", line: `${"wide ".repeat(50)}\x07\x9b2J` }))
    }
    view.show(event(10, { _tag: "Cached", text: "RUN a\nb\x1b]0;title\x07" }))
    assert.ok(shown().every((line) => line.length < 40))
    assert.equal(shown().length, 6)
    assert.doesNotMatch(text(), /\x07|\x9b|\]0;/)
    view.close()
    assert.deepEqual(shown(), ["#10 RUN ab (made before)"])
  })

  test("without a terminal each event is a line", () => {
    const { screen, text } = screenOf()
    const view = plain(screen)
    view.show(event(1, { _tag: "Started", reasons: ["a has changed", "b is new", "c is new", "d is new"] }))
    view.show(event(1, { _tag: "Output", stream: "stderr", line: "said" }))
    view.show(event(1, { _tag: "Done", millis: 100 }))
    view.show(event(2, { _tag: "Cached" }))
    view.show(event(3, { _tag: "Failed" }))
    view.close()
    assert.equal(
      text(),
      [
        "berth: #1 RUN step 1 (a has changed, b is new, c is new, and 1 more)",
        "berth: #1 | said",
        "berth: #1 done in 0.1 s",
        "berth: #2 RUN step 2 (made before)",
        "berth: #3 failed",
        ""
      ].join("\n")
    )
  })
})
