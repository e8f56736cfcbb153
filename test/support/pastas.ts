/** The processes of pasta that a supervisor has started. */
import * as fs from "node:fs"

const statOf = (pid: string): string => {
  try {
    return fs.readFileSync(`/proc/${pid}/stat`, "utf8")
  } catch {
    return "" // It has ended.
  }
}

/** The name of its file, of which there may be one for newer processors. */
const NAME = "pasta|passt(\\.avx2)?"

export const pastasOf = (supervisor: number): ReadonlyArray<number> =>
  fs
    .readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => new RegExp(`^\\d+ \\((${NAME})\\) \\S ${supervisor} `).test(statOf(pid)))
    .map(Number)

const NET_ADMIN = 12n
const SYS_ADMIN = 21n

/** What a process could do to the machine: its ids, those of its user namespace, its rights besides those of pasta, the namespaces that it does not share. */
export const confinementOf = (pid: number) => {
  const status = fs.readFileSync(`/proc/${pid}/status`, "utf8")
  const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)![1]!.split(/\s+/)
  const map = (name: string) => fs.readFileSync(`/proc/${pid}/${name}`, "utf8").trim().split(/\s+/).join(" ")
  const link = (of: number | "self", name: string) => fs.readlinkSync(`/proc/${of}/ns/${name}`)
  const allowed = (1n << NET_ADMIN) | (1n << SYS_ADMIN)
  return {
    ids: [...new Set([...field("Uid"), ...field("Gid")])],
    maps: [map("uid_map"), map("gid_map")],
    more: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].filter(
      (name) => (BigInt(`0x${field(name)[0]}`) & ~allowed) !== 0n
    ),
    noNewPrivileges: field("NoNewPrivs")[0],
    filtered: field("Seccomp")[0],
    otherNamespaces: ["user", "mnt", "ipc", "uts"].filter((name) => link(pid, name) !== link("self", name))
  }
}
