import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Mount } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox, withConfig } from "../support/rootfs.ts"

const run = (options: Container.StartOptions) =>
  Effect.flatMap(Image.host, (image) => Container.run(image, options))

type Refused = readonly [options: Container.StartOptions, option: string]

const oneOf = <A>(values: ReadonlyArray<A>, of: (value: A) => Container.StartOptions, option: string) =>
  values.map((value): Refused => [of(value), option])

/** Options that are refused before anything is done, each with its name in the error, by the name of the test. */
const refused: Readonly<Record<string, ReadonlyArray<Refused>>> = {
  "a container without a command is refused": [
    ...oneOf([undefined, [], [""]], (command) => ({ command: command as never }), "command"),
    [{ entrypoint: [], command: [] }, "command"]
  ],
  "an option that contains NUL is refused by name": [
    [{ command: ["echo", "a\0b"] }, "command[1]"],
    [{ env: { A: "a\0b" } }, "env.A"],
    [{ env: { "A\0": "" } }, "env"],
    [{ cwd: "/a\0b" }, "cwd"],
    [{ hostname: "a\0b" }, "hostname"],
    [{ maskedPaths: ["/a\0"] }, "maskedPaths[0]"],
    [{ mounts: [Mount.bind("/a\0", "/b")] }, "mounts[0].source"],
    [{ mounts: [Mount.bind("/a", "/b\0")] }, "mounts[0].target"],
    [{ mounts: [Mount.file("/b", "a\0")] }, "mounts[0].text"],
    [{ sysctls: { "net.ipv4.ip_forward": "1\0" } }, "sysctls.net.ipv4.ip_forward"]
  ],
  "a malformed name or path is refused by name": [
    [{ env: { "": "x" } }, "env"],
    [{ env: { "A=B": "x" } }, "env"],
    [{ cwd: "relative/path" }, "cwd"],
    [{ cwd: "" }, "cwd"],
    ...oneOf(
      ["", "-", "under_score", "a".repeat(65), "späß", "a b"],
      (hostname) => ({ hostname }),
      "hostname"
    ),
    [{ mounts: [Mount.tmpfs("relative")] }, "mounts[0].target"],
    [{ mounts: [Mount.tmpfs("/")] }, "mounts[0].target"],
    [{ mounts: [Mount.bind("relative", "/x")] }, "mounts[0].source"],
    [{ sysctls: { "../../etc/passwd": "x" } }, "sysctls"]
  ],
  "a number out of its range is refused by name": [
    ...oneOf([-1, 0o1000, 1.5, Number.NaN], (umask) => ({ umask }), "umask"),
    ...oneOf([-1, 1.5, { soft: 2, hard: 1 }], (nofile) => ({ rlimits: { nofile } }), "rlimits.nofile"),
    [{ shmSize: "64 parsecs" }, "shmSize"],
    [{ upperSize: "big" }, "size"],
    [{ mounts: [Mount.tmpfs("/x", { size: "-1" })] }, "mounts[0].size"],
    ...oneOf([-1, 0o10000], (mode) => ({ mounts: [Mount.tmpfs("/x", { mode })] }), "mounts[0].mode")
  ],
  "a limit that cannot be parsed is refused by name": [
    ...oneOf(
      ["", "MiB", "1e3", "-1", "0x10", "1 Mi B", 0, -1, Number.NaN, "9".repeat(30)],
      (memory) => ({ limits: { memory } }),
      "limits.memory"
    ),
    ...oneOf([0, -1, Number.NaN, Number.POSITIVE_INFINITY], (cpus) => ({ limits: { cpus } }), "limits.cpus"),
    ...oneOf([0, -1, 1.5, 2 ** 31], (pids) => ({ limits: { pids } }), "limits.pids")
  ],
  "an option that cannot be honoured is refused by name": [
    [{ terminal: true, stdin: "inherit" }, "stdin"],
    [{ terminal: true, stdout: "inherit" }, "stdout"],
    [{ terminal: true, stderr: "null" }, "stderr"],
    [{ stdin: "pipe" }, "stdin"],
    [{ stdin: "inherit", input: "x" } as never, "stdin"],
    [{ stdout: "file" as never }, "stdout"],
    [{ maxOutputBytes: Number.NaN } as never, "maxOutputBytes"],
    [{ onOverflow: "drop" } as never, "onOverflow"],
    [{ limits: {}, cgroup: {} as never }, "limits"],
    [{ logs: { folder: "/tmp/logs" }, stdout: "inherit", stderr: "null" }, "logs"],
    [{ logs: { folder: "/tmp/logs", maxFiles: 0 } }, "logs.maxFiles"],
    [{ logs: { folder: "/tmp/logs", maxBytes: -1 } }, "logs.maxBytes"]
  ],
  "an unknown namespace is refused": [
    [{ namespaces: { planet: "new" } as never }, "namespaces"],
    [{ namespaces: { network: "mine" } as never }, "namespaces.network"]
  ]
}

suite("Container: invalid input", (effect) => {
  for (const [name, rows] of Object.entries(refused))
    effect(name, function* () {
      for (const [options, option] of rows) {
        const error = yield* failure("InvalidOption", run({ command: ["true"], ...options }))
        assert.equal(error.option, option, error.message)
      }
    })

  effect("a command that is not found fails with exit code 127 and the paths that were tried", function* () {
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

  effect("a command that is not executable fails with exit code 126", function* () {
    for (const [path, reason] of [
      ["/etc/passwd", "NotExecutable"],
      ["/etc", "NotExecutable"],
      ["/etc/passwd/x", "NotFound"]
    ] as const)
      assert.equal((yield* failure("CommandFailed", run({ command: [path] }))).reason, reason, path)
    const error = yield* failure("CommandFailed", run({ command: ["/etc/passwd"] }))
    assert.equal(error.exitCode, 126)
    assert.match(error.message, /EACCES \(permission denied\)/)
  })

  effect(
    "a command in a format that the kernel does not execute fails with its errno",
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

  effect("an exec fails with the same errors as a start", function* () {
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

  effect("a missing command fails below an init as it does without one", function* () {
    const error = yield* failure("CommandFailed", run({ command: ["/no/such"], init: true }))
    assert.deepEqual([error.reason, error.searched, error.exitCode], ["NotFound", ["/no/such"], 127])
  })

  effect("arguments that are longer than the kernel allows fail with ArgumentsTooLong", function* () {
    const one = yield* failure("CommandFailed", run({ command: ["true", "x".repeat(200_000)] }))
    assert.equal(one.reason, "ArgumentsTooLong")
    const many = Array.from({ length: 60 }, () => "x".repeat(100_000))
    const all = yield* failure("CommandFailed", run({ command: ["true", ...many] }))
    assert.equal(all.reason, "ArgumentsTooLong")
    assert.match(all.message, /file or on stdin/)
  })

  effect("a working folder that is a file fails with WorkingDirectory", function* () {
    const error = yield* failure("CommandFailed", run({ command: ["true"], cwd: "/etc/passwd" }))
    assert.deepEqual([error.reason, error.searched, error.errno], ["WorkingDirectory", ["/etc/passwd"], 20])
  })

  effect("a user or a group that the image does not have fails with NoSuchUser", function* () {
    for (const user of ["no-such-user", "root:no-such-group", "root:", ":root", "root:root:root"]) {
      const error = yield* failure("ImageError", run({ command: ["true"], user }))
      assert.equal(error.reason, "NoSuchUser", user)
    }
    const error = yield* failure("ImageError", run({ command: ["true"], user: "no-such-user" }))
    assert.match(error.message, /"no-such-user" is neither in the image's \/etc\/passwd nor a number/)
  })

  effect("an image whose configuration contains NUL is refused", function* () {
    const image = yield* Image.host
    for (const [config, option] of [
      [{ environment: { A: "a\0b" } }, "env.A"],
      [{ workingDirectory: "/a\0b" }, "image.config.workingDirectory[0]"]
    ] as const) {
      const program = Container.run(withConfig(image, config), { command: ["true"] })
      assert.equal((yield* failure("InvalidOption", program)).option, option)
    }
  })

  effect("an error about a limit has its value and an example", function* () {
    const error = yield* failure(
      "InvalidOption",
      run({ command: ["true"], limits: { memory: "12 parsecs" } })
    )
    assert.equal(error.option, "limits.memory")
    assert.match(error.message, /12 parsecs.*256MiB/)
  })

  effect("an unknown capability or resource is refused with the nearest name", function* () {
    const capabilities = { add: ["NET_BIND_SERVCE" as never] }
    const error = yield* failure("InvalidOption", run({ command: ["true"], capabilities }))
    assert.equal(error.option, "capabilities.add")
    assert.match(error.message, /NET_BIND_SERVICE/)
    const rlimits = { nofiles: 1 } as never
    const resource = yield* failure("InvalidOption", run({ command: ["true"], rlimits }))
    assert.match(resource.message, /nofile/)
  })

  effect("a namespace that the other container does not have is refused", function* () {
    const image = yield* Image.host
    const holder = yield* Container.start(image, {
      command: ["sleep", "1000"],
      namespaces: { network: "host" }
    })
    const sharing = run({ command: ["true"], namespaces: { network: holder } })
    assert.equal((yield* failure("InvalidOption", sharing)).option, "namespaces.network")
  })

  effect("a namespace of a container that has ended is refused", function* () {
    const image = yield* Image.host
    const holder = yield* Container.start(image, { command: ["true"] })
    yield* holder.exit
    const sharing = run({ command: ["true"], namespaces: { network: holder } })
    assert.equal((yield* failure("OperationFailed", sharing)).code, "ESRCH")
  })

  effect("an unknown signal is refused", function* () {
    const image = yield* Image.host
    const container = yield* Container.start(image, { command: ["sleep", "1000"] })
    for (const signal of ["SIGFOO", "", 0, -1, 65, 1.5, "TERM ", "9x"]) {
      const error = yield* failure("InvalidOption", Container.signal(container, signal))
      assert.equal(error.option, "signal", String(signal))
    }
  })

  effect.asRoot("a kernel parameter that does not exist, or belongs to the host, is refused", function* () {
    const missing = yield* failure(
      "OperationFailed",
      run({ command: ["true"], sysctls: { "net.no.such": "1" } })
    )
    assert.deepEqual([missing.code, missing.operation], ["ENOENT", "sysctl key=net/no/such value=1"])
    const before = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
    const hosts = run({ command: ["true"], sysctls: { "kernel.panic": "17" } })
    const result = yield* Effect.either(hosts)
    const after = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
    fs.writeFileSync("/proc/sys/kernel/panic", before)
    assert.equal(after, before, "a container's option has changed a parameter of the whole machine")
    assert.equal((yield* failure("InvalidOption", result)).option, "sysctls")
  })
})
