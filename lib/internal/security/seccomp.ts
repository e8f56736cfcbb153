/** Turns a seccomp profile in Docker's form into a program for the kernel, compiled by libseccomp. */
import { Buffer } from "node:buffer"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import { isBerthError, OperationFailed, Unsupported } from "../../BerthError.ts"
import { constant, type Operation } from "../../Plan.ts"
import type { SeccompProfile } from "../../Security.ts"
import { type Native, native } from "../system/addon.ts"
import { nativeFix } from "../system/nativePart.ts"
import { nearest } from "../util/didYouMean.ts"
import { EMFILE, ENOENT, errnoName } from "../util/errno.ts"
import { invalid } from "../util/validate.ts"
import { shorten } from "./bpfSearch.ts"
import * as Capabilities from "./capabilities.ts"
import { defaultProfile, strictProfile } from "./seccompDefault.ts"
import { actions, comparisons, decode, flags } from "./seccompProfile.ts"

const architectures =
  "x86 x86_64 x32 arm aarch64 loongarch64 m68k mips mips64 mips64n32 mipsel mipsel64 mipsel64n32 parisc parisc64 ppc ppc64 ppc64le riscv64 s390 s390x sheb sh"
    .split(" ")
    .map((name) => `SCMP_ARCH_${name.toUpperCase()}`)

/** The names of this machine's architecture in Docker's rules and in libseccomp. */
const machines: Readonly<Record<string, readonly [rules: string, library: string]>> = {
  x64: ["amd64", "SCMP_ARCH_X86_64"],
  ia32: ["x86", "SCMP_ARCH_X86"],
  arm64: ["arm64", "SCMP_ARCH_AARCH64"],
  arm: ["arm", "SCMP_ARCH_ARM"],
  loong64: ["loong64", "SCMP_ARCH_LOONGARCH64"],
  ppc64: ["ppc64le", "SCMP_ARCH_PPC64LE"],
  riscv64: ["riscv64", "SCMP_ARCH_RISCV64"],
  s390x: ["s390x", "SCMP_ARCH_S390X"]
}

// The rules that apply on this machine, to a process with these capabilities.

type Rule = NonNullable<SeccompProfile["syscalls"]>[number]
type Condition = NonNullable<Rule["args"]>[number]

const machine = (): readonly [rules: string, library: string] =>
  machines[process.arch] ?? [process.arch, `SCMP_ARCH_${process.arch.toUpperCase()}`]

const isAtLeast = (wanted: string): boolean => {
  const [major, minor] = os
    .release()
    .split(/[^0-9]/)
    .map(Number) as [number, number]
  const [wantedMajor, wantedMinor] = wanted.split(".").map(Number) as [number, number]
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)
}

const has = (set: bigint, capability: string): boolean => {
  const name = capability.replace(/^CAP_/, "")
  const number = Capabilities.names.indexOf(name as never)
  if (number < 0)
    invalid(
      "seccomp",
      capability,
      `a capability of capabilities(7); the nearest is CAP_${nearest(name, Capabilities.names)}`
    )
  return ((set >> BigInt(number)) & 1n) === 1n
}

const applies = ({ excludes, includes }: Rule, set: bigint): boolean => {
  const [arch] = machine()
  const included =
    (includes?.caps ?? []).every((capability) => has(set, capability)) &&
    (!includes?.arches?.length || includes.arches.includes(arch)) &&
    (!includes?.minKernel || isAtLeast(includes.minKernel))
  const excluded =
    (excludes?.caps ?? []).some((capability) => has(set, capability)) ||
    (excludes?.arches ?? []).includes(arch) ||
    (!!excludes?.minKernel && isAtLeast(excludes.minKernel))
  return included && !excluded
}

const architecturesOf = (of: SeccompProfile): ReadonlyArray<string> => {
  const [, native] = machine()
  if (of.architectures?.length && of.archMap?.length)
    invalid("seccomp.architectures", of.architectures, "either architectures or archMap")
  const mapped = of.archMap?.find((entry) => entry.architecture === native)?.subArchitectures ?? []
  const all = [...(of.architectures ?? []), ...mapped]
  for (const given of all)
    if (!architectures.includes(given))
      invalid(
        "seccomp.architectures",
        given,
        `one of seccomp(3); the nearest is ${nearest(given, architectures)}`
      )
  return all
}

/** The names of system calls in Berth's own policies. A name that libseccomp does not know is newer than libseccomp. */
const brought = new Set(
  [defaultProfile, strictProfile].flatMap((own) => (own.syscalls ?? []).flatMap(({ names }) => names))
)

/** As in native/addon/seccomp.h. */
export const SECCOMP_NUMBERS_END = 1024

/** The names of all known system calls. */
const known = (): ReadonlyArray<string> => {
  const all = new Set(brought)
  for (let number = 0; number < SECCOMP_NUMBERS_END; number++) all.add(native().seccompName(number))
  all.delete("")
  return [...all]
}

const EPERM = 1

const actionValue = (of: keyof typeof actions, errnoRet: number | null | undefined): number =>
  of === "SCMP_ACT_ERRNO" || of === "SCMP_ACT_TRACE" ? actions[of] + (errnoRet ?? EPERM) : actions[of]

// libseccomp accepts one comparison of an argument in a rule; several become a rule each, as in runc.
const conjunctions = (args: ReadonlyArray<Condition>): ReadonlyArray<ReadonlyArray<Condition>> =>
  new Set(args.map(({ index }) => index)).size === args.length ? [args] : args.map((one) => [one])

interface Single {
  readonly name: string
  readonly action: number
  readonly conditions: ReadonlyArray<Condition>
}

const RULES_MAX = 16384

const rulesOf = (of: SeccompProfile, set: bigint, usual: number): ReadonlyArray<Single> => {
  const all: Array<Single> = []
  for (const one of of.syscalls ?? []) {
    const action = actionValue(one.action, one.errnoRet)
    // libseccomp refuses rules without an effect.
    if (action === usual || !applies(one, set)) continue
    for (const conditions of conjunctions(one.args ?? []))
      for (const name of one.names) all.push({ name, action, conditions })
  }
  return all.length <= RULES_MAX
    ? all
    : invalid("seccomp.syscalls", `${all.length} rules`, `at most ${RULES_MAX}, a name each`)
}

/** A policy in the form of native/addon/seccomp.h. */
const encode = (usual: number, archs: ReadonlyArray<string>, rules: ReadonlyArray<Single>): Uint8Array => {
  const bytes = new Uint8Array(
    12 + archs.length * 68 + rules.reduce((sum, { conditions }) => sum + 80 + conditions.length * 24, 0)
  )
  const view = new DataView(bytes.buffer)
  let at = 0
  const u32 = (number: number): void => {
    view.setUint32(at, number, true)
    at += 4
  }
  const u64 = (number: number): void => {
    view.setBigUint64(at, BigInt(number), true)
    at += 8
  }
  const text = (word: string): void => {
    u32(word.length)
    for (let k = 0; k < word.length; k++) bytes[at++] = word.charCodeAt(k)
  }
  u32(usual)
  u32(archs.length)
  for (const arch of archs) text(arch.replace("SCMP_ARCH_", "").toLowerCase())
  u32(rules.length)
  for (const { action, conditions, name } of rules) {
    u32(action)
    u32(brought.has(name) && action >= actions.SCMP_ACT_LOG && action <= actions.SCMP_ACT_ALLOW ? 1 : 0)
    text(name)
    u32(conditions.length)
    for (const { index, op, value, valueTwo } of conditions) {
      u32(index)
      u32(comparisons[op])
      u64(value)
      u64(valueTwo ?? 0)
    }
  }
  return bytes.subarray(0, at)
}

/** As in native/addon/seccomp.h. */
export const SECCOMP_PROGRAM_MAX = 4096 * 8

const refused = (errno: number, rule: Single | undefined): never => {
  if (errno === EMFILE)
    throw new OperationFailed({
      operation: "seccomp policy",
      index: -1,
      syscall: "memfd_create",
      errno,
      hint: ""
    })
  if (errno === ENOENT && rule !== undefined) {
    if (brought.has(rule.name))
      throw new Unsupported({
        feature: `a seccomp rule for ${rule.name}`,
        why: "this version of libseccomp does not know the system call",
        hint: "Install a newer libseccomp, or leave the rule out"
      })
    return invalid(
      "seccomp.syscalls",
      rule.name,
      `a system call; the nearest is ${nearest(rule.name, known())}`
    )
  }
  return invalid(
    "seccomp.syscalls",
    rule?.name ?? "the profile",
    `rules that libseccomp can compile: it fails with ${errnoName(errno)}`
  )
}

// A plan can be compiled without a Berth, whose start would have reported it.
const addon = (): Native => {
  try {
    return native()
  } catch (cause) {
    throw new Unsupported({
      feature: "seccomp",
      why: `the native part, which compiles the policies, cannot be loaded: ${cause}`,
      hint: nativeFix(),
      cause
    })
  }
}

const compile = ({ policy, rules }: Policy): Uint8Array => {
  const program = new Uint8Array(SECCOMP_PROGRAM_MAX)
  const [length, at] = addon().seccompCompile(policy, program)
  return length < 0 ? refused(-length, rules[at]) : program.subarray(0, length)
}

/** The program in libseccomp's form. */
export const assemble = (of: SeccompProfile, set: bigint): Uint8Array => compile(policyOf(of, set))

/** A compiled policy for a process. */
export interface Filter {
  readonly operation: Operation
  /** Whether the policy is the caller's own. */
  readonly custom: boolean
  /** Whether it asks the program, which must then answer. */
  readonly notifies: boolean
}

/** Compiled filters, by the digest of their policy. */
export type Filters = Map<string, Filter>

const FILTERS_MAX = 64

const remember = (filters: Filters, key: string, make: () => Filter): Filter => {
  const found = filters.get(key)
  if (found !== undefined) return found
  const made = make()
  if (filters.size >= FILTERS_MAX) filters.clear()
  filters.set(key, made)
  return made
}

const policyOf = (of: SeccompProfile, set: bigint) => {
  const usual = actionValue(of.defaultAction, of.defaultErrnoRet)
  const rules = rulesOf(of, set, usual)
  const policy = encode(usual, architecturesOf(of), rules)
  // The default of runc for a profile without flags: the system decides about the processor's mitigations.
  const asked = of.flags?.reduce((sum, one) => sum | flags[one], 0) ?? flags.SECCOMP_FILTER_FLAG_SPEC_ALLOW
  const notifies = [usual, ...rules.map((rule) => rule.action)].includes(actions.SCMP_ACT_NOTIFY)
  const sending = rules.find((rule) => rule.name === "sendmsg" && rule.conditions.length === 0)
  if ((sending?.action ?? usual) === actions.SCMP_ACT_NOTIFY)
    invalid("seccomp", "SCMP_ACT_NOTIFY", "another action for sendmsg, by which the listener itself is sent")
  return { rules, policy, flags: asked, notifies }
}

type Policy = ReturnType<typeof policyOf>

const digest = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex")

const loading = (program: Uint8Array, policy: Policy): Operation => {
  const operation = { op: "seccomp", program, flags: policy.flags } as const
  return policy.notifies ? { ...operation, listener: "seccomp" } : constant({ ...operation, listener: null })
}

const compileFilter = (filters: Filters, of: SeccompProfile, set: bigint, custom: boolean): Filter => {
  const policy = policyOf(of, set)
  return remember(filters, `${digest(policy.policy)} ${policy.flags}`, () => ({
    operation: loading(shorten(compile(policy)), policy),
    custom,
    notifies: policy.notifies
  }))
}

const defaultKey = (set: bigint): string => `default ${set}`

/** The filter of an option, for a process with these capabilities; throws `InvalidOption` and `Unsupported`. */
export const filter = (
  filters: Filters,
  asked: "default" | "unconfined" | SeccompProfile | undefined,
  set: bigint,
  answered: boolean
): Filter | undefined => {
  if (asked === "unconfined") return undefined
  if (asked === undefined || asked === "default")
    return remember(filters, defaultKey(set), () => compileFilter(filters, defaultProfile, set, false))
  if (asked === strictProfile) return compileFilter(filters, strictProfile, set, false)
  const made = compileFilter(filters, decode(asked), set, true)
  if (made.notifies && !answered)
    invalid("onSystemCall", undefined, "a function that answers what the profile's SCMP_ACT_NOTIFY asks")
  return made
}

const DIGEST_BYTES = 64

const readProgram = (path: string): Uint8Array | undefined => {
  try {
    const bytes = fs.readFileSync(path)
    const program = new Uint8Array(bytes.subarray(DIGEST_BYTES))
    return bytes.toString("latin1", 0, DIGEST_BYTES) === digest(program) ? program : undefined
  } catch {
    return undefined
  }
}

/** Keeps a program for the next Berth. If that fails, the next Berth compiles it again. */
const keepProgram = (path: string, program: Uint8Array): void => {
  const temporary = `${path}.${process.pid}`
  try {
    fs.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true, mode: 0o700 })
    fs.writeFileSync(temporary, Buffer.concat([Buffer.from(digest(program), "latin1"), program]), {
      mode: 0o600
    })
    fs.renameSync(temporary, path)
  } catch {
    fs.rmSync(temporary, { force: true })
  }
}

/** The program of a policy, read from `folder`, or compiled and kept there the first time. */
export const kept = (folder: string, of: SeccompProfile, set: bigint): Operation => {
  const policy = policyOf(of, set)
  const path = `${folder}/seccomp/${digest(policy.policy)}`
  const found = readProgram(path)
  const program = found ?? shorten(compile(policy))
  if (found === undefined) keepProgram(path, program)
  return loading(program, policy)
}

/**
 * Makes the filter of the default policy before the first start: compiling it takes 15 ms. If that fails, the start that
 * needs it reports the error.
 */
export const warm = (folder: string, filters: Filters): void => {
  const set = Capabilities.maskOf(Capabilities.defaults)
  try {
    remember(filters, defaultKey(set), () => ({
      operation: kept(folder, defaultProfile, set),
      custom: false,
      notifies: false
    }))
  } catch (error) {
    if (!isBerthError(error)) throw error
  }
}
