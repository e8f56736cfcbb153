/** Runs a program as the user nobody, without privileges and without ranges of ids. */
import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { eventually } from "./leftovers.ts"
import { type Ended, ended, root } from "./program.ts"

export const whyNotNobody: string | false =
  process.getuid?.() !== 0
    ? "only root becomes nobody"
    : spawnSync("unshare", ["--user", "true"]).status === 0
      ? false
      : "unshare --user does not work here"

/**
 * Runs a program as nobody, with a new home folder, in a user namespace. The namespace's root runs `first` before, a piece
 * of shell that is empty or ends in `&&`; `namespaces` are the flags of unshare(1) for what it changes.
 */
export const asNobody = async (
  home: string,
  first: string,
  { args, command }: { readonly command: string; readonly args: ReadonlyArray<string> },
  namespaces: ReadonlyArray<string> = []
): Promise<Ended> => {
  fs.mkdirSync(home)
  fs.chownSync(home, 65534, 65534)
  const inner = `${first} exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`
  const child = spawn(
    "unshare",
    ["--user", ...namespaces, "sh", "-c", `read go; exec sh -c '${inner}' sh "$@"`, "sh", command, ...args],
    {
      cwd: root,
      stdio: ["pipe", "pipe", "pipe"],
      env: { PATH: process.env.PATH, HOME: home, TMPDIR: home, XDG_CACHE_HOME: home, DENO_DIR: home }
    }
  )
  const result = ended(child)
  const own = fs.readlinkSync("/proc/self/ns/user")
  assert.ok(await eventually(() => fs.readlinkSync(`/proc/${child.pid}/ns/user`) !== own))
  for (const map of ["uid_map", "gid_map"]) fs.writeFileSync(`/proc/${child.pid}/${map}`, "0 0 65536\n")
  child.stdin.end("go\n")
  return result
}
