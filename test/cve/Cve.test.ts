import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import { tmpdir } from "node:os"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { Berth, Container, Image, WaitFor } from "../../lib/index.ts"
import { programPath } from "../../lib/internal/system/nativePart.ts"
import { failure, suite } from "../support/effect.ts"
import { descendants, isAlive } from "../support/leftovers.ts"
import { makeEvilImage as evil, whyNoBusybox } from "../support/rootfs.ts"
import { waitUntil } from "../support/until.ts"

const skip = whyNoBusybox

const sha256 = (path: string): string => createHash("sha256").update(fs.readFileSync(path)).digest("hex")

// With the sanitizers the init is linked dynamically, and an image with busybox alone has no libraries.
const inits = process.env.BERTH_NATIVE?.includes("sanitize") === true ? [false] : [false, true]

const supervisor = () => programPath("berth-supervisor")

suite("attacks that broke other runtimes", (effect, folder) => {
  effect(
    "CVE-2019-5736: a container that executes /proc/self/exe cannot run or change the supervisor",
    function* () {
      const before = sha256(supervisor())
      const image = yield* evil("5736", (root) => {
        fs.writeFileSync(`${root}/bin/entry`, "#!/proc/self/exe\n", { mode: 0o755 })
        fs.symlinkSync("/proc/self/exe", `${root}/bin/exe`)
      })
      for (const command of ["/bin/entry", "/bin/exe", "/proc/self/exe"]) {
        for (const init of [false, true]) {
          // The command may fail or run; it can only run a sealed copy, which refuses to work.
          const result = yield* Effect.either(Container.run(image, { command: [command], init }))
          if (result._tag === "Right") assert.notEqual(result.right.exitCode, 0)
        }
      }
      assert.equal(sha256(supervisor()), before)
    },
    { skip }
  )

  effect(
    "CVE-2019-5736: a container cannot open the program of a process that joins it for writing",
    function* () {
      const before = sha256(supervisor())
      const image = yield* evil("5736-exec", () => {})
      // The container tries the program of each process in its /proc, again and again.
      const script =
        "echo > /tmp/won; while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in *busybox) ;; *) (echo x >> $p/exe) 2>/dev/null && echo $p >> /tmp/won;; esac; done; done"
      for (const init of inits) {
        const container = yield* Container.start(image, { command: ["sh", "-c", script], init })
        for (let k = 0; k < 25; k++) yield* Container.exec(container, ["true"])
        const { stdout } = yield* Container.exec(container, ["cat", "/tmp/won"])
        assert.equal(stdout, "\n")
      }
      assert.equal(sha256(supervisor()), before)
      const { rootless, supervisor: running } = yield* Berth.Berth
      // Without root the supervisor's links in /proc cannot be read.
      if (rootless) assert.throws(() => fs.readlinkSync(`/proc/${running.pid}/exe`), /EACCES/)
      else assert.match(fs.readlinkSync(`/proc/${running.pid}/exe`), /^\/memfd:berth-supervisor/)
      assert.throws(() => fs.openSync(`/proc/${running.pid}/exe`, "r+"), /ETXTBSY|EPERM|EACCES/)
    },
    { skip }
  )

  effect(
    "CVE-2016-9962: a container cannot read the descriptors or the environment of a process that joins it",
    function* () {
      const image = yield* evil("9962", () => {})
      const script =
        "echo > /tmp/seen; while :; do for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in berth*) ls $p/fd/ >> /tmp/seen 2>/dev/null; cat $p/environ >> /tmp/seen 2>/dev/null;; esac; done; done"
      const container = yield* Container.start(image, {
        command: ["sh", "-c", script],
        capabilities: { add: ["SYS_PTRACE"] }
      })
      for (let k = 0; k < 25; k++) yield* Container.exec(container, ["true"])
      const { stdout } = yield* Container.exec(container, ["cat", "/tmp/seen"])
      assert.equal(stdout, "\n")
    },
    { skip }
  )

  effect(
    "CVE-2024-21626: a descriptor of the program or the supervisor cannot be a working directory",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, { command: ["sleep", "1000"] })
      yield* Effect.acquireRelease(
        Effect.sync(() => Array.from({ length: 20 }, () => fs.openSync("/", "r"))),
        (leaked) => Effect.sync(() => leaked.map((fd) => fs.closeSync(fd)))
      )
      for (let fd = 3; fd <= 40; fd++) {
        for (const cwd of [`/proc/self/fd/${fd}`, `/proc/self/fd/${fd}/..`, `/dev/fd/${fd}`]) {
          for (const attempt of [
            Container.run(image, { command: ["true"], cwd }),
            Container.exec(container, ["true"], { cwd })
          ]) {
            const error = yield* failure("CommandFailed", attempt)
            assert.equal(error.reason, "WorkingDirectory", cwd)
          }
        }
      }
    }
  )

  effect(
    "CVE-2024-21626: a working directory that is a link to a descriptor is refused",
    function* () {
      const image = yield* evil("21626", (root) => {
        for (let fd = 3; fd <= 20; fd++) fs.symlinkSync(`/proc/self/fd/${fd}`, `${root}/fd${fd}`)
      })
      for (let fd = 3; fd <= 20; fd++) {
        const listed = Container.run(image, { command: ["ls", "-a", "../../.."], cwd: `/fd${fd}` })
        assert.equal((yield* failure("CommandFailed", listed)).reason, "WorkingDirectory")
      }
    },
    { skip }
  )

  effect(
    "CVE-2022-29162, CVE-2022-27649, CVE-2022-27650: run and exec give no inheritable capabilities, whatever the user",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, { command: ["sleep", "1000"] })
      for (const user of ["0", "1000"]) {
        for (const capabilities of [{}, { add: ["SYS_ADMIN"] }] as const) {
          const command = ["grep", "CapInh", "/proc/self/status"]
          const options = { user, capabilities }
          const results = [
            yield* Container.run(image, { command, ...options }),
            yield* Container.exec(container, command, options)
          ]
          for (const { stdout } of results) assert.equal(stdout, "CapInh:\t0000000000000000\n")
        }
      }
    }
  )

  for (const [name, target] of [
    ["a link to a file of the kernel", "/proc/sys/kernel/core_pattern"],
    ["a link to a file of the image", "/etc/passwd"],
    ["a link to nowhere", "/no/where"]
  ] as const) {
    effect(
      `CVE-2025-31133: masked paths stay masked where the image's /dev/null is ${name}`,
      function* () {
        const before = fs.readFileSync("/proc/sys/kernel/core_pattern", "utf8")
        const image = yield* evil(`31133-${target.replaceAll("/", "-")}`, (root) => {
          fs.mkdirSync(`${root}/dev`)
          fs.symlinkSync(target, `${root}/dev/null`)
        })
        const script =
          "echo x > /proc/keys; echo x > /proc/timer_list; cat /proc/keys /proc/timer_list | wc -c; stat -c %t:%T /dev/null /proc/keys; (echo y > /proc/sys/kernel/core_pattern) 2>/dev/null || echo refused"
        const { stdout } = yield* Container.run(image, { command: ["sh", "-c", script] })
        assert.equal(stdout, "0\n1:3\n1:3\nrefused\n")
        assert.equal(fs.readFileSync("/proc/sys/kernel/core_pattern", "utf8"), before)
      },
      { skip }
    )
  }

  effect(
    "CVE-2025-52565: links at the image's /dev/console and /dev/pts are not followed to the host",
    function* () {
      const host = `${folder()}/host-52565`
      fs.mkdirSync(host, { recursive: true })
      const image = yield* evil("52565", (root) => {
        fs.mkdirSync(`${root}/dev`)
        fs.symlinkSync(`${host}/console`, `${root}/dev/console`)
        fs.symlinkSync(host, `${root}/dev/pts`)
      })
      const { stdout } = yield* Container.run(image, {
        command: ["sh", "-c", "[ -L /dev/pts ] || echo folder"]
      })
      assert.equal(stdout, "folder\n")
      assert.deepEqual(fs.readdirSync(host), [])
    },
    { skip }
  )

  for (const where of ["/dev", "/proc", "/sys"]) {
    effect(
      `CVE-2026-41579, CVE-2026-47766, CVE-2019-16884: a link at the image's ${where} to a host folder leaves that folder empty`,
      function* () {
        const name = `41579${where.replace("/", "-")}`
        const host = `${folder()}/host-${name}`
        fs.mkdirSync(host, { recursive: true })
        const image = yield* evil(name, (root) => {
          fs.symlinkSync(host, `${root}${where}`)
        })
        yield* failure("OperationFailed", Container.run(image, { command: ["true"] }))
        assert.deepEqual(fs.readdirSync(host), [])
        assert.ok(!fs.readFileSync("/proc/self/mounts", "utf8").includes(host))
      },
      { skip }
    )
  }

  effect(
    "CVE-2019-16884: an image whose /proc is a link is refused",
    function* () {
      const before = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
      const image = yield* evil("16884", (root) => {
        fs.mkdirSync(`${root}/elsewhere`)
        fs.symlinkSync("/elsewhere", `${root}/proc`)
      })
      const command = ["sh", "-c", "echo 1 > /proc/sys/kernel/panic"]
      const error = yield* failure("OperationFailed", Container.run(image, { command }))
      assert.match(error.message, /\/proc is a symbolic link/)
      assert.equal(fs.readFileSync("/proc/sys/kernel/panic", "utf8"), before)
    },
    { skip }
  )

  effect(
    "CVE-2021-30465: a mount's target stays inside the root through links and dots",
    function* () {
      const host = `${folder()}/host-30465`
      fs.mkdirSync(host, { recursive: true })
      const image = yield* evil("30465", (root) => {
        fs.symlinkSync(host, `${root}/absolute`)
        fs.symlinkSync("../../../../../../../../..", `${root}/up`)
        fs.symlinkSync(`/up${host}`, `${root}/both`)
      })
      for (const target of ["/absolute", "/absolute/new", `/up${host}`, "/both/new", `/../../..${host}/x`]) {
        yield* Effect.either(Container.run(image, { command: ["true"], mounts: [{ type: "tmpfs", target }] }))
        yield* Effect.either(Container.run(image, { command: ["true"], cwd: target }))
        assert.deepEqual(fs.readdirSync(host), [], target)
      }
    },
    { skip }
  )

  effect(
    "CVE-2026-30892, CVE-2024-40635: a user id that is malformed or too large is refused, and none wraps around to root",
    function* () {
      const image = yield* evil("30892", (root) => {
        fs.appendFileSync(`${root}/etc/passwd`, "wide:x:4294967296:0::/:/bin/sh\nminus:x:-1:0::/:/bin/sh\n")
      })
      const container = yield* Container.start(image, { command: ["sleep", "1000"] })
      const who = (user: string) => [
        Container.run(image, { command: ["id", "-u"], user }),
        Container.exec(container, ["id", "-u"], { user })
      ]
      for (const user of [
        "1x",
        "-1",
        "4294967295",
        "4294967296",
        "4294967297",
        " 0",
        "0 ",
        "+1",
        "0x1",
        "01",
        "1:-1",
        "1:4294967296",
        "wide",
        "minus",
        "1e3"
      ]) {
        for (const attempt of who(user)) {
          const error = yield* failure("ImageError", attempt)
          assert.equal(error.reason, "NoSuchUser", user)
        }
      }
      const { rootless } = yield* Berth.Berth
      // A non-root user has fewer ids.
      for (const uid of rootless ? ["0"] : ["0", "2147483648", "4294967294"]) {
        const user = uid === "0" ? "" : uid
        const { stdout } = yield* Container.run(image, {
          command: ["sh", "-c", "grep Uid: /proc/self/status"],
          user
        })
        assert.equal(stdout, `Uid:\t${uid}\t${uid}\t${uid}\t${uid}\n`)
      }
    },
    { skip }
  )

  effect(
    "a container that blocks an exec in it blocks no other container",
    function* () {
      const image = yield* Image.host
      // A lease blocks every process that opens the file, until its owner gives it up or 45 seconds are over (fcntl(2)).
      const lease = `use Fcntl; open(F, "+<", "/tmp/leased") or die; $SIG{IO} = "IGNORE"; fcntl(F, 1024, F_WRLCK) or die "$!"; $| = 1; print "leased\\n"; sleep 1000`
      const script = `cp /bin/true /tmp/leased && chmod 755 /tmp/leased && exec perl -e '${lease}'`
      const box = yield* Container.start(image, { command: ["sh", "-c", script] })
      yield* WaitFor.log(box, "leased")
      const { supervisor: running } = yield* Berth.Berth
      const before = descendants(running.pid).length
      const waiting = yield* Effect.fork(Effect.either(Container.exec(box, ["/tmp/leased"])))
      yield* waitUntil("the process of the exec", () => descendants(running.pid).length > before)
      const other = yield* Effect.timeoutOption(Container.run(image, { command: ["true"] }), "20 seconds")
      assert.equal(Option.getOrThrow(other).exitCode, 0)
      assert.ok(Option.isNone(yield* Fiber.poll(waiting)), "the exec is still waiting")
      yield* Container.signal(box, "KILL")
      yield* Fiber.join(waiting)
    },
    { skip: fs.existsSync("/usr/bin/perl") ? false : "no perl: apt-get install perl-base" }
  )

  effect("a container reaches no file of the host through the processes in its /proc", function* () {
    const marker = `${folder()}/only-on-the-host`
    fs.writeFileSync(marker, "x")
    const { supervisor: running } = yield* Berth.Berth
    const image = yield* Image.host
    const script = `for p in /proc/[0-9]*; do ls $p/root${marker} $p/cwd${marker} 2>/dev/null; done; ls -d /proc/${running.pid} 2>/dev/null; echo done`
    const { stdout } = yield* Container.run(image, {
      command: ["sh", "-c", script],
      mounts: [{ type: "tmpfs", target: fs.realpathSync(tmpdir()) }]
    })
    assert.equal(stdout, "done\n")
    assert.ok(isAlive(running.pid))
  })
})
