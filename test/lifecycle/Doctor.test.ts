import assert from "node:assert/strict"
import * as fs from "node:fs"
import { after, before, describe, test } from "node:test"
import { gzipSync } from "node:zlib"
import * as Effect from "effect/Effect"
import { Berth, Container, type Doctor, Image } from "../../lib/index.ts"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { list } from "../../lib/internal/util/readFile.ts"
import { asNobody, whyNotNobody } from "../support/asNobody.ts"
import { allowTime, makeTemporaryFolder, remove, suite, whyNoContainers } from "../support/effect.ts"
import { makeTar } from "../support/images.ts"
import { descendants } from "../support/leftovers.ts"
import { commandOf, ended, program } from "../support/program.ts"

const bin = "bin.ts"
const isRoot = process.getuid?.() === 0

const of = (report: { readonly checks: ReadonlyArray<Doctor.Check> }, name: Doctor.Name): Doctor.Check => {
  const check = report.checks.find((one) => one.name === name)
  assert.ok(check, `no check of ${name}`)
  return check
}

const installed = (...paths: ReadonlyArray<string>): boolean => paths.some((path) => fs.existsSync(path))

/** Has Berth use a copy of its native part, changed by `change`, until the scope closes. */
const withNative = (change: (folder: string) => void) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const earlier = process.env.BERTH_NATIVE
      const folder = makeTemporaryFolder()
      for (const name of ["berth.node", "berth-supervisor", "berth-unpack", "libisal.so.2"])
        fs.copyFileSync(programPath(name), `${folder}/${name}`)
      change(folder)
      process.env.BERTH_NATIVE = folder
      return { earlier, folder }
    }),
    ({ earlier, folder }) =>
      Effect.sync(() => {
        if (earlier === undefined) delete process.env.BERTH_NATIVE
        else process.env.BERTH_NATIVE = earlier
        remove(folder)
      })
  ).pipe(Effect.map(({ folder }) => folder))

suite("Doctor", (effect) => {
  effect("the doctor reports a machine that runs containers as ready", function* () {
    const report = yield* Berth.doctor
    assert.ok(report.ready)
    assert.equal(report.rootless, !isRoot)
    const overlay = isRoot ? "overlay" : "overlay in user namespaces"
    for (const name of ["kernel", "namespaces", overlay, "seccomp"] as const)
      assert.equal(of(report, name).status, "ok", of(report, name).detail)
    for (const kind of ["mount", "pid", "uts", "ipc", "network", "cgroup", "user", "time"])
      assert.match(of(report, "namespaces").detail, new RegExp(`\\b${kind}\\b`))
    // The report has to agree with a container that has its own ids.
    const other = yield* Effect.either(
      Effect.scoped(
        Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"], userns: "auto" }))
      )
    )
    assert.equal(of(report, "idmapped mounts").status === "ok", other._tag === "Right", String(other))
  })

  effect("the doctor gives a fix for each check that is not ok, and for no other", function* () {
    const report = yield* Berth.doctor
    for (const { fix, name, status } of report.checks)
      assert.equal(fix !== undefined, status !== "ok", `${name} is ${status}: ${fix}`)
    const pasta = of(report, "pasta")
    if (pasta.status === "missing") assert.equal(pasta.fix, "apt-get install passt")
    assert.equal(pasta.status !== "missing", installed("/usr/bin/pasta", "/usr/local/bin/pasta"))
  })

  effect("the doctor has a line for each native part", function* () {
    const report = yield* Berth.doctor
    const parts = [
      ["addon", "berth.node"],
      ["supervisor", "berth-supervisor"],
      ["unpacker", "berth-unpack"]
    ] as const
    for (const [name, file] of parts) {
      assert.equal(of(report, name).status, "ok", of(report, name).detail)
      assert.equal(of(report, name).detail, programPath(file))
    }
  })

  effect("the doctor and a failed import quote the loader about an unpacker that cannot start", function* () {
    const broken = yield* withNative((folder) => fs.writeFileSync(`${folder}/libisal.so.2`, "no library"))
    const unpacker = of(yield* Berth.doctor, "unpacker")
    assert.deepEqual([unpacker.status, unpacker.required], ["missing", false])
    const said = /error while loading shared libraries: .*libisal\.so\.2: (file too short|invalid ELF header)/
    assert.match(unpacker.detail, said)
    assert.match(unpacker.fix!, /^Set BERTH_NATIVE, which is .*, to the folder native\/build/)
    const archive = `${broken}/root.tar.gz`
    fs.writeFileSync(archive, gzipSync(makeTar({ file: "content" })))
    const error = yield* Effect.flip(Image.import(archive))
    assert.match(error.message, said)
  })

  effect("the doctor names a missing file of the native part", function* () {
    const folder = yield* withNative((copy) => fs.rmSync(`${copy}/berth-unpack`))
    assert.equal(of(yield* Berth.doctor, "unpacker").detail, `${folder}/berth-unpack is missing`)
  })

  effect("a report of the doctor is a table as text", function* () {
    const report = yield* Berth.doctor
    const text = String(report)
    for (const { fix, name, status } of report.checks) {
      assert.match(text, new RegExp(`^${status} +${name} `, "m"))
      if (fix !== undefined) assert.ok(text.includes(`> ${fix.split("\n")[0]}`))
    }
    assert.match(
      text,
      isRoot ? /Containers can be started as root\.$/ : /Containers can be started without root\.$/
    )
  })

  effect("the doctor leaves no folder and no process", function* () {
    const processes = descendants(process.pid)
    yield* Berth.doctor
    assert.deepEqual(
      descendants(process.pid).filter((pid) => !processes.includes(pid)),
      []
    )
    assert.deepEqual(
      ["/var/lib", "/var/lib/berth"].flatMap(list).filter((name) => name.startsWith(".berth-doctor-")),
      []
    )
  })
})

allowTime()

describe("berth doctor", { skip: whyNoContainers }, () => {
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    fs.chmodSync(folder, 0o755)
  })
  after(() => remove(folder))

  test("berth doctor prints the table and ends with 0 when containers can be started", async () => {
    const { code, stdout } = await ended(program(bin, ["doctor"]))
    assert.equal(code, 0, stdout)
    assert.match(stdout, /^ok +kernel +Linux /)
  })

  const doctorAsNobody = async (first: string) => {
    const home = `${folder}/home-${first === "" ? "free" : "bound"}`
    const { code, stderr, stdout } = await asNobody(home, first, commandOf(bin, ["doctor", "--json"]))
    assert.notEqual(stdout, "", stderr)
    assert.deepEqual(
      fs.readdirSync(home).filter((name) => name.includes("berth")),
      []
    )
    return { code, report: JSON.parse(stdout) as Doctor.Report }
  }

  test("berth doctor without root reports what a non-root user has", { skip: whyNotNobody }, async () => {
    const { code, report } = await doctorAsNobody("")
    assert.deepEqual([code, report.ready, report.rootless], [0, true, true])
    assert.equal(of(report, "overlay in user namespaces").status, "ok")
    const ranges = of(report, "ranges of ids")
    assert.equal(ranges.status, "missing")
    assert.match(ranges.detail, /nobody has no range in \/etc\/subuid/)
    assert.match(ranges.fix!, /^usermod --add-subuids \d+-\d+ --add-subgids \d+-\d+ nobody$/m)
  })

  test("berth doctor names the sysctl that disables user namespaces and the command that enables them", {
    skip: whyNotNobody
  }, async () => {
    const { code, report } = await doctorAsNobody("echo 0 > /proc/sys/user/max_user_namespaces &&")
    assert.deepEqual([code, report.ready], [1, false])
    const check = of(report, "user namespaces")
    assert.equal(check.status, "missing")
    assert.match(check.fix!, /sysctl -w user\.max_user_namespaces=\d+$/)
  })
})
