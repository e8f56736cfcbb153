/** Shows a build: the steps that run, with the end of their output, at the bottom of a terminal; or a line for each event. */
import type { BuildEvent } from "../Build.ts"
import { messageOf } from "./failure.ts"
import { makePanel, type Screen } from "./panel.ts"

export interface View {
  readonly show: (event: BuildEvent) => void
  /** Removes what is not final. */
  readonly close: () => void
}

const REDRAW_MILLIS = 100
const OUTPUT_LINES = 4
const REASONS_SHOWN = 3

const seconds = (millis: number): string => `${(millis / 1000).toFixed(1)} s`

/** A text of a step as one line: of a line that was written over itself, as progress bars are, its end. */
const lineOf = (text: string): string =>
  messageOf(text)
    .replace(/\r+$/, "")
    .replace(/^.*\r/s, "")
    .replaceAll("\t", " ")
    .replace(/[\x00-\x1f\x7f-\x9f]/g, "")

const reasonsOf = (reasons: ReadonlyArray<string>): string => {
  const more = reasons.length > REASONS_SHOWN ? `, and ${reasons.length - REASONS_SHOWN} more` : ""
  return reasons.length === 0 ? "" : ` (${reasons.slice(0, REASONS_SHOWN).map(lineOf).join(", ")}${more})`
}

const madeBefore = ({ from }: Extract<BuildEvent, { readonly _tag: "Cached" }>): string =>
  from === undefined ? "made before" : `from ${messageOf(from)}`

/** A line for each event, for a log or a pipe. */
export const plain = (screen: Screen): View => {
  const say = (text: string) => screen.write(`berth: ${text}\n`)
  return {
    show: (event) => {
      const step = `#${event.step}`
      switch (event._tag) {
        case "Started":
          return say(`${step} ${messageOf(event.text)}${reasonsOf(event.reasons)}`)
        case "Cached":
          return say(`${step} ${messageOf(event.text)} (${madeBefore(event)})`)
        case "Output":
          return say(`${step} | ${messageOf(event.line)}`)
        case "Done":
          return say(`${step} done in ${seconds(event.millis)}`)
        case "Failed":
          return say(`${step} failed`)
      }
    },
    close: () => {}
  }
}

interface Running {
  readonly title: string
  readonly began: number
  readonly output: Array<string>
}

/** The view of a terminal: lines of what has ended stay, and below them are the steps that run. */
export const live = (screen: Screen): View => {
  const running = new Map<number, Running>()
  let timer: NodeJS.Timeout | undefined
  const { cut, draw: drawLines } = makePanel(screen)
  const draw = (above: ReadonlyArray<string> = []): void =>
    drawLines(
      [...running.values()].flatMap(({ began, output, title }) => [
        cut(`${title} ${seconds(performance.now() - began)}`),
        ...output.map((line) => `\x1b[2m${cut(`  ${line}`)}\x1b[0m`)
      ]),
      above
    )
  const stop = (): void => {
    clearInterval(timer)
    timer = undefined
  }
  return {
    show: (event) => {
      const title = `#${event.step} ${lineOf(event.text)}`
      switch (event._tag) {
        case "Started":
          running.set(event.step, { title, began: performance.now(), output: [] })
          timer ??= setInterval(() => draw(), REDRAW_MILLIS).unref()
          return draw(event.reasons.length === 0 ? [] : [cut(`${title}${reasonsOf(event.reasons)}`)])
        case "Cached":
          return draw([cut(`${title} (${madeBefore(event)})`)])
        case "Output": {
          const output = running.get(event.step)?.output
          output?.push(lineOf(event.line))
          if (output !== undefined && output.length > OUTPUT_LINES) output.shift()
          return
        }
        case "Done":
        case "Failed": {
          running.delete(event.step)
          if (running.size === 0) stop()
          return draw([cut(`${title} ${event._tag === "Done" ? seconds(event.millis) : "failed"}`)])
        }
      }
    },
    close: () => {
      stop()
      running.clear()
      draw()
    }
  }
}
