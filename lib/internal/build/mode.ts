/** Modes as chmod(1) has them: octal digits, or symbols such as `u=rwX,go=rX`, which depend on the mode before. */

export type Change = (mode: number, isFolder: boolean) => number

const CLAUSE = /^([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)$/
const SHIFTS: Readonly<Record<string, number>> = { u: 6, g: 3, o: 0 }
const BITS: Readonly<Record<string, number>> = { r: 4, w: 2, x: 1 }

/** The bits that symbols stand for, for these classes. */
const bitsOf = (symbols: string, classes: string, mode: number, isFolder: boolean): number => {
  if (symbols in SHIFTS) {
    const from = (mode >> SHIFTS[symbols]!) & 7
    return [...classes].reduce((bits, one) => bits | (from << SHIFTS[one]!), 0)
  }
  let bits = 0
  for (const symbol of symbols) {
    if (symbol === "t") bits |= 0o1000
    else if (symbol === "s")
      bits |= (classes.includes("u") ? 0o4000 : 0) | (classes.includes("g") ? 0o2000 : 0)
    else {
      const bit = symbol === "X" ? (isFolder || (mode & 0o111) !== 0 ? 1 : 0) : BITS[symbol]!
      for (const one of classes) bits |= bit << SHIFTS[one]!
    }
  }
  return bits
}

/** The change of a mode in octal digits or symbols; undefined for any other text. */
export const changeOf = (text: string): Change | undefined => {
  if (/^[0-7]{1,5}$/.test(text)) {
    const mode = Number.parseInt(text, 8)
    return mode > 0o7777 ? undefined : () => mode
  }
  const clauses = text.split(",").map((clause) => CLAUSE.exec(clause))
  if (clauses.some((clause) => clause === null)) return undefined
  return (before, isFolder) =>
    clauses.reduce((mode, clause) => {
      const [, given = "", actions = ""] = clause!
      const classes = given === "" || given.includes("a") ? "ugo" : given
      const mask = [...classes].reduce((bits, one) => bits | (7 << SHIFTS[one]!), 0)
      return [...actions.matchAll(/([-+=])([ugo]|[rwxXst]*)/g)].reduce((now, [, operator, symbols]) => {
        const bits = bitsOf(symbols!, classes, now, isFolder)
        return operator === "+" ? now | bits : operator === "-" ? now & ~bits : (now & ~mask) | bits
      }, mode)
    }, before)
}
