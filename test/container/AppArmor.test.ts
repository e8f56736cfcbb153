import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Security } from "../../lib/index.ts"
import { isEnabled } from "../../lib/internal/security/appArmorProfiles.ts"
import { run as runScript, waitUntil } from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { isAlive } from "../support/leftovers.ts"
import { logging } from "../support/logged.ts"
import { firstLine, program } from "../support/program.ts"

const without: string | false = isEnabled() ? false : "this kernel has no AppArmor"
const within: string | false = isEnabled() ? "this kernel has AppArmor" : false

const name = (what: string): string => `berth-test-${process.pid}-${what}`

/** A profile that allows everything except writing below one folder. */
const denying = (profile: string): string => `profile ${profile} flags=(attach_disconnected) {
  file,
  capability,
  network,
  signal,
  deny /tmp/denied/** w,
}
`

const attempts =
  "mkdir -p /tmp/denied /tmp/allowed; for f in denied allowed; do echo x > /tmp/$f/f && echo $f; done 2>/dev/null; cat /proc/self/attr/current"

const loaded = (): ReadonlyArray<string> =>
  fs
    .readFileSync("/sys/kernel/security/apparmor/profiles", "utf8")
    .split("\n")
    .map((line) => line.replace(/ \(.*/, ""))

const run = (appArmor: string | undefined, script: string, options: Container.StartOptions = {}) =>
  runScript(script, { ...options, appArmor })

/** Starts a Berth in a folder, and ends it. */
const another = (folder: string) => Effect.scoped(Effect.provide(Effect.asVoid(Berth.Berth), berthIn(folder)))

suite("AppArmor: disabled in the kernel", (effect) => {
  effect(
    "a kernel without AppArmor refuses a profile by name and starts a container that asks for none",
    function* () {
      const error = yield* failure("Unsupported", run("docker-default", "true"))
      assert.match(error.message, /AppArmor: it is disabled in this kernel/)
      assert.match((yield* failure("Unsupported", Security.appArmor(denying("a")))).message, /disabled/)
      assert.equal((yield* run(undefined, "echo here")).stdout, "here\n")
    },
    { skip: within }
  )

  effect("an invalid name of a profile is refused", function* () {
    for (const wrong of ["", "two words", "a\0b", "x".repeat(257)])
      assert.equal((yield* failure("InvalidOption", run(wrong, "true"))).option, "appArmor")
    assert.throws(() => Security.defaultAppArmor('mine" {'), { _tag: "InvalidOption" })
  })
})

suite("AppArmor", (effect, folder) => {
  effect(
    "a profile denies a container what it says and nothing else",
    function* () {
      const [profile] = yield* Security.appArmor(denying(name("deny")))
      const result = yield* run(profile, attempts)
      assert.equal(result.stdout, `allowed\n${profile} (enforce)\n`, result.stderr)
      assert.equal((yield* run(undefined, attempts)).stdout, "denied\nallowed\nunconfined\n")
    },
    { skip: without }
  )

  effect(
    "a container's profile confines its init, its command and every exec without a profile of its own",
    function* () {
      const [outer, inner] = yield* Security.appArmor(denying(name("outer")) + denying(name("inner")))
      const image = yield* Image.host
      const box = yield* Container.start(image, {
        command: ["sleep", "1000"],
        init: true,
        appArmor: outer
      })
      const current = ["cat", "/proc/self/attr/current"]
      assert.equal((yield* Container.exec(box, current)).stdout, `${outer} (enforce)\n`)
      assert.equal((yield* Container.exec(box, current, { appArmor: inner })).stdout, `${inner} (enforce)\n`)
      const child = fs.readFileSync(`/proc/${box.pid}/task/${box.pid}/children`, "utf8").trim()
      for (const pid of [box.pid, child])
        assert.equal(fs.readFileSync(`/proc/${pid}/attr/current`, "utf8"), `${outer} (enforce)\n`)
    },
    { skip: without }
  )

  effect(
    "Security.defaultAppArmor protects the host's settings even without masked and read-only paths",
    function* () {
      const [profile] = yield* Security.appArmor(Security.defaultAppArmor(name("default")))
      const open = { readonlyPaths: [], maskedPaths: [], capabilities: { add: ["SYS_ADMIN"] } } as const
      const script = [
        "echo other > /proc/sys/kernel/hostname && echo wrote",
        "mount -t tmpfs none /mnt && echo mounted",
        "echo x > /tmp/x && cat /tmp/x",
        "kill -0 $$ && echo signalled"
      ].join("; ")
      const free = yield* run(undefined, script, open)
      assert.equal(free.stdout, "wrote\nmounted\nx\nsignalled\n", free.stderr)
      assert.equal((yield* run(profile, script, open)).stdout, "x\nsignalled\n")
    },
    { skip: without }
  )

  effect(
    "a profile is unloaded when its scope closes, and loading one that is already there fails",
    function* () {
      const text = denying(name("scoped"))
      yield* Effect.scoped(
        Effect.gen(function* () {
          const [profile] = yield* Security.appArmor(text)
          assert.ok(loaded().includes(profile!))
          const error = yield* failure("OperationFailed", Effect.scoped(Security.appArmor(text)))
          assert.equal(error.code, "EEXIST")
          assert.ok(loaded().includes(profile!))
        })
      )
      assert.ok(!loaded().includes(name("scoped")))
    },
    { skip: without }
  )

  effect(
    "the next Berth unloads the profiles of killed programs once no process is confined by them",
    function* () {
      const at = `${folder()}-killed`
      const [used, unused] = ["used", "unused"].map(name)
      const start = (profile: string | undefined) =>
        Effect.promise(async () => {
          const child = program("confined.ts", [at, denying(profile!)], {
            stdio: ["ignore", "pipe", "inherit"]
          })
          const pids = JSON.parse(await firstLine(child)) as Readonly<Record<"pid" | "supervisor", number>>
          return { child, ...pids }
        })
      const programs = yield* Effect.forEach([used, unused], start, { concurrency: 2 })
      process.kill(programs[1]!.supervisor, "SIGKILL")
      for (const { child } of programs) child.kill("SIGKILL")
      // The kernel clears the parent-death signal of a process that enters a profile, so the next Berth also has to end
      // containers without a supervisor.
      const gone = () =>
        programs.every(({ supervisor }) => !isAlive(supervisor)) && !isAlive(programs[0]!.pid)
      yield* waitUntil("the end of both supervisors and of one container", gone)
      assert.ok(loaded().includes(used!) && loaded().includes(unused!))
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Container.start(yield* Image.host, { command: ["sleep", "1000"], appArmor: used })
          yield* another(at)
          assert.deepEqual([loaded().includes(used!), loaded().includes(unused!)], [true, false])
          assert.ok(!isAlive(programs[1]!.pid))
        })
      )
      yield* another(at)
      assert.ok(!loaded().includes(used!))
      assert.deepEqual(fs.readdirSync(`${at}/apparmor`), [])
      fs.rmSync(at, { recursive: true, force: true })
    },
    { skip: without }
  )

  effect(
    "the next Berth keeps a profile of the same name that another program loaded later",
    function* () {
      const text = denying(name("since"))
      const berth = yield* Berth.Berth
      const at = `${folder()}-since`
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Security.appArmor(text)
          fs.cpSync(`${berth.folder}/apparmor`, `${at}/apparmor`, { recursive: true })
        })
      )
      // As after a crash: the record is there, and the profile of that name is a newer one.
      yield* Security.appArmor(text)
      yield* another(at)
      assert.ok(loaded().includes(name("since")))
      assert.deepEqual(fs.readdirSync(`${at}/apparmor`), [])
      fs.rmSync(at, { recursive: true, force: true })
    },
    { skip: without }
  )

  effect(
    "a profile is recorded before it is loaded, so a kill in between leaves nothing behind",
    function* () {
      const berth = yield* Berth.Berth
      const at = `${folder()}-between`
      const noted = `${at}/apparmor/killed.1`
      /** The record of a program that was killed so many seconds ago, and what a Berth that starts then does with it. */
      const sweep = (note: string, secondsAgo: number) =>
        Effect.gen(function* () {
          const left = Date.now() / 1000 - secondsAgo
          fs.mkdirSync(`${at}/apparmor`, { recursive: true })
          fs.writeFileSync(noted, note)
          fs.utimesSync(noted, left, left)
          yield* logging((logged) =>
            Effect.map(another(at), () => assert.deepEqual(logged, [], "a sweep should warn of nothing"))
          )
          return { loaded: loaded().includes(name("between")), noted: fs.existsSync(noted) }
        })
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Security.appArmor(denying(name("between")))
          yield* failure("OperationFailed", Effect.scoped(Security.appArmor(denying(name("between")))))
          const notes = fs.readdirSync(`${berth.folder}/apparmor`)
          assert.equal(notes.length, 1)
          const [first] = fs.readFileSync(`${berth.folder}/apparmor/${notes[0]}`, "utf8").split("\n")
          assert.match(first!, new RegExp(name("between")))
          assert.deepEqual(yield* sweep(first!, 1000), { loaded: true, noted: false })
          assert.deepEqual(yield* sweep(first!, 55), { loaded: false, noted: false })
          // The parser may still be about to load it.
          assert.deepEqual(yield* sweep(first!, 0), { loaded: false, noted: true })
          assert.deepEqual(yield* sweep(first!, 1000), { loaded: false, noted: false })
          assert.deepEqual(yield* sweep("", 0), { loaded: false, noted: false })
        })
      )
      fs.rmSync(at, { recursive: true, force: true })
    },
    { skip: without }
  )

  effect(
    "an error names the missing profile, or what the parser does not understand",
    function* () {
      const error = yield* failure("OperationFailed", run(name("absent"), "true"))
      assert.match(
        error.message,
        /^apparmor profile=berth-test-\d+-absent: write: ENOENT .*Security\.appArmor/
      )
      const wrong = yield* failure("InvalidData", Security.appArmor("profile x { nonsense }"))
      assert.match(wrong.message, /apparmor_parser.*syntax error/is)
    },
    { skip: without }
  )
})
