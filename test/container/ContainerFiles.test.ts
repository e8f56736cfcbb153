import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Berth, Container, Image, Mount } from "../../lib/index.ts"
import { out, run } from "../support/containers.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"

/** An empty folder on the host, in the Berth's folder. */
const hostFolder = (name: string) =>
  Effect.map(Berth.Berth, ({ folder }) => {
    const path = `${folder}/${name}`
    fs.rmSync(path, { recursive: true, force: true })
    fs.mkdirSync(path, { recursive: true })
    return path
  })

suite("Container: files and mounts", (effect) => {
  effect.asRoot("a container of the host's root changes none of its files", function* () {
    const before = fs.readFileSync("/etc/passwd", "utf8")
    const text = yield* out(
      "echo changed >> /etc/passwd; tail -1 /etc/passwd; rm -rf /etc/hostname /usr/share; echo x > /new"
    )
    assert.equal(text, "changed\n")
    assert.equal(fs.readFileSync("/etc/passwd", "utf8"), before)
    assert.ok(fs.existsSync("/usr/share"))
    assert.ok(!fs.existsSync("/new"))
  })

  for (const upper of ["disk", "memory"] as const) {
    effect(
      `a container with its writable layer ${upper === "disk" ? "on disk" : "in memory"} changes nothing of its image`,
      function* () {
        const { folder } = yield* Berth.Berth
        const image = yield* makeImage(`${folder}/image-${upper}`)
        const digest = () =>
          execFileSync("sh", ["-c", "find . -printf '%p %m %U %s %l\\n' | sort | sha256sum"], {
            cwd: `${folder}/image-${upper}`,
            encoding: "utf8"
          })
        const before = digest()
        const script =
          "echo new > /etc/passwd; rm -r /home; mkdir /home; chmod 700 /etc; cat /etc/passwd; ls -a /home"
        const { stdout } = yield* Container.run(image, { command: ["sh", "-c", script], upper })
        assert.equal(stdout, "new\n.\n..\n")
        assert.equal(digest(), before)
        // The next container starts from the unchanged image.
        const next = yield* Container.run(image, { command: ["head", "-1", "/etc/passwd"], upper })
        assert.equal(next.stdout, "root:x:0:0:root:/root:/bin/sh\n")
      },
      { skip: whyNoBusybox }
    )
  }

  effect("a writable layer in memory holds no more than upperSize", function* () {
    const fill = "head -c 4000000 /dev/zero > /tmp/fill; echo $?; stat -c %s /tmp/fill"
    const { stdout, stderr } = yield* run(fill, { upperSize: "1MiB" })
    const [code, size] = stdout.trim().split("\n")
    assert.equal(code, "1")
    assert.ok(Number(size) <= 1 << 20)
    assert.match(stderr, /space/i)
  })

  effect("a bind shows a folder of the host, and what the container writes is on the host", function* () {
    const source = yield* hostFolder("bound")
    fs.writeFileSync(`${source}/from-host`, "hello\n")
    const mounts = [Mount.bind(source, "/deep/down/data")]
    const text = yield* out("cat /deep/down/data/from-host; echo back > /deep/down/data/from-box", {
      mounts
    })
    assert.equal(text, "hello\n")
    assert.equal(fs.readFileSync(`${source}/from-box`, "utf8"), "back\n")
    assert.ok(!fs.existsSync("/deep"))
  })

  effect.asRoot("a read-only bind, and what is mounted below it, cannot be written to", function* () {
    const source = yield* hostFolder("read-only")
    fs.mkdirSync(`${source}/below`)
    yield* Effect.acquireRelease(
      Effect.sync(() => execFileSync("mount", ["-t", "tmpfs", "tmpfs", `${source}/below`])),
      () => Effect.sync(() => execFileSync("umount", [`${source}/below`]))
    )
    const mounts = [Mount.bind(source, "/data", { readOnly: true })]
    const script = "touch /data/x; echo $?; touch /data/below/x; echo $?; mount -o remount,rw /data; echo $?"
    const codes = (yield* run(script, { mounts })).stdout.trim().split("\n")
    assert.equal(codes.length, 3)
    assert.ok(!codes.includes("0"), String(codes))
    assert.deepEqual(fs.readdirSync(`${source}/below`), [])
    const shallow = [Mount.bind(source, "/data", { recursive: false })]
    const text = yield* out("touch /data/below/x; grep -c ' /data' /proc/self/mounts", { mounts: shallow })
    assert.equal(text, "1\n")
    assert.deepEqual(fs.readdirSync(`${source}/below`), [])
  })

  effect.asRoot("a bind of a single file covers an existing file or makes a new one", function* () {
    const source = yield* hostFolder("file")
    fs.writeFileSync(`${source}/conf`, "mine\n")
    const mounts = [
      Mount.bind(`${source}/conf`, "/etc/passwd", { readOnly: true }),
      Mount.bind(`${source}/conf`, "/opt/a/b/conf")
    ]
    const script = "cat /etc/passwd /opt/a/b/conf; echo no > /etc/passwd; echo yes > /opt/a/b/conf"
    const { stdout } = yield* run(script, { mounts })
    assert.equal(stdout, "mine\nmine\n")
    assert.equal(fs.readFileSync(`${source}/conf`, "utf8"), "yes\n")
  })

  effect("a bind is mounted nosuid and nodev", function* () {
    const source = yield* hostFolder("nosuid")
    const mounts = [Mount.bind(source, "/data")]
    const options = yield* out("grep ' /data ' /proc/self/mounts", { mounts })
    assert.match(options, /nosuid/)
    assert.match(options, /nodev/)
  })

  effect("a tmpfs has the size and mode that it is given", function* () {
    const mounts = [Mount.tmpfs("/mem", { size: "1MiB", mode: 0o750 }), Mount.tmpfs("/plain")]
    const script =
      "stat -c %a /mem /plain; df -k /mem | tail -1 | awk '{print $2}'; head -c 2000000 /dev/zero > /mem/x"
    const { stdout, exitCode } = yield* run(script, { mounts })
    assert.equal(stdout, "750\n1777\n1024\n")
    assert.notEqual(exitCode, 0)
  })

  effect("mounts are made in the order of the list", function* () {
    const source = yield* hostFolder("order")
    fs.writeFileSync(`${source}/file`, "x\n")
    const mounts = [Mount.tmpfs("/a"), Mount.bind(source, "/a/b"), Mount.bind("/etc/hosts", "/a/b/hosts")]
    assert.equal(yield* out("cat /a/b/file; ls /a /a/b", { mounts }), "x\n/a:\nb\n\n/a/b:\nfile\nhosts\n")
  })

  effect("a file with a given text is read-only, in memory, and not in the printed plan", function* () {
    const { folder } = yield* Berth.Berth
    const image = yield* makeImage(`${folder}/given`)
    const mounts = [
      Mount.file("/run/secrets/one/hosts", Redacted.make("hidden words\n")),
      Mount.file("/etc/hosts", "hers\n")
    ]
    const script = "cat /run/secrets/one/hosts /etc/hosts; echo x > /run/secrets/one/hosts; ls /dev/shm"
    const box = yield* Container.start(image, { mounts, command: ["sh", "-c", script] })
    const text = Stream.mkString(Stream.decodeText(box.stdout))
    assert.equal(yield* text, "hidden words\nhers\n")
    assert.match(yield* Stream.mkString(Stream.decodeText(box.stderr)), /Read-only file system/)
    assert.ok(!String(box.plan).includes("hidden"))
    assert.ok(!JSON.stringify(box.plan).includes("hidden"))
    assert.deepEqual(fs.readdirSync(box.state.base.upper!, { recursive: true }), [])
  })

  effect("a file with a given text has an owner and a mode of the container", function* () {
    const mounts = [Mount.file("/plain", "x"), Mount.file("/owned", "x", { uid: 7, gid: 8, mode: 0o640 })]
    const script = "stat -c %u:%g:%a /plain /owned"
    assert.equal(yield* out(script, { mounts }), "0:0:444\n7:8:640\n")
    if (process.getuid?.() !== 0) return
    assert.equal(yield* out(script, { mounts, userns: "auto" }), "0:0:444\n7:8:640\n")
    const beyond = [Mount.file("/owned", "x", { uid: 4_000_000_000 })]
    const error = yield* failure("OperationFailed", run(script, { mounts: beyond, userns: "auto" }))
    assert.match(error.message, /has no user 4000000000/)
  })

  effect("a read-only root cannot be written to, and the mounts in it can", function* () {
    const options = { readOnly: true, mounts: [Mount.tmpfs("/tmp")] }
    const script =
      "touch /x /etc/x; echo $?; touch /tmp/x /dev/shm/x && echo ok; mount -o remount,rw /; echo $?"
    const { stdout } = yield* run(script, options)
    const [root, mounts, remount] = stdout.trim().split("\n")
    assert.notEqual(root, "0")
    assert.equal(mounts, "ok")
    assert.notEqual(remount, "0")
  })

  effect("a container can write neither kernel parameters nor sysrq-trigger", function* () {
    const before = fs.readFileSync("/proc/sys/kernel/panic", "utf8")
    const targets = [
      "/proc/sys/kernel/panic",
      "/proc/sysrq-trigger",
      "/proc/sys/vm/drop_caches",
      "/proc/irq/x"
    ]
    const script = targets.map((path) => `(echo 1 > ${path}) 2>/dev/null; echo $?`).join("; ")
    const codes = (yield* run(script)).stdout.trim().split("\n").map(Number)
    assert.equal(codes.filter((code) => code === 0).length, 0)
    assert.equal(codes.length, targets.length)
    assert.equal(fs.readFileSync("/proc/sys/kernel/panic", "utf8"), before)
  })

  effect("masked paths are empty, and the masks cannot be unmounted", function* () {
    const script =
      "for f in kcore keys timer_list interrupts; do [ -e /proc/$f ] && cat /proc/$f | wc -c; done; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v :; umount /proc/keys; echo $?"
    const { stdout } = yield* run(script)
    const lines = stdout.trim().split("\n")
    assert.notEqual(lines.pop(), "0")
    assert.deepEqual(
      lines.filter((line) => line !== "0" && line !== ""),
      []
    )
    assert.ok(lines.length > 0)
  })

  effect.asRoot("maskedPaths and readonlyPaths replace the default lists", function* () {
    const options = { maskedPaths: ["/etc/passwd", "/usr/share", "/no/such"], readonlyPaths: ["/etc"] }
    const script =
      "cat /etc/passwd | wc -c; ls /usr/share | wc -l; touch /etc/x; echo $?; touch /opt/x; echo $?"
    const { stdout } = yield* run(script, options)
    assert.deepEqual(stdout.trim().split("\n"), ["0", "0", "1", "0"])
  })

  effect.asRoot(
    "a container cannot change the mode of the host's devices through its own devices or masks",
    function* () {
      const names = ["null", "zero", "full"]
      const modes = () => names.map((name) => fs.statSync(`/dev/${name}`).mode & 0o777)
      const before = yield* Effect.acquireRelease(Effect.sync(modes), (were) =>
        Effect.sync(() => names.forEach((name, k) => void fs.chmodSync(`/dev/${name}`, were[k]!)))
      )
      for (const namespaces of [{}, { user: "new" }] as const) {
        yield* run("chmod 600 /proc/keys /proc/timer_list /dev/null /dev/zero /dev/full", { namespaces })
        assert.deepEqual(modes(), before)
      }
    }
  )

  effect("a container has the standard devices and can make no others", function* () {
    const list = yield* out("cd /dev; stat -c '%n %t:%T' null zero full random urandom tty; ls /dev")
    const [devices, names] = [list.split("\n").slice(0, 6), list.trim().split("\n").slice(6)]
    assert.deepEqual(devices, ["null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"])
    assert.deepEqual(names.filter((name) => !["core", "console"].includes(name)).sort(), [
      "fd",
      "full",
      "mqueue",
      "null",
      "ptmx",
      "pts",
      "random",
      "shm",
      "stderr",
      "stdin",
      "stdout",
      "tty",
      "urandom",
      "zero"
    ])
    const works =
      "echo x > /dev/null && [ $(head -c 4 /dev/zero | wc -c) = 4 ] && [ $(head -c 4 /dev/urandom | wc -c) = 4 ]"
    assert.equal(yield* out(`${works} && echo to-stdout > /dev/stdout`), "to-stdout\n")
    const made = yield* run("mknod /tmp/disk b 8 0 && cat /tmp/disk; mknod /tmp/mem c 1 1 && cat /tmp/mem")
    assert.notEqual(made.exitCode, 0)
  })

  effect("a container has its own terminals, shared memory and message queues", function* () {
    const mounts = yield* out("cat /proc/self/mounts; ls /dev/pts; [ -w /dev/ptmx ] && echo writable")
    assert.match(mounts, / \/dev\/pts devpts /)
    assert.match(mounts, / \/dev\/shm tmpfs [^ ]*size=65536k/)
    assert.match(mounts, / \/dev\/mqueue mqueue /)
    assert.match(mounts, / \/sys sysfs ro/)
    assert.match(mounts, /\nptmx\nwritable\n$/)
    assert.match(yield* out("df -k /dev/shm | tail -1", { shmSize: "2MiB" }), / 2048 /)
    const { exitCode } = yield* run("touch /sys/x || mkdir /sys/fs/cgroup/x")
    assert.notEqual(exitCode, 0)
  })

  effect.asRoot(
    "a container has none of the host's mounts, and the host has none of the container's",
    function* () {
      const image = yield* Image.host
      const before = fs.readFileSync("/proc/self/mountinfo", "utf8")
      const container = yield* Container.start(image, { command: ["sleep", "1000"], etcFiles: false })
      assert.equal(fs.readFileSync("/proc/self/mountinfo", "utf8"), before)
      const inside = fs.readFileSync(`/proc/${container.pid}/mountinfo`, "utf8")
      const places = inside.split("\n").flatMap((line) => line.split(" ")[4] ?? [])
      // These mounts hide Berth's folder and the default one.
      const hidden = [(yield* Berth.Berth).folder, "/var/lib/berth"]
      const others = places.filter((place) => !/^\/($|proc|dev|sys)/.test(place) && !hidden.includes(place))
      assert.deepEqual(others, [], inside)
      assert.ok(!inside.includes("shared:"))
    }
  )

  effect("a missing source of a bind is named in the error", function* () {
    const error = yield* failure(
      "OperationFailed",
      run("true", { mounts: [Mount.bind("/no/such/source", "/x")] })
    )
    assert.equal(error.code, "ENOENT")
    assert.match(error.message, /\/no\/such\/source/)
    assert.match(error.hint, /source/)
  })

  effect(
    "a deep and large writable layer is removed with few descriptors",
    function* () {
      const { folder } = yield* Berth.Berth
      const context = yield* Layer.build(berthIn(`${folder}/deep`))
      const { supervisor } = Context.get(context, Berth.Berth)
      execFileSync("prlimit", ["--pid", String(supervisor.pid), "--nofile=256:256"])
      const image = yield* makeImage(`${folder}/image-disk`)
      const deep = "i=0; while [ $i -lt 700 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done"
      const many = "mkdir /many /many/closed; chmod 0 /many/closed; cd /many; seq 1 2000 | xargs touch"
      const { exitCode, stderr } = yield* Container.run(image, {
        command: ["sh", "-c", `(${deep}); ${many}`]
      })
      assert.equal(exitCode, 0, stderr)
      const left = fs.readdirSync(supervisor.folder).filter((name) => /^\d+$/.test(name))
      assert.deepEqual(left, [])
    },
    { skip: whyNoBusybox }
  )
})
