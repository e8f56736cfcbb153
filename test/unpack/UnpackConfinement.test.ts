import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync
} from "node:fs"
import { gzipSync } from "node:zlib"
import { sleep } from "../support/leftovers.ts"
import { concat, end, entry, file, folder, hardlink, paxRecords, symlink, tar } from "../support/tar.ts"
import {
  binary,
  check,
  env,
  makeSample,
  mountsOf,
  noise,
  parse,
  reason,
  run,
  text,
  wh
} from "../support/unpack.ts"
import { until } from "../support/until.ts"

check("no entry of a tar reaches out of the layer's folder", (place) => {
  const name = place.base.slice(1)
  for (const path of [
    "../canary",
    "..",
    "a/..",
    "a/../../canary",
    "/../canary",
    "./../canary",
    "a/./.././../canary"
  ]) {
    assert.equal(place.fails("escape", tar(file(path, "pwned"))).path, path)
    place.fails("escape", tar(folder(path)))
    place.fails("escape", tar(symlink(path, "/")))
    place.fails("escape", tar(hardlink("h", path)))
  }
  place.unpack(tar(file(`/${name}/canary`, "inside"), file("///etc//./passwd", "x")))
  assert.equal(place.read(`${name}/canary`), "inside", "an absolute path starts at the layer's root")
  for (const link of ["/", `/${name}`, "..", "../../../../../../..", `../../../../../..//${name}`]) {
    place.unpack(
      tar(symlink("out", link), file("out/canary", "pwned"), wh("out/.wh.gone"), folder("out/dir/"))
    )
    place.unpack(
      tar(symlink("out", link), symlink("two", "out"), file("two/canary", "pwned"), file("two/a/b"))
    )
    const { all } = place.unpack(tar(symlink("out", link), hardlink("stolen", "out/canary")))
    assert.deepEqual(all("hardlink"), ["out/canary stolen"])
  }
  place.unpack(tar(symlink("canary", `/${name}/canary`), file("canary", "replaced")))
  assert.equal(place.read("canary"), "replaced")
  place.unpack(tar(symlink("l", `/${name}/canary`), hardlink("h", "l"), file("h", "not through it")))
  assert.equal(place.read("h"), "not through it")
})

check("a full disk fails with an io error that names the entry and the errno", (place) => {
  mkdirSync(`${place.base}/small`)
  const script = `mount -t tmpfs -o size=1m tmpfs ${place.base}/small && exec ${binary} ${place.base}/small`
  const done = run("unshare", ["--mount", "sh", "-c", script], tar(file("a b", noise(3_000_000))))
  const { error } = parse(done.status, done.stdout, done.stderr)
  assert.deepEqual([error?.kind, error?.errno, error?.call, error?.path], ["io", 28, "write", "a b"])
})

check("invalid arguments fail with a confine error", (place) => {
  for (const args of [
    [],
    ["--what", "/"],
    ["--max-bytes=1x", "/"],
    ["--max-bytes=", "/"],
    ["--compression=lz4", "/"]
  ]) {
    const done = run(binary, args)
    assert.equal(parse(done.status, done.stdout, done.stderr).error?.kind, "confine")
  }
  const done = run(binary, [`${place.base}/missing dir`])
  const { error } = parse(done.status, done.stdout, done.stderr)
  assert.deepEqual([error?.kind, error?.errno, error?.call], ["confine", 2, "open"])
})

const fieldsOf = (pid: number) =>
  new Map(
    readFileSync(`/proc/${pid}/status`, "utf8")
      .split("\n")
      .map((line) => line.split(":\t") as [string, string])
  )

check("the unpacker is confined to its folder before it reads any input", async (place) => {
  mkdirSync(`${place.base}/world`)
  writeFileSync(`${place.base}/world/only`, "")
  // A descriptor that the caller left open by mistake. The unpacker has to close it.
  const leak = openSync(place.base, "r")
  const child = spawn(binary, [`${place.base}/world`], { stdio: ["pipe", "pipe", "inherit", leak], env })
  const gone = new Promise((resolve) => child.on("exit", resolve))
  try {
    const pid = child.pid!
    // The second thread is the last thing that the unpacker starts.
    await until("its second thread", () => fieldsOf(pid).get("Threads") === "2")
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const fields = fieldsOf(Number(thread))
      // CHOWN DAC_OVERRIDE FOWNER FSETID, MKNOD, SETFCAP, and SYS_ADMIN for trusted.*
      const kept = (1n << 0n) | (1n << 1n) | (1n << 3n) | (1n << 4n) | (1n << 21n) | (1n << 27n) | (1n << 31n)
      assert.equal(BigInt(`0x${fields.get("CapEff")}`), kept)
      assert.equal(BigInt(`0x${fields.get("CapPrm")}`), kept)
      assert.equal(BigInt(`0x${fields.get("CapBnd")}`) & ~kept, 0n)
      assert.equal(BigInt(`0x${fields.get("CapInh")}`), 0n)
      assert.equal(fields.get("NoNewPrivs"), "1")
    }
    assert.deepEqual(readdirSync(`/proc/${pid}/root`), ["only"])
    assert.equal(readFileSync(`/proc/${pid}/mountinfo`, "utf8").trim().split("\n").length, 1)
    assert.notEqual(readlinkSync(`/proc/${pid}/ns/net`), readlinkSync("/proc/self/ns/net"))
    const open = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
    assert.deepEqual(
      open.filter((target) => target.startsWith("/") && target !== "/" && !target.startsWith("/dev/")),
      []
    )
    assert.match(readFileSync(`/proc/${pid}/limits`, "utf8"), /Max core file size +0 +0 /)
    child.stdin!.end(tar(file("x")))
    assert.equal(await gone, 0)
  } finally {
    closeSync(leak)
    child.kill("SIGKILL")
    await gone
  }
})

check(
  "an unpacker that is killed at any point leaves no mount, no process and a removable folder",
  async (place) => {
    const blob = gzipSync(concat(makeSample(), end), { level: 1 })
    for (const delay of [0, 2, 5, 10, 20, 40]) {
      const world = `${place.base}/world${delay}`
      mkdirSync(world)
      const child = spawn(binary, ["--compression=gzip", world], { stdio: ["pipe", "ignore", "ignore"], env })
      const gone = new Promise((resolve) => child.on("exit", resolve))
      child.stdin!.on("error", () => {})
      child.stdin!.write(blob.subarray(0, 2_000_000))
      // The kill comes at several moments.
      await sleep(delay)
      child.kill("SIGKILL")
      await gone
      assert.deepEqual(mountsOf(world), [])
      assert.equal(run("rm", ["-r", "--", world]).status, 0)
    }
  }
)

const mapped = ["--user", "--map-root-user"]
const noUserNamespaces =
  reason || (run("unshare", [...mapped, "true"]).status === 0 ? false : "user namespaces can't be made here")

check(
  "in a user namespace of one id, devices are skipped, overlay marks are user.* attributes and owners can be ignored",
  (place) => {
    const archive = tar(
      folder("./"),
      folder("d/"),
      wh("d/.wh..wh..opq"),
      wh(".wh.gone"),
      entry({ name: "null", type: "3", major: 1, minor: 3 }),
      entry({ name: "fifo", type: "6" }),
      file("of-another", "x", { uid: 1000, gid: 1000, mode: 0o640 })
    )
    const inside = (name: string, ...options: ReadonlyArray<string>) => {
      mkdirSync(`${place.base}/${name}`)
      const done = run(
        "unshare",
        [...mapped, binary, "--xattr=user", ...options, `${place.base}/${name}`],
        archive
      )
      return parse(done.status, done.stdout, done.stderr)
    }
    const refused = inside("strict").error
    assert.deepEqual(
      [refused?.kind, refused?.errno, refused?.call, refused?.path],
      ["unsupported", 22, "fchownat", "of-another"]
    )
    const { all, error } = inside("lenient", "--ignore-chown")
    assert.equal(error, undefined)
    assert.deepEqual(all("skipped"), ["null"])
    assert.ok(
      lstatSync(`${place.base}/lenient/gone`).isCharacterDevice(),
      "whiteouts need no privilege since 5.8"
    )
    assert.equal(lstatSync(`${place.base}/lenient/of-another`).mode & 0o7777, 0o640)
    const args = [
      "--format=pax",
      "--xattrs",
      "--xattrs-include=*",
      "--no-recursion",
      "-C",
      `${place.base}/lenient`
    ]
    const records = paxRecords(run("tar", [...args, "-cf", "-", "d"]).stdout)
    assert.equal(text(records.get("SCHILY.xattr.user.overlay.opaque") ?? new Uint8Array()), "y")
  },
  noUserNamespaces
)
