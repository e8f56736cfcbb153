/** Lines at the bottom of a terminal, which are drawn again when they change. */

/** What a panel needs of the stream to a terminal. */
export interface Screen {
  readonly isTTY?: boolean | undefined
  readonly columns?: number | undefined
  readonly rows?: number | undefined
  readonly write: (text: string) => unknown
}

export interface Panel {
  /** Draws lines in place of those before; the lines `above` stay. */
  readonly draw: (lines: ReadonlyArray<string>, above?: ReadonlyArray<string>) => void
  /** The part of a line that fits. */
  readonly cut: (line: string) => string
}

export const makePanel = (screen: Screen): Panel => {
  let drawn = 0
  const erase = (): string => (drawn === 0 ? "" : `\x1b[${drawn}A\r\x1b[J`)
  return {
    draw: (lines, above = []) => {
      // More than fits could not be erased.
      const shown = lines.slice(-Math.max(1, (screen.rows ?? 24) - 1))
      screen.write(erase() + [...above, ...shown].map((line) => `${line}\n`).join(""))
      drawn = shown.length
    },
    // One column is left, because a terminal may wrap after the last one.
    cut: (line) => [...line].slice(0, Math.max(10, (screen.columns ?? 80) - 1)).join("")
  }
}
