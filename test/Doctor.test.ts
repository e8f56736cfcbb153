import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import * as Effect from "effect/Effect"
import { Berth, Container, type Doctor, Image } from "../lib/index.ts"
import { allowTime, makeTemporaryFolder, remove, suite, whyNoContainers } from "./support/effect.ts"
import { descendants, eventually } from "./support/leftovers.ts"
import { commandOf, ended, program, root } from "./support/program.ts"

const bin = "bin.ts"

const of = (report: { readonly checks: ReadonlyArray<Doctor.Check> }, name: Doctor.Name): Doctor.Check => {
  const check = report.checks.find((one) => one.name === name)
  assert.ok(check, `no check of ${name}`)
  return check
}

const installed = (...paths: ReadonlyArray<string>): boolean => paths.some((path) => fs.existsSync(path))

suite("Doctor", (effect) => {
  effect("says of a machine on which containers run that they do", () =>
    Effect.gen(function* () {
      const report = yield* Berth.doctor
      assert.ok(report.ready)
      assert.equal(report.rootless, false)
      for (const name of ["kernel", "namespaces", "overlay", "seccomp"] as const)
        assert.equal(of(report, name).status, "ok", of(report, name).detail)
      for (const kind of ["mount", "pid", "uts", "ipc", "network", "cgroup", "user", "time"])
        assert.match(of(report, "namespaces").detail, new RegExp(`\\b${kind}\\b`))
      // What a container of other ids finds as well.
      const other = yield* Effect.either(
        Effect.scoped(
          Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"], userns: "auto" }))
        )
      )
      assert.equal(of(report, "idmapped mounts").status === "ok", other._tag === "Right", String(other))
    })
  )

  effect("gives a fix for each thing that is missing, and for none that is there", () =>
    Effect.gen(function* () {
      const report = yield* Berth.doctor
      for (const { fix, name, status } of report.checks)
        assert.equal(fix !== undefined, status !== "ok", `${name} is ${status}: ${fix}`)
      const pasta = of(report, "pasta")
      if (pasta.status !== "ok") assert.equal(pasta.fix, "apt-get install passt")
      assert.equal(pasta.status === "ok", installed("/usr/bin/pasta", "/usr/local/bin/pasta"))
    })
  )

  effect("is a table as text", () =>
    Effect.gen(function* () {
      const report = yield* Berth.doctor
      const text = String(report)
      for (const { fix, name, status } of report.checks) {
        assert.match(text, new RegExp(`^${status} +${name} `, "m"))
        if (fix !== undefined) assert.ok(text.includes(`> ${fix.split("\n")[0]}`))
      }
      assert.match(text, /Containers can be started as root\.$/)
    })
  )

  effect("leaves no folder and no process", () =>
    Effect.gen(function* () {
      const processes = descendants(process.pid)
      yield* Berth.doctor
      assert.deepEqual(
        descendants(process.pid).filter((pid) => !processes.includes(pid)),
        []
      )
      assert.deepEqual(
        ["/var/lib", "/var/lib/berth"]
          .filter((folder) => fs.existsSync(folder))
          .flatMap((folder) => fs.readdirSync(folder))
          .filter((name) => name.startsWith(".berth-doctor-")),
        []
      )
    })
  )
})

allowTime()

describe("berth doctor", { skip: whyNoContainers }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    fs.chmodSync(folder, 0o755)
  })
  after(() => remove(folder))

  test("prints the table, and ends with 0 where containers can be started", async () => {
    const { code, stdout } = await ended(program(bin, ["doctor"]))
    assert.equal(code, 0, stdout)
    assert.match(stdout, /^ok +kernel +Linux /)
  })

  test("says how it is used where it is used in another way", async () => {
    for (const args of [["docter"], ["doctor", "--yaml"]]) {
      const { code, stderr, stdout } = await ended(program(bin, args, { stdio: ["ignore", "pipe", "pipe"] }))
      assert.deepEqual([code, stdout], [2, ""], args.join(" "))
      assert.match(stderr, /Usage: berth doctor/)
    }
  })

  // A user namespace of its own, whose root may forbid further ones and then is no root any more.
  const asNobody = async (
    first: string
  ): Promise<{ readonly code: number | null; readonly report: Doctor.Report }> => {
    const home = fs.mkdtempSync(`${folder}/home-`)
    fs.chownSync(home, 65534, 65534)
    const inner = `${first} exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`
    const { args, command } = commandOf(bin, ["doctor", "--json"])
    const child = spawn(
      "unshare",
      ["--user", "sh", "-c", `read go; exec sh -c '${inner}' sh "$@"`, "sh", command, ...args],
      {
        cwd: root,
        stdio: ["pipe", "pipe", "pipe"],
        env: { PATH: process.env.PATH, HOME: home, TMPDIR: home, XDG_CACHE_HOME: home, DENO_DIR: home }
      }
    )
    const result = ended(child)
    assert.ok(
      await eventually(
        () => fs.readlinkSync(`/proc/${child.pid}/ns/user`) !== fs.readlinkSync("/proc/self/ns/user")
      )
    )
    for (const map of ["uid_map", "gid_map"]) fs.writeFileSync(`/proc/${child.pid}/${map}`, "0 0 65536\n")
    child.stdin.end("go\n")
    const { code, stderr, stdout } = await result
    assert.notEqual(stdout, "", stderr)
    assert.deepEqual(
      fs.readdirSync(home).filter((name) => name.includes("berth")),
      []
    )
    return { code, report: JSON.parse(stdout) }
  }

  const whyNoUserNamespace: string | false =
    spawnSync("unshare", ["--user", "true"]).status === 0 ? false : "unshare --user does not work here"

  test("without root, says what is there for who is not", { skip: whyNoUserNamespace }, async () => {
    const { code, report } = await asNobody("")
    assert.deepEqual([code, report.ready, report.rootless], [0, true, true])
    assert.equal(of(report, "overlay in user namespaces").status, "ok")
    const ranges = of(report, "ranges of ids")
    assert.equal(ranges.status, "missing")
    assert.match(ranges.detail, /nobody has no range in \/etc\/subuid/)
    assert.match(ranges.fix!, /^usermod --add-subuids \d+-\d+ --add-subgids \d+-\d+ nobody$/m)
  })

  test("names the sysctl that takes user namespaces away, and the command that gives them back", {
    skip: whyNoUserNamespace
  }, async () => {
    const { code, report } = await asNobody("echo 0 > /proc/sys/user/max_user_namespaces &&")
    assert.deepEqual([code, report.ready], [1, false])
    const check = of(report, "user namespaces")
    assert.equal(check.status, "missing")
    assert.match(check.fix!, /sysctl -w user\.max_user_namespaces=\d+$/)
  })
})
