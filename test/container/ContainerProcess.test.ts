import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image } from "../../lib/index.ts"
import { firstLineOf, out, sh } from "../support/containers.ts"
import { suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { environment } from "../support/scoped.ts"

/** The lines `Name: value` of /proc/self/status as an object. */
const parseStatus = (text: string): Record<string, string> =>
  Object.fromEntries(text.split("\n").map((line) => line.split(/:\s+/) as [string, string]))

const status = "cat /proc/self/status"

suite("Container: process", (effect) => {
  effect("a container has the environment that it is given, and none of the calling program's", function* () {
    yield* environment({ BERTH_SECRET_OF_THE_HOST: "1" })
    const image = yield* Image.host
    const { stdout } = yield* Container.run(image, {
      command: ["env"],
      env: { A: "1", EMPTY: "", WITH: "a=b c\n", UNICODE: "späß" }
    })
    const names = stdout.split("\n").flatMap((line) => (line.includes("=") ? [line.split("=")[0]] : []))
    assert.deepEqual(names.sort(), ["A", "EMPTY", "HOME", "PATH", "UNICODE", "WITH"])
    assert.ok(
      stdout.includes("\nEMPTY=\n") && stdout.includes("\nUNICODE=späß\n") && stdout.includes("WITH=a=b c\n")
    )
  })

  effect("a container can have more arguments and environment than one message holds", function* () {
    const image = yield* Image.host
    const large = Array.from({ length: 8 }, (_, k) => String(k).repeat(60_000))
    const { stdout } = yield* Container.run(image, { command: ["printf", "%s", ...large] })
    assert.equal(stdout, large.join(""))
    const count = yield* out("env | wc -c", {
      env: { BIG: "x".repeat(100_000), MORE: "y".repeat(100_000) }
    })
    assert.ok(Number(count) > 200_000)
  })

  effect("a container runs in its working folder, which is made if it is missing", function* () {
    assert.equal(yield* out("pwd", { cwd: "/usr/bin" }), "/usr/bin\n")
    assert.equal(yield* out("pwd; stat -c %a:%u .", { cwd: "/made/here" }), "/made/here\n755:0\n")
    assert.equal(fs.existsSync("/made"), false)
  })

  effect("a container runs as root with root's home by default", function* () {
    assert.equal(yield* out("id -u; id -g; id -G; echo $HOME"), "0\n0\n0\n/root\n")
  })

  effect("a container with a numeric user runs as that uid and gid, with no other group", function* () {
    const text = yield* out("id -u; id -g; id -G; echo $HOME", { user: "12345:54321" })
    assert.equal(text, "12345\n54321\n54321\n/\n")
  })

  effect(
    "a container with a user's name has the ids, groups and home of the image's /etc/passwd",
    function* () {
      const { folder } = yield* Berth.Berth
      const image = yield* makeImage(`${folder}/busybox`)
      const who = (user: string) =>
        Effect.map(
          Container.run(image, { command: ["sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME"], user }),
          ({ stdout }) => stdout.trim()
        )
      assert.equal(yield* who("app"), "1000 1001 1001 2000 /home/app")
      assert.equal(yield* who("1000"), "1000 1001 1001 2000 /home/app")
      assert.equal(yield* who("app:extra"), "1000 2000 2000 /home/app")
      assert.equal(yield* who("app:7"), "1000 7 7 /home/app")
      assert.equal(yield* who("root"), "0 0 0 /root")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "an exec with a user's name has the ids of the container's current /etc/passwd",
    function* () {
      const { folder } = yield* Berth.Berth
      const image = yield* makeImage(`${folder}/busybox`)
      const container = yield* Container.start(image, {
        command: sh("echo late:x:4242:4243::/late:/bin/sh >> /etc/passwd; echo written; exec sleep 1000")
      })
      assert.equal(yield* firstLineOf(container), "written")
      const { stdout } = yield* Container.exec(container, ["sh", "-c", "echo $(id -u) $(id -g) $HOME"], {
        user: "late"
      })
      assert.equal(stdout, "4242 4243 /late\n")
      assert.ok(!fs.readFileSync(`${folder}/busybox/etc/passwd`, "utf8").includes("late"))
    },
    { skip: whyNoBusybox }
  )

  effect("a container makes files with its umask", function* () {
    const made = "touch /tmp/f; mkdir /tmp/d; stat -c %a /tmp/f /tmp/d"
    assert.equal(yield* out(made), "644\n755\n")
    assert.equal(yield* out(made, { umask: 0o077 }), "600\n700\n")
    assert.equal(yield* out(made, { umask: 0 }), "666\n777\n")
  })

  effect("a container has its own hostname", function* () {
    const before = fs.readFileSync("/proc/sys/kernel/hostname", "utf8")
    assert.equal(yield* out("uname -n", { hostname: "box-1.example" }), "box-1.example\n")
    assert.match(yield* out("uname -n"), /^[0-9a-f]{12}\n$/)
    assert.equal(fs.readFileSync("/proc/sys/kernel/hostname", "utf8"), before)
  })

  effect("a container has the resource limits that it is given", function* () {
    const rlimits = { nofile: { soft: 100, hard: 200 }, core: 0, fsize: 1 << 20 }
    const limits = yield* out("cat /proc/self/limits", { rlimits })
    assert.match(limits, /^Max open files +100 +200 /m)
    assert.match(limits, /^Max core file size +0 +0 /m)
    assert.match(limits, /^Max file size +1048576 +1048576 /m)
  })

  effect("a container's kernel parameters are set in its own namespaces alone", function* () {
    const path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    const before = fs.readFileSync(path, "utf8")
    const sysctls = { "net.ipv4.ip_unprivileged_port_start": "81", "kernel.msgmax": "4096" }
    assert.equal(yield* out(`cat ${path} /proc/sys/kernel/msgmax`, { sysctls }), "81\n4096\n")
    assert.equal(fs.readFileSync(path, "utf8"), before)
  })

  effect(
    "a container and an exec have Docker's capabilities, none inheritable, and no_new_privs",
    function* () {
      const image = yield* Image.host
      const container = yield* Container.start(image, { command: ["sleep", "1000"] })
      const inExec = (yield* Container.exec(container, ["cat", "/proc/self/status"])).stdout
      for (const text of [yield* out(status), inExec]) {
        const { CapInh, CapPrm, CapEff, CapBnd, CapAmb, NoNewPrivs } = parseStatus(text)
        assert.deepEqual(
          { CapInh, CapPrm, CapEff, CapBnd, CapAmb, NoNewPrivs },
          {
            CapInh: "0000000000000000",
            CapPrm: "00000000a80425fb",
            CapEff: "00000000a80425fb",
            CapBnd: "00000000a80425fb",
            CapAmb: "0000000000000000",
            NoNewPrivs: "1"
          }
        )
      }
    }
  )

  effect("a container of a non-root user has no capabilities", function* () {
    const { CapInh, CapPrm, CapEff, CapBnd } = parseStatus(yield* out(status, { user: "1000" }))
    const none = "0000000000000000"
    assert.deepEqual([CapInh, CapPrm, CapEff, CapBnd], [none, none, none, "00000000a80425fb"])
  })

  effect("a container has the capabilities that are added and none that are dropped", function* () {
    const caps = (capabilities: Container.StartOptions["capabilities"]) =>
      Effect.map(out(status, { capabilities }), (text) => parseStatus(text).CapEff)
    assert.equal(yield* caps({ drop: ["ALL"] }), "0000000000000000")
    assert.equal(yield* caps({ drop: ["ALL"], add: ["NET_BIND_SERVICE"] }), "0000000000000400")
    assert.equal(yield* caps({ add: ["SYS_PTRACE"] }), "00000000a80c25fb")
    assert.equal(yield* caps({ drop: ["MKNOD"] }), "00000000a00425fb")
  })

  effect.asRoot("a container with add: ALL has every capability of the calling program", function* () {
    const own = parseStatus(fs.readFileSync("/proc/self/status", "utf8")).CapEff
    const text = yield* out(status, { capabilities: { add: ["ALL"] } })
    assert.equal(parseStatus(text).CapEff, own)
  })

  effect("a container with noNewPrivileges: false may gain privileges", function* () {
    assert.equal(parseStatus(yield* out(status, { noNewPrivileges: false })).NoNewPrivs, "0")
  })

  effect(
    "a container and an exec have three open descriptors, however many the calling program leaks",
    function* () {
      yield* Effect.acquireRelease(
        Effect.sync(() => Array.from({ length: 50 }, () => fs.openSync("/", "r"))),
        (leaked) => Effect.sync(() => leaked.map((fd) => fs.closeSync(fd)))
      )
      // The fourth is the folder that ls reads.
      const list = "ls -l /proc/self/fd | grep -c ' 0 -> \\| 1 -> \\| 2 -> '; ls /proc/self/fd | wc -l"
      assert.equal(yield* out(list), "3\n4\n")
      const image = yield* Image.host
      const container = yield* Container.start(image, {
        command: ["sh", "-c", "echo up; read x"],
        stdin: "pipe"
      })
      // By its first line, the dynamic loader has closed the files that it opened.
      yield* firstLineOf(container)
      assert.equal(fs.readdirSync(`/proc/${container.pid}/fd`).sort().join(), "0,1,2")
      const { stdout } = yield* Container.exec(container, ["sh", "-c", list])
      assert.equal(stdout, "3\n4\n")
    }
  )

  effect("a container starts with no signal ignored or blocked", function* () {
    const { SigBlk, SigIgn } = parseStatus(yield* out(status))
    assert.deepEqual([SigBlk, SigIgn], ["0000000000000000", "0000000000000000"])
  })

  effect("a container's command is pid 1 in its own session and sees no other processes", function* () {
    const text = yield* out("cut -d' ' -f1,6 /proc/self/stat; ls -d /proc/[0-9]* | wc -l; echo $$")
    const [pidAndSession, processes, shell] = text.trim().split("\n")
    assert.equal(pidAndSession!.split(" ")[1], "1")
    assert.equal(shell, "1")
    // The shell, ls and wc.
    assert.ok(Number(processes) <= 3)
  })

  effect("a container's only network interface that is up is the loopback", function* () {
    // IFF_UP is 1.
    const text = yield* out("cd /sys/class/net; for i in *; do echo $i $(($(cat $i/flags) & 1)); done")
    const up = text.split("\n").filter((line) => line.endsWith(" 1"))
    assert.deepEqual(up, ["lo 1"])
  })

  effect("a container with network: host uses the host's network", function* () {
    const text = yield* out("readlink /proc/self/ns/net", { namespaces: { network: "host" } })
    assert.equal(text.trim(), fs.readlinkSync("/proc/self/ns/net"))
  })

  effect("a container shares the network, ipc and pid namespaces of another container", function* () {
    const image = yield* Image.host
    const first = yield* Container.start(image, { command: ["sleep", "1000"] })
    const namespaces = { network: first, ipc: first, pid: first }
    const links = "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/pid; cat /proc/1/comm"
    const expected = ["net", "ipc", "pid"].map((kind) => fs.readlinkSync(`/proc/${first.pid}/ns/${kind}`))
    assert.deepEqual((yield* out(links, { namespaces })).trim().split("\n"), [...expected, "sleep"])
  })

  effect("a container with user: new is root of its own user namespace", function* () {
    const namespaces = { user: "new" } as const
    const text = yield* out("id -u; readlink /proc/self/ns/user; touch /made; stat -c %u /made", {
      namespaces
    })
    const [uid, link, owner] = text.trim().split("\n")
    assert.deepEqual([uid, owner], ["0", "0"])
    assert.notEqual(link, fs.readlinkSync("/proc/self/ns/user"))
  })
})
