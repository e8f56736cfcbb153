/** The processes that hold a socket, as far as this process may see them: for errors that name them. */
import * as fs from "node:fs"

/** The fields of each line of a file of /proc/net, proc(5). */
export const netLines = (name: string): ReadonlyArray<ReadonlyArray<string>> => {
  try {
    const lines = fs.readFileSync(`/proc/self/net/${name}`, "utf8").split("\n").slice(1)
    return lines.map((line) => line.trim().split(/\s+/))
  } catch {
    return [] // without IPv6
  }
}

/** The states in which a socket has a port for itself: TCP_LISTEN, TCP_CLOSE. */
const HOLDING = { tcp: "0A", udp: "07" }

/** The inodes of the sockets that have a port. */
export const portInodes = (port: number, protocol: "tcp" | "udp"): ReadonlyArray<string> => {
  const hex = port.toString(16).toUpperCase().padStart(4, "0")
  return [protocol, `${protocol}6`]
    .flatMap(netLines)
    .filter(([, local, , state]) => local?.endsWith(`:${hex}`) && state === HOLDING[protocol])
    .map((fields) => fields[9]!)
}

/** The inodes of the Unix sockets that are bound to a path: those whose path ends in the same name. */
export const pathInodes = (path: string): ReadonlyArray<string> => {
  const name = path.slice(path.lastIndexOf("/"))
  return netLines("unix")
    .filter((fields) => `/${fields.slice(7).join(" ")}`.endsWith(name))
    .map((fields) => fields[6]!)
}

/** ` by NAME (pid 1)` for the processes that have one of the sockets, or nothing where none can be seen. */
export const heldBy = (inodes: ReadonlyArray<string>): string => {
  const sockets = new Set(inodes.map((inode) => `socket:[${inode}]`))
  if (sockets.size === 0) return ""
  const holders = fs.readdirSync("/proc").flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return []
    try {
      const links = fs.readdirSync(`/proc/${pid}/fd`).map((fd) => {
        try {
          return fs.readlinkSync(`/proc/${pid}/fd/${fd}`)
        } catch {
          return ""
        }
      })
      if (!links.some((link) => sockets.has(link))) return []
      return [`${fs.readFileSync(`/proc/${pid}/comm`, "utf8").trim()} (pid ${pid})`]
    } catch {
      return [] // another user's, or gone
    }
  })
  return holders.length === 0 ? "" : ` by ${holders.join(", ")}`
}
