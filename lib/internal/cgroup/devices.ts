/**
 * The devices that may be opened and made: as lines for devices.allow of version 1 (devices.rst), and as the eBPF
 * program that version 2 uses instead (BPF_PROG_TYPE_CGROUP_DEVICE, bpf(2)).
 */
import { statSync } from "node:fs"
import type { DeviceRule } from "../../Cgroup.ts"
import { invalid } from "../util/validate.ts"

export interface Device {
  readonly type: "char" | "block"
  /** Undefined: any. */
  readonly major: number | undefined
  readonly minor: number | undefined
  readonly access: string
}

const char = (major: number, minor: number | undefined): Device => ({
  type: "char",
  major,
  minor,
  access: "rwm"
})

/** The rules of runc and Docker: all nodes may be made, and these may be used. */
export const defaults: ReadonlyArray<Device> = [
  { type: "char", major: undefined, minor: undefined, access: "m" },
  { type: "block", major: undefined, minor: undefined, access: "m" },
  char(1, 3), // null
  char(1, 5), // zero
  char(1, 7), // full
  char(1, 8), // random
  char(1, 9), // urandom
  char(5, 0), // tty
  char(5, 2), // ptmx
  char(136, undefined) // pts
]

// makedev(3), as gnu_dev_major() computes it; a number of at most 53 bits, of which Linux uses 32.
const majorOf = (device: number): number =>
  (Math.floor(device / 2 ** 8) & 0xfff) | (Math.floor(device / 2 ** 32) & ~0xfff)
const minorOf = (device: number): number => (device & 0xff) | (Math.floor(device / 2 ** 12) & ~0xff)

/** The numbers of a node on the host; throws `InvalidOption` if the path is not a device node. */
export const numbersOf = (
  option: string,
  path: string,
  types: ReadonlyArray<"char" | "block">
): { readonly type: "char" | "block"; readonly major: number; readonly minor: number } => {
  const stats = typeof path === "string" && path.startsWith("/") ? noThrow(() => statSync(path)) : undefined
  const type = stats?.isBlockDevice() ? "block" : stats?.isCharacterDevice() ? "char" : undefined
  return stats === undefined || type === undefined || !types.includes(type)
    ? invalid(option, path, `the path of a ${types.join(" or ")} device on the host`)
    : { type, major: majorOf(stats.rdev), minor: minorOf(stats.rdev) }
}

const noThrow = <A>(body: () => A): A | undefined => {
  try {
    return body()
  } catch {
    return undefined
  }
}

const isNumber = (value: number | undefined): boolean =>
  value === undefined || (Number.isInteger(value) && value >= 0 && value < 2 ** 31)

const access = (option: string, given: string | undefined): string =>
  given === undefined || (/^[rwm]{1,3}$/.test(given) && new Set(given).size === given.length)
    ? (given ?? "rwm")
    : invalid(`${option}.access`, given, 'some of the letters "rwm"')

/** Throws `InvalidOption`. */
export const parseDevices = (rules: ReadonlyArray<DeviceRule>): ReadonlyArray<Device> => [
  ...defaults,
  ...rules.map((rule, index): Device => {
    const option = `limits.devices[${index}]`
    if ("path" in rule)
      return {
        ...numbersOf(`${option}.path`, rule.path, ["char", "block"]),
        access: access(option, rule.access)
      }
    if (rule.type !== "char" && rule.type !== "block")
      invalid(`${option}.type`, rule.type, '"char" or "block"')
    if (!isNumber(rule.major)) invalid(`${option}.major`, rule.major, "a device's major number")
    if (!isNumber(rule.minor)) invalid(`${option}.minor`, rule.minor, "a device's minor number")
    return {
      type: rule.type,
      major: rule.major,
      minor: rule.minor,
      access: access(option, rule.access)
    }
  })
]

/** The lines for devices.allow, each in a write of its own, after `a` was written to devices.deny. */
export const allowLines = (devices: ReadonlyArray<Device>): ReadonlyArray<string> =>
  devices.map(
    ({ type, major, minor, access }) =>
      `${type === "char" ? "c" : "b"} ${major ?? "*"}:${minor ?? "*"} ${access}`
  )

// linux/bpf.h: r1 points to the context, { u32 access << 16 | type, u32 major, u32 minor }.
const ACCESS = { m: 1, r: 2, w: 4 } as const
const TYPE = { block: 1, char: 2 } as const
const LOAD_32 = 0x61 // BPF_LDX | BPF_MEM | BPF_W
const MOVE_TO_REGISTER = 0xbf // BPF_ALU64 | BPF_MOV | BPF_X
const MOVE = 0xb7 // BPF_ALU64 | BPF_MOV | BPF_K
const AND = 0x57 // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT = 0x77 // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_UNEQUAL = 0x55 // BPF_JMP | BPF_JNE | BPF_K
const EXIT = 0x95 // BPF_JMP | BPF_EXIT

type Instruction = readonly [code: number, destination: number, source: number, offset: number, value: number]

/** Returns 1 for an access that one of the lines allows completely, else 0. */
export const program = (devices: ReadonlyArray<Device>): Uint8Array => {
  const instructions: Array<Instruction> = [
    [LOAD_32, 2, 1, 0, 0], // r2 = type and access
    [MOVE_TO_REGISTER, 3, 2, 0, 0],
    [AND, 2, 0, 0, 0xffff], // r2 = type
    [SHIFT_RIGHT, 3, 0, 0, 16], // r3 = access
    [LOAD_32, 4, 1, 4, 0], // r4 = major
    [LOAD_32, 5, 1, 8, 0] // r5 = minor
  ]
  for (const { type, major, minor, access } of devices) {
    const allowed = [...access].reduce((all, letter) => all | ACCESS[letter as keyof typeof ACCESS], 0)
    const tests: Array<(offset: number) => Instruction> = [
      (offset) => [JUMP_UNEQUAL, 2, 0, offset, TYPE[type]],
      () => [MOVE_TO_REGISTER, 6, 3, 0, 0],
      () => [AND, 6, 0, 0, 7 & ~allowed],
      (offset) => [JUMP_UNEQUAL, 6, 0, offset, 0],
      ...(major === undefined ? [] : [(offset: number): Instruction => [JUMP_UNEQUAL, 4, 0, offset, major]]),
      ...(minor === undefined ? [] : [(offset: number): Instruction => [JUMP_UNEQUAL, 5, 0, offset, minor]])
    ]
    // Jumps over the remaining tests, the move and the exit.
    tests.forEach((test, index) => {
      instructions.push(test(tests.length - index - 1 + 2))
    })
    instructions.push([MOVE, 0, 0, 0, 1], [EXIT, 0, 0, 0, 0])
  }
  instructions.push([MOVE, 0, 0, 0, 0], [EXIT, 0, 0, 0, 0])
  const bytes = new Uint8Array(instructions.length * 8)
  const view = new DataView(bytes.buffer)
  instructions.forEach(([code, destination, source, offset, value], index) => {
    view.setUint8(index * 8, code)
    view.setUint8(index * 8 + 1, destination | (source << 4))
    view.setInt16(index * 8 + 2, offset, true)
    view.setInt32(index * 8 + 4, value, true)
  })
  return bytes
}
