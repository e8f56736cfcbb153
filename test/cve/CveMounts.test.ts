import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Mount } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { killedAfter } from "../support/killedAfter.ts"
import { makeEvilImage as evil, makeImage, whyNoBusybox } from "../support/rootfs.ts"

const skip = whyNoBusybox

const parameter = "net.ipv4.ip_unprivileged_port_start"
const file = `sys/${parameter.replaceAll(".", "/")}`

/** The sysctl's value in a container's network namespace, read by a container with an unchanged /proc. */
const valueIn = (box: Container.Container) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    const image = yield* makeImage(`${folder}/honest`)
    const command = ["cat", `/proc/${file}`]
    return (yield* Container.run(image, { command, namespaces: { network: box } })).stdout.trim()
  })

const makeDecoy = (at: string): void => {
  const path = `${at}/${file}`
  fs.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true })
  fs.writeFileSync(path, "decoy")
}

/** Swaps `d` in the folder between a folder and a link to `target`, again and again, while the scope is open. */
const swapping = (folder: string, target: string) =>
  killedAfter(() => {
    fs.mkdirSync(`${folder}/d`)
    const script = `cd '${folder}'; ln -s '${target}' l; while :; do mv -T d x; mv -T l d; mv -T d l; mv -T x d; done`
    return spawn("/bin/busybox", ["sh", "-c", script], { stdio: "ignore" })
  })

suite("attacks on mounts and /proc that broke other runtimes", (effect, folder) => {
  effect(
    "CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: a sysctl is set in the kernel, not in a file of the image's /proc",
    function* () {
      const image = yield* evil("19921-folder", (root) => makeDecoy(`${root}/proc`))
      const box = yield* Container.start(image, {
        command: ["sleep", "1000"],
        sysctls: { [parameter]: "77" }
      })
      assert.equal(yield* valueIn(box), "77")
    },
    { skip }
  )

  effect(
    "CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: an image whose /proc is a link to a folder of its own is refused",
    function* () {
      const image = yield* evil("19921-link", (root) => {
        makeDecoy(`${root}/elsewhere`)
        fs.symlinkSync("/elsewhere", `${root}/proc`)
      })
      const run = Container.run(image, { command: ["true"], sysctls: { [parameter]: "77" } })
      assert.match((yield* failure("OperationFailed", run)).message, /\/proc is a symbolic link/)
      const { folder: here } = yield* Berth.Berth
      assert.equal(fs.readFileSync(`${here}/19921-link/elsewhere/${file}`, "utf8"), "decoy")
    },
    { skip }
  )

  effect(
    "CVE-2019-16884, CVE-2025-52881: a sysctl is set in the kernel where a mount covers /proc",
    function* () {
      const image = yield* evil("16884-mounted", () => {})
      const decoy = `${folder()}/decoy`
      makeDecoy(decoy)
      for (const mount of [Mount.tmpfs("/proc"), Mount.bind(decoy, "/proc")]) {
        const box = yield* Container.start(image, {
          command: ["sleep", "1000"],
          mounts: [mount],
          sysctls: { [parameter]: "78" }
        })
        assert.equal(yield* valueIn(box), "78")
      }
      assert.equal(fs.readFileSync(`${decoy}/${file}`, "utf8"), "decoy")
    },
    { skip }
  )

  effect(
    "CVE-2021-30465, CVE-2024-45310: a shared folder that is swapped for a link leads no mount or folder out of it",
    function* () {
      const volume = `${folder()}/volume`
      const host = `${folder()}/host-30465`
      for (const made of [volume, host]) fs.mkdirSync(made, { recursive: true })
      const image = yield* evil("30465-race", (root) => fs.mkdirSync(`${root}${host}`, { recursive: true }))
      yield* swapping(volume, host)
      const results = new Set<string>()
      for (let k = 0; k < 60; k++) {
        const options: Container.StartOptions =
          k % 2 === 0
            ? { mounts: [Mount.bind(volume, "/v"), Mount.tmpfs("/v/d/deep/m")], cwd: "/v/d/deep/m" }
            : { mounts: [Mount.bind(volume, "/v")], cwd: `/v/d/made/${k}` }
        const result = yield* Effect.either(Container.run(image, { command: ["pwd"], ...options }))
        results.add(
          result._tag === "Right" ? result.right.stdout.replace(/^\/(v|tmp).*/s, "/$1") : result.left._tag
        )
        assert.deepEqual(fs.readdirSync(host), [])
        assert.ok(!fs.readFileSync("/proc/self/mountinfo", "utf8").includes(volume))
      }
      assert.ok(results.has("/v"), [...results].join())
    },
    { skip }
  )

  effect(
    "CVE-2021-43784: a value of more than 65536 bytes is refused or arrives whole, and never overflows into another field",
    function* () {
      const image = yield* evil("43784", () => {})
      const own = ["sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net"]
      const [user, network] = (yield* Container.run(image, { command: own })).stdout.split("\n")
      const { rootless } = yield* Berth.Berth
      assert.equal(user === fs.readlinkSync("/proc/self/ns/user"), !rootless)
      assert.notEqual(network, fs.readlinkSync("/proc/self/ns/net"))
      // Longer than 16 bits can count: the lengths in runc wrapped around there.
      const long = "x".repeat(65536 + 40)
      for (const options of [
        { mounts: [Mount.tmpfs(`/${long}`)] },
        { mounts: [Mount.bind(`/${long}`, "/x")] },
        { hostname: long },
        { cwd: `/${long}` },
        { maskedPaths: [`/${long}`] },
        { sysctls: { [parameter]: long } },
        { sysctls: { [`net.${long}`]: "1" } },
        { user: long }
      ] satisfies ReadonlyArray<Container.StartOptions>) {
        const result = yield* Effect.either(Container.run(image, { ...options, command: ["true"] }))
        assert.equal(result._tag, "Left", JSON.stringify(options).slice(0, 60))
      }
      const env = { LONG: long, AFTER: "after" }
      const { stdout } = yield* Container.run(image, {
        command: ["sh", "-c", "printf %s $LONG | wc -c; echo $AFTER"],
        env
      })
      assert.equal(stdout, `${long.length}\nafter\n`)
    },
    { skip }
  )

  effect(
    "CVE-2025-52565: a terminal is attached to its own device, not to the image's links in /dev",
    function* () {
      const host = `${folder()}/host-52565-terminal`
      fs.mkdirSync(host, { recursive: true })
      const image = yield* evil("52565-terminal", (root) => {
        fs.mkdirSync(`${root}/dev`)
        for (const [name, target] of [
          ["console", `${host}/console`],
          ["pts", host],
          ["ptmx", `${host}/ptmx`],
          ["tty", "/etc/passwd"]
        ] as const)
          fs.symlinkSync(target, `${root}/dev/${name}`)
      })
      const { stdout } = yield* Container.run(image, {
        command: ["sh", "-c", "tty; echo typed > /dev/tty"],
        terminal: true
      })
      assert.equal(stdout, "/dev/pts/0\r\ntyped\r\n")
      assert.deepEqual(fs.readdirSync(host), [])
    },
    { skip }
  )

  // CVE-2024-9407, CVE-2024-11218, CVE-2024-9675, CVE-2024-9676 and CVE-2024-9341 concern builders that read mount options
  // and cache paths as text from an image's instructions. Berth executes no such instructions, and a mount is a value with
  // a field for each option, so the test is that no text adds an option.
  effect(
    "CVE-2024-9407, CVE-2024-11218: the text of a mount's fields adds no option and changes no source",
    function* () {
      const image = yield* evil("9407", () => {})
      const run = (mount: Mount.Mount) =>
        Container.run(image, { command: ["cat", "/proc/self/mountinfo"], mounts: [mount] })
      for (const size of ["1,mode=0777", "1MiB,uid=1000", "64k,suid"])
        assert.equal(
          (yield* failure("InvalidOption", run(Mount.tmpfs("/x", { size })))).option,
          "mounts[0].size"
        )
      const target = "/x,bind-propagation=rshared,src="
      const { stdout } = yield* run(Mount.tmpfs(target))
      const line = stdout.split("\n").find((one) => one.includes(` ${target} `))
      assert.match(line!, / rw,nosuid,nodev,noexec,relatime - tmpfs /)
      assert.doesNotMatch(line!, /shared:|suid,dev,/)
    },
    { skip }
  )
})
