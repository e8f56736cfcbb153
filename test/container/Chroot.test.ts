import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { allowTime, makeTemporaryFolder, remove, whyNoContainers, whyNotRoot } from "../support/effect.ts"
import { commandOf, ended, root } from "../support/program.ts"

const whyNot =
  whyNoContainers || whyNotRoot || (fs.existsSync("/usr/bin/perl") ? false : "perl is not installed")

allowTime()

describe("A Berth in a chroot", { skip: whyNot }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    fs.chmodSync(folder, 0o755)
  })
  after(() => remove(folder))

  /** Runs a program in a folder that shows the host's files, entered by chroot(8) in a mount namespace of its own. */
  const chrooted = (name: string, first: string, user: ReadonlyArray<string> = []) => {
    const entered = `${folder}/${name}`
    const state = `${folder}/${name}-berth`
    fs.mkdirSync(entered)
    fs.mkdirSync(state, { mode: 0o700 })
    if (user.length > 0) fs.chownSync(state, 65534, 65534)
    const mounts: Array<string> = []
    for (const entry of fs.readdirSync("/", { withFileTypes: true })) {
      const path = `${entered}/${entry.name}`
      if (entry.isSymbolicLink()) fs.symlinkSync(fs.readlinkSync(`/${entry.name}`), path)
      if (!entry.isDirectory()) continue
      fs.mkdirSync(path)
      mounts.push(`mount --rbind "/${entry.name}" "$0/${entry.name}"`)
    }
    const script = `${[first, ...mounts].join("; ")}; cd "$1"; shift; exec chroot "$0" "$@"`
    const { args, command } = commandOf("chrooted.ts", [state])
    const all = ["--mount", "sh", "-ec", script, entered, root, ...user, command, ...args]
    // chroot(8) changes to "/", which a relative path of this variable is not relative to.
    const native = fs.realpathSync(process.env.BERTH_NATIVE ?? `${root}native/build`)
    const env = { ...process.env, BERTH_NATIVE: native, HOME: state, DENO_DIR: `${state}/deno` }
    return ended(spawn("unshare", all, { cwd: "/", env, stdio: ["ignore", "pipe", "pipe"] }))
  }

  test("runs containers that cannot leave it, if its root is not a mount point", async () => {
    const { code, stderr, stdout } = await chrooted("plain", ":")
    assert.deepEqual([code, stdout], [0, "0 inside \n"], stderr)
  })

  test("runs containers that cannot leave it, if its root is a mount point", async () => {
    const { code, stderr, stdout } = await chrooted("mounted", 'mount --bind "$0" "$0"')
    assert.deepEqual([code, stdout], [0, "0 inside \n"], stderr)
  })

  test("says without root that a chroot has no user namespaces", async () => {
    const user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    const { code, stderr } = await chrooted("user", ":", user)
    assert.notEqual(code, 0)
    assert.match(stderr, /user namespaces: .*EPERM.*This is a chroot/)
  })
})
