/** Levenshtein distance, for "did you mean". */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, k) => k)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}

/** The candidate with the smallest distance to `word`. */
export const nearest = (word: string, candidates: ReadonlyArray<string>): string =>
  candidates.reduce((best, candidate) =>
    distance(word, candidate) < distance(word, best) ? candidate : best
  )
