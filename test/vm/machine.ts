/** Runs one virtual machine: boots it, reads its output until it powers off, and kills it at a time limit. */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import { pack } from "./checkout.ts"
import { root } from "./image.ts"

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

// Debian's cloud kernel has NVMe and ext4 built in, and needs no initial RAM disk.
const command = (folder: string): ReadonlyArray<string> => {
  const base = root()
  return [
    ...["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"],
    ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
    ...["-kernel", `${base}/vmlinuz`, "-append"],
    [
      ...["root=/dev/nvme0n1", "rw", "init=/usr/sbin/berth-init", "console=ttyS0", "quiet", "panic=-1"],
      ...["mitigations=off", "apparmor=1", "security=apparmor", "systemd.show_status=0"]
    ].join(" "),
    ...disk(`${base}/root.img`, "root", ",snapshot=on"),
    ...disk(`${folder}/checkout.tar`, "checkout", ",readonly=on"),
    ...["-serial", `file:${folder}/console`, "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out"]
  ]
}

/** Boots a machine with these files on top of the checkout, and prints its output as it arrives. */
export const boot = async (extra: Readonly<Record<string, string>>, limitMillis: number): Promise<Ended> => {
  const folder = fs.mkdtempSync(`${os.tmpdir()}/berth-vm-`)
  try {
    await pack(`${folder}/checkout.tar`, folder, extra)
    const machine = spawn("qemu-system-x86_64", command(folder), { stdio: ["ignore", "pipe", "inherit"] })
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
    return { output, console: fs.readFileSync(`${folder}/console`, "utf8").slice(-4000), late }
  } finally {
    fs.rmSync(folder, { recursive: true, force: true })
  }
}
