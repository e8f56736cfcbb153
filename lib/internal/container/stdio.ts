/** A process's standard streams: pipes, a terminal, this program's own, or /dev/null. */
import { chownSync } from "node:fs"
import type { ProcessOptions } from "../../Process.ts"
import { type Ids, outside } from "../ids/idMaps.ts"
import { native } from "../system/addon.ts"
import { duplicate, Input, makePipe, makeSocketPair, Output, Typing, takeDescriptor } from "../system/pipe.ts"
import type { Settings } from "./compile.ts"

/** A process's terminal, from Berth's side. */
export interface Terminal {
  readonly resize: (rows: number, columns: number) => void
}

export interface Stdio {
  readonly descriptors: Readonly<Record<string, number>>
  readonly stdin: Input | undefined
  readonly stdout: Output | undefined
  readonly stderr: Output | undefined
  readonly terminal: Terminal | undefined
  /** Gives the pipes to that user, by the ids of a user namespace, so that it can open them by name. */
  readonly give: (ids: Ids, user: { readonly uid: number; readonly gid: number }) => void
  /** Closes the process's ends, which the process has after its start. Throws if its terminal cannot be received. */
  readonly handOver: () => void
  /** Has the outputs flow that are not `"pipe"`: the process never waits for a reader that does not come. */
  readonly flow: () => void
  readonly close: () => void
}

const isTerminal = (options: ProcessOptions): boolean =>
  options.terminal !== undefined && options.terminal !== false

/** The names of the standard streams in a plan, for these options. */
export const stdioNames = (options: ProcessOptions): Settings["stdio"] =>
  isTerminal(options)
    ? { stdin: null, stdout: null, stderr: null }
    : {
        stdin: options.stdin === undefined || options.stdin === "null" ? null : "stdin",
        stdout: options.stdout === "null" ? null : "stdout",
        stderr: options.stderr === "null" ? null : "stderr"
      }

/** The child sends its terminal over a socket; it is received after the start of the process. */
const makeTerminal = (options: ProcessOptions, container: string): Stdio => {
  const [ours, theirs] = makeSocketPair()
  const stdout = new Output(-1, container)
  const stdin = new Typing(-1)
  let fd = -1
  let handedOver = false
  const handOver = (): void => {
    if (handedOver) return
    handedOver = true
    native().close(theirs)
    try {
      fd = takeDescriptor(ours)
      stdout.open(fd)
      stdin.open(duplicate(fd))
    } finally {
      native().close(ours)
    }
  }
  return {
    descriptors: { terminal: theirs },
    stdin,
    stdout,
    stderr: undefined,
    terminal: {
      resize: (rows, columns) => {
        if (!stdout.closed) native().resize(fd, rows, columns)
      }
    },
    give: () => {},
    handOver,
    flow: () => {
      if (options.stdout !== "pipe") stdout.flow()
    },
    close: () => {
      if (!handedOver) for (const end of [ours, theirs]) native().close(end)
      handedOver = true
      stdin.close()
      stdout.close()
    }
  }
}

export const makeStdio = (options: ProcessOptions, container: string): Stdio => {
  if (isTerminal(options)) return makeTerminal(options, container)
  const descriptors: Record<string, number> = {}
  const theirs: Array<number> = []
  const opened: Array<Input | Output> = []
  const output = (name: "stdout" | "stderr", own: number): Output | undefined => {
    if (options[name] === "null") return undefined
    if (options[name] === "inherit") {
      descriptors[name] = own
      return undefined
    }
    const [read, write] = makePipe(0)
    descriptors[name] = write
    theirs.push(write)
    const end = new Output(read, container)
    opened.push(end)
    return end
  }
  const input = (): Input | undefined => {
    if (options.stdin === "inherit") descriptors.stdin = 0
    if (options.stdin !== "pipe") return undefined
    const [write, read] = makePipe(1)
    descriptors.stdin = read
    theirs.push(read)
    const end = new Input(write)
    opened.push(end)
    return end
  }
  const handOver = (): void => {
    for (const fd of theirs.splice(0)) native().close(fd)
  }
  const give: Stdio["give"] = ({ gids, uids }, { gid, uid }) => {
    for (const fd of theirs) chownSync(`/proc/self/fd/${fd}`, outside(uids, uid), outside(gids, gid))
  }
  const close = (): void => {
    handOver()
    for (const end of opened) end.close()
  }
  try {
    const stdin = input()
    const stdout = output("stdout", 1)
    const stderr = output("stderr", 2)
    const flow = (): void => {
      if (options.stdout !== "pipe") stdout?.flow()
      if (options.stderr !== "pipe") stderr?.flow()
    }
    return { descriptors, stdin, stdout, stderr, terminal: undefined, give, handOver, flow, close }
  } catch (error) {
    close()
    throw error
  }
}
