import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Mount } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox, withConfig } from "../support/rootfs.ts"

const run = (options: Container.StartOptions) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, options))

/** The option that is refused before anything is done. */
const refused = (options: Container.StartOptions) =>
  Effect.map(failure("InvalidOption", run({ command: ["true"], ...options })), ({ option }) => option)

suite("Container, what it says of bad input", (effect) => {
  effect("a command that is nowhere: 127, and where it was looked for", function* () {
    const error = yield* failure(
      "CommandFailed",
      run({ command: ["no-such-command"], env: { PATH: "/bin:/opt/x" } })
    )
    assert.equal(error.reason, "NotFound")
    assert.equal(error.exitCode, 127)
    assert.deepEqual(error.searched, ["/bin/no-such-command", "/opt/x/no-such-command"])
    assert.equal(
      error.message,
      "no-such-command: command not found in the image; looked at /bin/no-such-command, /opt/x/no-such-command"
    )
    const absolute = yield* failure("CommandFailed", run({ command: ["/no/such"] }))
    assert.deepEqual([absolute.reason, absolute.searched], ["NotFound", ["/no/such"]])
  })

  effect("a command that is not executable: 126", function* () {
    for (const path of ["/etc/passwd", "/etc", "/etc/passwd/x"]) {
      const error = yield* failure("CommandFailed", run({ command: [path] }))
      assert.equal(error.reason, path === "/etc/passwd/x" ? "NotFound" : "NotExecutable", path)
    }
    const error = yield* failure("CommandFailed", run({ command: ["/etc/passwd"] }))
    assert.equal(error.exitCode, 126)
    assert.match(error.message, /EACCES \(permission denied\)/)
  })

  effect(
    "a command in no format that the kernel executes: 126",
    function* () {
      const { folder } = yield* Berth.Berth
      const image = yield* makeImage(`${folder}/busybox`)
      fs.writeFileSync(`${folder}/busybox/bin/garbage`, "\x7fgarbage", { mode: 0o755 })
      fs.writeFileSync(`${folder}/busybox/bin/orphan`, "#!/no/such/interpreter\n", { mode: 0o755 })
      const error = yield* failure("CommandFailed", Container.run(image, { command: ["garbage"] }))
      assert.deepEqual([error.reason, error.errno], ["NotExecutable", 8])
      const orphan = yield* failure("CommandFailed", Container.run(image, { command: ["orphan"] }))
      assert.equal(orphan.errno, 2)
    },
    { skip: whyNoBusybox }
  )

  effect("the same of a command that is executed in a running container", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["sleep", "1000"] })
    const missing = yield* failure("CommandFailed", Container.exec(container, ["/no/such"]))
    assert.equal(missing.exitCode, 127)
    const cwd = yield* failure("CommandFailed", Container.exec(container, ["true"], { cwd: "/no/such" }))
    assert.equal(cwd.reason, "WorkingDirectory")
    assert.match(cwd.message, /\/no\/such: cannot be the working directory of true: ENOENT/)
    const user = yield* failure("ImageError", Container.exec(container, ["true"], { user: "nobody-here" }))
    assert.equal(user.reason, "NoSuchUser")
    const empty = yield* failure("InvalidOption", Container.exec(container, []))
    assert.equal(empty.option, "command")
  })

  effect("a command below an init fails as it does without", function* () {
    const error = yield* failure("CommandFailed", run({ command: ["/no/such"], init: true }))
    assert.deepEqual([error.reason, error.searched, error.exitCode], ["NotFound", ["/no/such"], 127])
  })

  effect("arguments that are longer than the kernel takes", function* () {
    const one = yield* failure("CommandFailed", run({ command: ["true", "x".repeat(200_000)] }))
    assert.equal(one.reason, "ArgumentsTooLong")
    const many = Array.from({ length: 60 }, () => "x".repeat(100_000))
    const all = yield* failure("CommandFailed", run({ command: ["true", ...many] }))
    assert.equal(all.reason, "ArgumentsTooLong")
    assert.match(all.message, /file or on stdin/)
  })

  effect("a working folder that is a file", function* () {
    const error = yield* failure("CommandFailed", run({ command: ["true"], cwd: "/etc/passwd" }))
    assert.deepEqual([error.reason, error.searched, error.errno], ["WorkingDirectory", ["/etc/passwd"], 20])
  })

  effect("a user or a group that the image does not have", function* () {
    for (const user of ["no-such-user", "root:no-such-group", "root:", ":root", "root:root:root"]) {
      const error = yield* failure("ImageError", run({ command: ["true"], user }))
      assert.equal(error.reason, "NoSuchUser", user)
    }
    const error = yield* failure("ImageError", run({ command: ["true"], user: "no-such-user" }))
    assert.match(error.message, /"no-such-user" is neither in the image's \/etc\/passwd nor a number/)
  })

  effect("nothing to run", function* () {
    for (const command of [undefined, [], [""]])
      assert.equal(yield* refused({ command: command as never }), "command")
    assert.equal(yield* refused({ entrypoint: [], command: [] }), "command")
  })

  effect("NUL anywhere, which no system call can pass", function* () {
    assert.equal(yield* refused({ command: ["echo", "a\0b"] }), "command[1]")
    assert.equal(yield* refused({ env: { A: "a\0b" } }), "env.A")
    assert.equal(yield* refused({ env: { "A\0": "" } }), "env")
    assert.equal(yield* refused({ cwd: "/a\0b" }), "cwd")
    assert.equal(yield* refused({ hostname: "a\0b" }), "hostname")
    assert.equal(yield* refused({ maskedPaths: ["/a\0"] }), "maskedPaths[0]")
    assert.equal(yield* refused({ mounts: [Mount.bind("/a\0", "/b")] }), "mounts[0].source")
    assert.equal(yield* refused({ mounts: [Mount.bind("/a", "/b\0")] }), "mounts[0].target")
    assert.match(yield* refused({ sysctls: { "net.ipv4.ip_forward": "1\0" } }), /^sysctls/)
  })

  effect("NUL in what an image's own configuration says", function* () {
    const image = yield* Image.host
    for (const config of [{ environment: { A: "a\0b" } }, { workingDirectory: "/a\0b" }]) {
      const program = Container.run(withConfig(image, config), { command: ["true"] })
      const error = yield* Effect.flip(program)
      assert.match(error._tag, /^(InvalidOption|ImageError)$/, `${error._tag}: ${error.message}`)
    }
  })

  effect("names and paths of other forms than they have", function* () {
    assert.equal(yield* refused({ env: { "": "x" } }), "env")
    assert.equal(yield* refused({ env: { "A=B": "x" } }), "env")
    assert.equal(yield* refused({ cwd: "relative/path" }), "cwd")
    assert.equal(yield* refused({ cwd: "" }), "cwd")
    for (const hostname of ["", "-", "under_score", "a".repeat(65), "späß", "a b"])
      assert.equal(yield* refused({ hostname }), "hostname", hostname)
    assert.equal(yield* refused({ mounts: [Mount.tmpfs("relative")] }), "mounts[0].target")
    assert.equal(yield* refused({ mounts: [Mount.tmpfs("/")] }), "mounts[0].target")
    assert.equal(yield* refused({ mounts: [Mount.bind("relative", "/x")] }), "mounts[0].source")
    assert.equal(yield* refused({ sysctls: { "../../etc/passwd": "x" } }), "sysctls")
  })

  effect("numbers out of their range", function* () {
    for (const umask of [-1, 0o1000, 1.5, Number.NaN]) assert.equal(yield* refused({ umask }), "umask")
    for (const nofile of [-1, 1.5, { soft: 2, hard: 1 }])
      assert.equal(yield* refused({ rlimits: { nofile } }), "rlimits.nofile")
    assert.equal(yield* refused({ shmSize: "64 parsecs" }), "shmSize")
    assert.match(yield* refused({ upperSize: "big" }), /[sS]ize$/)
    assert.equal(yield* refused({ mounts: [Mount.tmpfs("/x", { size: "-1" })] }), "mounts[0].size")
    assert.match(yield* refused({ mounts: [Mount.tmpfs("/x", { mode: -1 })] }), /^mounts\[0\]\.mode$/)
    assert.match(yield* refused({ mounts: [Mount.tmpfs("/x", { mode: 0o10000 })] }), /^mounts\[0\]\.mode$/)
  })

  effect("limits that cannot be read", function* () {
    const error = yield* failure(
      "InvalidOption",
      run({ command: ["true"], limits: { memory: "12 parsecs" } })
    )
    assert.equal(error.option, "limits.memory")
    assert.match(error.message, /12 parsecs.*256MiB/)
    for (const memory of ["", "MiB", "1e3", "-1", "0x10", "1 Mi B", 0, -1, Number.NaN, "9".repeat(30)])
      assert.equal(yield* refused({ limits: { memory } }), "limits.memory", String(memory))
    for (const cpus of [0, -1, Number.NaN, Number.POSITIVE_INFINITY])
      assert.equal(yield* refused({ limits: { cpus } }), "limits.cpus")
    for (const pids of [0, -1, 1.5, 2 ** 31])
      assert.equal(yield* refused({ limits: { pids } }), "limits.pids")
  })

  effect("a capability or a resource that there is not, with the nearest that there is", function* () {
    const capabilities = { add: ["NET_BIND_SERVCE" as never] }
    const error = yield* failure("InvalidOption", run({ command: ["true"], capabilities }))
    assert.equal(error.option, "capabilities.add")
    assert.match(error.message, /NET_BIND_SERVICE/)
    const rlimits = { nofiles: 1 } as never
    const resource = yield* failure("InvalidOption", run({ command: ["true"], rlimits }))
    assert.match(resource.message, /nofile/)
  })

  effect("a namespace that there is not, or that its holder has not", function* () {
    const image = yield* Image.host
    const holder = yield* Container.start(image, {
      command: ["sleep", "1000"],
      namespaces: { network: "host" }
    })
    assert.match(yield* refused({ namespaces: { network: holder } }), /^namespaces/)
    assert.match(yield* refused({ namespaces: { planet: "new" } as never }), /^namespaces/)
    assert.match(yield* refused({ namespaces: { network: "mine" } as never }), /^namespaces/)
  })

  effect("a namespace of a container that has ended", function* () {
    const image = yield* Image.host
    const holder = yield* Container.start(image, { command: ["true"] })
    yield* holder.exit
    const error = yield* Effect.flip(run({ command: ["true"], namespaces: { network: holder } }))
    assert.match(error._tag, /^(ContainerError|OperationFailed|InvalidOption)$/)
  })

  effect("a signal that there is not", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["sleep", "1000"] })
    for (const signal of ["SIGFOO", "", 0, -1, 65, 1.5, "TERM ", "9x"]) {
      const error = yield* failure("InvalidOption", Container.signal(container, signal))
      assert.equal(error.option, "signal", String(signal))
    }
  })

  effect.asRoot("a kernel parameter that there is not, or that is the host's", function* () {
    const missing = yield* failure(
      "OperationFailed",
      run({ command: ["true"], sysctls: { "net.no.such": "1" } })
    )
    assert.deepEqual([missing.code, missing.operation], ["ENOENT", "sysctl key=net/no/such value=1"])
    const before = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
    const result = yield* Effect.either(run({ command: ["true"], sysctls: { "kernel.panic": "17" } }))
    const after = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
    fs.writeFileSync("/proc/sys/kernel/panic", before)
    assert.equal(after, before, "a container's option has changed a parameter of the whole machine")
    assert.equal(result._tag, "Left")
  })
})
