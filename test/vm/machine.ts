/** Runs one virtual machine: boots it, reads its output until it powers off, and kills it at a time limit. */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { pack } from "./checkout.ts"
import { type Processor, root } from "./image.ts"

export interface Ended {
  /** The output of the second serial port. */
  readonly output: string
  /** The last output of the kernel and the first process. */
  readonly console: string
  /** Whether it was killed at the time limit. */
  readonly late: boolean
}

const disk = (file: string, id: string, options = ""): ReadonlyArray<string> => [
  ...["-drive", `file=${file},if=none,id=${id},format=raw,cache=unsafe${options}`],
  ...["-device", `nvme,drive=${id},serial=${id}`]
]

/** The emulator, its machine, and the kernel's console. The arm64 machine has one port for all, so its kernel tells only of a panic. */
const machines = {
  x64: {
    emulator: "qemu-system-x86_64",
    machine: ["-machine", "q35", "-cpu", "max"],
    console: ["console=ttyS0", "quiet"]
  },
  arm64: {
    emulator: "qemu-system-aarch64",
    machine: ["-machine", "virt", "-cpu", "max,pauth-impdef=on"],
    console: ["console=ttyAMA0", "loglevel=1"]
  }
} as const

// Debian's cloud kernel has NVMe and ext4 built in, and needs no initial RAM disk.
const command = (processor: Processor, folder: string): ReadonlyArray<string> => {
  const base = root(processor)
  const { console, machine } = machines[processor]
  const output = ["-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"]
  return [
    ...[...machine, "-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048"],
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-kernel", `${base}/vmlinuz`, "-append"],
    [
      ...["root=/dev/nvme0n1", "rw", "init=/usr/sbin/berth-init", ...console, "panic=-1"],
      ...["mitigations=off", "apparmor=1", "security=apparmor", "systemd.show_status=0"]
    ].join(" "),
    ...disk(`${base}/root.img`, "root", ",snapshot=on"),
    ...disk(`${folder}/checkout.tar`, "checkout", ",readonly=on"),
    ...(processor === "arm64" ? [] : ["-serial", `file:${folder}/console`]),
    ...output
  ]
}

/** Boots a machine with these files on top of the checkout, and prints its output as it arrives. */
export const boot = async (
  processor: Processor,
  extra: Readonly<Record<string, string>>,
  limitMillis: number
): Promise<Ended> => {
  const folder = fs.mkdtempSync(`${os.tmpdir()}/berth-vm-`)
  try {
    await pack(processor, `${folder}/checkout.tar`, folder, extra)
    const machine = spawn(machines[processor].emulator, command(processor, folder), {
      stdio: ["ignore", "pipe", "inherit"]
    })
    let output = ""
    let late = false
    const stop = () => machine.kill("SIGKILL")
    const limit = setTimeout(() => {
      late = true
      stop()
    }, limitMillis)
    process.on("SIGINT", stop).on("SIGTERM", stop)
    machine.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text
      process.stdout.write(text.replaceAll("\r", ""))
    })
    try {
      await new Promise<void>((resolve, reject) => machine.on("error", reject).on("close", () => resolve()))
    } finally {
      clearTimeout(limit)
      process.off("SIGINT", stop).off("SIGTERM", stop)
    }
    const console = processor === "arm64" ? output : fs.readFileSync(`${folder}/console`, "utf8")
    return { output, console: console.slice(-4000), late }
  } finally {
    fs.rmSync(folder, { recursive: true, force: true })
  }
}
