/**
 * Makes a seccomp program shorter without a change of its results. libseccomp writes a comparison for each system call;
 * most allowed calls have allowed neighbours, so a search among their ranges takes a fifth of the instructions. The
 * kernel checks, translates and tries a program whenever it is loaded, so its length costs time at every start.
 *
 * The program is evaluated for every class of architecture and system call number that it can distinguish. Only
 * decisions about arguments remain, and a new program is written from them.
 */

/** An instruction of linux/filter.h, as struct sock_filter has it. */
export interface Instruction {
  readonly code: number
  readonly jt: number
  readonly jf: number
  readonly k: number
}

export const LOAD = 0x20
export const AND = 0x54
export const JUMP = 0x05
export const IF_EQUAL = 0x15
export const IF_GREATER = 0x25
export const IF_GREATER_OR_EQUAL = 0x35
export const IF_ANY_BIT = 0x45
export const RETURN = 0x06

/** The offsets of the system call's number and of the architecture in struct seccomp_data. */
const NUMBER = 0
const ARCHITECTURE = 4

const INSTRUCTION_BYTES = 8
const CONDITIONAL_JUMP_MAX = 255

export const decode = (program: Uint8Array): ReadonlyArray<Instruction> => {
  const view = new DataView(program.buffer, program.byteOffset, program.byteLength)
  return Array.from({ length: program.length / INSTRUCTION_BYTES }, (_, index) => {
    const at = index * INSTRUCTION_BYTES
    return {
      code: view.getUint16(at, true),
      jt: view.getUint8(at + 2),
      jf: view.getUint8(at + 3),
      k: view.getUint32(at + 4, true)
    }
  })
}

export const encode = (instructions: ReadonlyArray<Instruction>): Uint8Array => {
  const program = new Uint8Array(instructions.length * INSTRUCTION_BYTES)
  const view = new DataView(program.buffer)
  instructions.forEach(({ code, jf, jt, k }, index) => {
    const at = index * INSTRUCTION_BYTES
    view.setUint16(at, code, true)
    view.setUint8(at + 2, jt)
    view.setUint8(at + 3, jf)
    view.setUint32(at + 4, k, true)
  })
  return program
}

export const holds = (code: number, a: number, k: number): boolean => {
  switch (code) {
    case IF_EQUAL:
      return a === k
    case IF_GREATER:
      return a > k
    case IF_GREATER_OR_EQUAL:
      return a >= k
    default:
      return (a & k) !== 0
  }
}

/** The decision about a word of the arguments; equal decisions are the same node. */
type Decision =
  | { readonly result: number }
  | {
      readonly offset: number
      readonly mask: number
      readonly code: number
      readonly k: number
      readonly then: Decision
      readonly otherwise: Decision
    }

/** The contents of the accumulator: a known value, or a word of the arguments through a mask. */
type Accumulator = { readonly known: number } | { readonly offset: number; readonly mask: number }

class NotSimple extends Error {}

/** The decisions of one program. */
class Evaluator {
  private readonly program: ReadonlyArray<Instruction>
  private readonly nodes = new Map<string, Decision>()
  private readonly ids = new Map<Decision, number>()

  constructor(program: ReadonlyArray<Instruction>) {
    this.program = program
  }

  private node(key: string, make: () => Decision): Decision {
    const found = this.nodes.get(key)
    if (found !== undefined) return found
    const made = make()
    this.nodes.set(key, made)
    this.ids.set(made, this.ids.size)
    return made
  }

  private result(result: number): Decision {
    return this.node(`${result}`, () => ({ result }))
  }

  private choice(
    { k, code }: Instruction,
    a: { readonly offset: number; readonly mask: number },
    then: Decision,
    otherwise: Decision
  ): Decision {
    if (then === otherwise) return then
    const key = [a.offset, a.mask, code, k, this.ids.get(then), this.ids.get(otherwise)].join()
    return this.node(key, () => ({ ...a, code, k, then, otherwise }))
  }

  /** The result of the program for a system call. */
  of(architecture: number, number: number): Decision {
    // Two paths to the same instruction with the same accumulator have the same result.
    const seen = new Map<string, Decision>()
    const from = (start: number, entry: Accumulator): Decision => {
      let at = start
      let a = entry
      for (;;) {
        const instruction = this.program[at]
        if (instruction === undefined) throw new NotSimple()
        const { code, jf, jt, k } = instruction
        at++
        if (code === RETURN) return this.result(k)
        if (code === LOAD)
          a =
            k === NUMBER
              ? { known: number }
              : k === ARCHITECTURE
                ? { known: architecture }
                : { offset: k, mask: 0xffffffff }
        else if (code === AND)
          a = "known" in a ? { known: (a.known & k) >>> 0 } : { offset: a.offset, mask: (a.mask & k) >>> 0 }
        else if (code === JUMP) at += k
        else if ("known" in a) at += holds(code, a.known, k) ? jt : jf
        else {
          const key = `${at} ${a.offset} ${a.mask}`
          const found = seen.get(key)
          if (found !== undefined) return found
          const choice = this.choice(instruction, a, from(at + jt, a), from(at + jf, a))
          seen.set(key, choice)
          return choice
        }
      }
    }
    return from(0, { known: 0 })
  }
}

const OF_NUMBER = 1
const OF_ARCHITECTURE = 2
const OF_ELSE = 4

/** The possible contents of the accumulator at each instruction; in one pass, as jumps only go forwards. */
const sources = (program: ReadonlyArray<Instruction>): ReadonlyArray<number> => {
  const at = program.map((_, index) => (index === 0 ? OF_ELSE : 0))
  program.forEach(({ code, jf, jt, k }, index) => {
    const loaded = k === NUMBER ? OF_NUMBER : k === ARCHITECTURE ? OF_ARCHITECTURE : OF_ELSE
    const after = code === LOAD ? loaded : at[index]!
    const next = code === RETURN ? [] : code === JUMP ? [k] : isComparison(code) ? [jt, jf] : [0]
    for (const skipped of next) if (index + 1 + skipped < at.length) at[index + 1 + skipped]! |= after
  })
  return at
}

const isComparison = (code: number): boolean =>
  code === IF_EQUAL || code === IF_GREATER || code === IF_GREATER_OR_EQUAL || code === IF_ANY_BIT

interface Classes {
  /** The lowest number of every class that the program cannot distinguish: it only compares the number with these. */
  readonly numbers: ReadonlyArray<number>
  readonly architectures: ReadonlyArray<number>
}

/** Undefined if the program does more with the number and the architecture than to compare them as a whole. */
const classesOf = (program: ReadonlyArray<Instruction>): Classes | undefined => {
  const numbers = new Set([0])
  const architectures = new Set<number>()
  const of = sources(program)
  for (const [index, { code, k }] of program.entries()) {
    const source = of[index]!
    if (code === AND || code === IF_ANY_BIT) {
      if (source !== OF_ELSE) return undefined
    } else if (isComparison(code)) {
      if ((source & OF_ARCHITECTURE) !== 0) {
        if (code !== IF_EQUAL) return undefined
        architectures.add(k)
      }
      if ((source & OF_NUMBER) !== 0) {
        numbers.add(k)
        if (k < 0xffffffff) numbers.add(k + 1)
      }
    } else if (code !== LOAD && code !== JUMP && code !== RETURN) return undefined
  }
  return { numbers: [...numbers].sort((a, b) => a - b), architectures: [...architectures] }
}

interface Range {
  readonly start: number
  readonly decision: Decision
}

/** Writes a program from its last instruction to its first, as jumps only go forwards. */
class Writer {
  private readonly reversed: Array<Instruction> = []
  private readonly places = new Map<Decision, number>()

  get instructions(): ReadonlyArray<Instruction> {
    return this.reversed.toReversed()
  }

  private push(code: number, k: number, jt = 0, jf = 0): number {
    return this.reversed.push({ code, jt, jf, k }) - 1
  }

  private distance(to: number): number {
    return this.reversed.length - to - 1
  }

  branch(code: number, k: number, then: number, otherwise: number): number {
    let [yes, no] = [then, otherwise]
    // Either bridge moves the other target away by one.
    if (this.distance(yes) >= CONDITIONAL_JUMP_MAX) yes = this.push(JUMP, this.distance(yes))
    if (this.distance(no) > CONDITIONAL_JUMP_MAX) no = this.push(JUMP, this.distance(no))
    return this.push(code, k, this.distance(yes), this.distance(no))
  }

  decision(decision: Decision): number {
    const place = this.places.get(decision)
    if (place !== undefined && this.distance(place) < CONDITIONAL_JUMP_MAX / 2) return place
    const written = "result" in decision ? this.push(RETURN, decision.result) : this.test(decision)
    this.places.set(decision, written)
    return written
  }

  private test(decision: Exclude<Decision, { readonly result: number }>): number {
    const otherwise = this.decision(decision.otherwise)
    const then = this.decision(decision.then)
    this.branch(decision.code, decision.k, then, otherwise)
    if (decision.mask !== 0xffffffff) this.push(AND, decision.mask)
    return this.push(LOAD, decision.offset)
  }

  /** A binary search for the number, which has been loaded. */
  search(ranges: ReadonlyArray<Range>): number {
    if (ranges.length === 1) return this.decision(ranges[0]!.decision)
    const middle = ranges.length >> 1
    const above = this.search(ranges.slice(middle))
    const below = this.search(ranges.slice(0, middle))
    return this.branch(IF_GREATER_OR_EQUAL, ranges[middle]!.start, above, below)
  }

  load(offset: number): number {
    return this.push(LOAD, offset)
  }
}

const merged = (ranges: ReadonlyArray<Range>): ReadonlyArray<Range> =>
  ranges.filter(({ decision }, index) => index === 0 || ranges[index - 1]!.decision !== decision)

const rewritten = (
  program: ReadonlyArray<Instruction>,
  { architectures, numbers }: Classes
): ReadonlyArray<Instruction> => {
  const evaluator = new Evaluator(program)
  // A number that the program never names stands for all such numbers.
  let other = 0
  while (architectures.includes(other)) other++
  const rangesOf = (architecture: number) =>
    merged(numbers.map((start) => ({ start, decision: evaluator.of(architecture, start) })))
  const same = (a: ReadonlyArray<Range>, b: ReadonlyArray<Range>): boolean =>
    a.length === b.length &&
    a.every((range, k) => range.start === b[k]!.start && range.decision === b[k]!.decision)
  const rest = rangesOf(other)
  const named = architectures
    .map((architecture) => ({ architecture, ranges: rangesOf(architecture) }))
    .filter(({ ranges }) => !same(ranges, rest))
  const writer = new Writer()
  const block = (ranges: ReadonlyArray<Range>): number => {
    const search = writer.search(ranges)
    return ranges.length === 1 ? search : writer.load(NUMBER)
  }
  let next = block(rest)
  const blocks = named.map(({ architecture, ranges }) => ({ architecture, at: block(ranges) }))
  for (const { architecture, at } of blocks.toReversed())
    next = writer.branch(IF_EQUAL, architecture, at, next)
  writer.load(ARCHITECTURE)
  return writer.instructions
}

/** The same program, or a shorter one that gives the same result for every system call. */
export const shorten = (program: Uint8Array): Uint8Array => {
  const instructions = decode(program)
  const classes = classesOf(instructions)
  if (classes === undefined) return program
  try {
    const shorter = rewritten(instructions, classes)
    return shorter.length < instructions.length ? encode(shorter) : program
  } catch (error) {
    if (error instanceof NotSimple) return program
    throw error
  }
}
