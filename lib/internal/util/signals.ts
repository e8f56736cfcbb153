/** Signals by name and number: signal(7), the numbers of x86-64 and arm64. */
const names = [
  "HUP",
  "INT",
  "QUIT",
  "ILL",
  "TRAP",
  "ABRT",
  "BUS",
  "FPE",
  "KILL",
  "USR1",
  "SEGV",
  "USR2",
  "PIPE",
  "ALRM",
  "TERM",
  "STKFLT",
  "CHLD",
  "CONT",
  "STOP",
  "TSTP",
  "TTIN",
  "TTOU",
  "URG",
  "XCPU",
  "XFSZ",
  "VTALRM",
  "PROF",
  "WINCH",
  "IO",
  "PWR",
  "SYS"
]

const RTMIN = 34
const RTMAX = 64

/** The number of `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`; undefined for any other text. */
export const signalNumber = (signal: string | number): number | undefined => {
  if (typeof signal === "number" || /^\d+$/.test(signal)) {
    const number = Number(signal)
    return Number.isInteger(number) && number >= 1 && number <= RTMAX ? number : undefined
  }
  const name = signal.toUpperCase().replace(/^SIG/, "")
  const realtime = /^RT(MIN\+|MAX-)(\d+)$/.exec(name)
  if (realtime !== null) {
    const number = realtime[1] === "MIN+" ? RTMIN + Number(realtime[2]) : RTMAX - Number(realtime[2])
    return number >= RTMIN && number <= RTMAX ? number : undefined
  }
  const index = names.indexOf(name)
  return index < 0 ? undefined : index + 1
}

/** `SIGTERM` for 15. */
export const signalName = (number: number): string =>
  number >= RTMIN ? `SIGRTMIN+${number - RTMIN}` : `SIG${names[number - 1] ?? number}`
