/** The network of this machine, as far as Berth could change it. */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"

/** The links, addresses, routes and firewall of the network namespace of this process, without what counts packets and users. */
export const hostNetwork = (): ReadonlyArray<string> => [
  ...["dev", "route", "ipv6_route", "if_inet6"].map((name) => {
    const text = fs.readFileSync(`/proc/self/net/${name}`, "utf8")
    return name === "dev"
      ? text.replaceAll(/:.*/g, "")
      : text.replaceAll(/\s[0-9a-f]{8}\s+[0-9a-f]{8}\s/g, " ")
  }),
  spawnSync("nft", ["--stateless", "list", "ruleset"], { encoding: "utf8" }).stdout ?? "no nft"
]
