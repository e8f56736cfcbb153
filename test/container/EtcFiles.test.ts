import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as os from "node:os"
import * as Effect from "effect/Effect"
import { Container, Image, Mount } from "../../lib/index.ts"
import { out, sh, sleeper } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { makeEvilImage, makeImage, whyNoBusybox } from "../support/rootfs.ts"

const show = "cat /etc/hosts; echo --; cat /etc/hostname; echo --; cat /etc/resolv.conf"
const parts = (text: string): ReadonlyArray<string> => text.split("--\n")

suite("The files /etc/hosts, /etc/hostname and /etc/resolv.conf", (effect, folder) => {
  const options = { skip: whyNoBusybox }

  const modes: Readonly<Record<string, Container.StartOptions>> = {
    "a container": {},
    "a container with a read-only root": { readOnly: true },
    "a container with a writable layer in memory": { upper: "memory" }
  }
  for (const [name, more] of Object.entries(modes))
    effect(
      `${name} knows localhost and its hostname, and the server of networks that it may join`,
      function* () {
        const image = yield* makeImage(`${folder()}/root`)
        const script = `${show}; ping -c 1 -w 1 localhost >/dev/null && hostname -i`
        const { stdout, stderr } = yield* Container.run(image, {
          command: sh(script),
          hostname: "box.example.com",
          ...more
        })
        const [hosts, hostname, servers] = parts(stdout)
        assert.match(
          hosts!,
          /^127\.0\.0\.1\tlocalhost\n(.*\n)*127\.0\.0\.1\tbox\.example\.com box\n$/,
          stderr
        )
        assert.equal(hostname, "box.example.com\n")
        assert.match(servers!, /^nameserver 127\.0\.0\.11\n/)
        assert.match(servers!, /\n127\.0\.0\.1\n$/)
      },
      options
    )

  effect.asRoot(
    "a container with ids of its own can write to its files, and the image and other containers do not change",
    function* () {
      const image = yield* makeImage(`${folder()}/root`)
      const script = "echo 10.0.0.9 written >> /etc/hosts; echo nameserver 10.0.0.9 > /etc/resolv.conf"
      for (const more of [{}, { userns: "auto" as const }]) {
        const { stdout, stderr } = yield* Container.run(image, { command: sh(`${script}; ${show}`), ...more })
        assert.match(stdout, /10\.0\.0\.9 written\n/, stderr)
        assert.match(stdout, /^nameserver 10\.0\.0\.9$/m)
      }
      const next = yield* Container.run(image, { command: sh(show) })
      assert.doesNotMatch(next.stdout, /10\.0\.0\.9/)
      assert.equal(fs.existsSync(`${folder()}/root/etc/hosts`), false)
    },
    options
  )

  effect(
    "on the host's network they have the host's names and servers, and the hostname of the container",
    function* () {
      const image = yield* makeImage(`${folder()}/root`)
      const { stdout } = yield* Container.run(image, {
        command: sh(show),
        hostname: "guest",
        namespaces: { network: "host" }
      })
      const [hosts, hostname, servers] = parts(stdout)
      for (const line of fs.readFileSync("/etc/hosts", "utf8").split("\n")) assert.ok(hosts!.includes(line))
      assert.match(hosts!, /127\.0\.0\.1\tguest\n$/)
      assert.equal(hostname, "guest\n")
      for (const [server] of fs.readFileSync("/etc/resolv.conf", "utf8").matchAll(/^nameserver.*$/gm))
        assert.ok(servers!.includes(server))
      const own = yield* Container.run(image, {
        command: ["cat", "/etc/hostname"],
        namespaces: { uts: "host" }
      })
      assert.equal(own.stdout, `${os.hostname()}\n`)
    },
    options
  )

  effect("extraHosts, dns and dnsSearch add names, servers and domains", function* () {
    const [hosts, , servers] = parts(
      yield* out(show, {
        extraHosts: ["db:10.0.0.2", "cache=10.0.0.3", "six:[fd00::2]"],
        dns: ["10.0.0.53", "fd00::53"],
        dnsSearch: ["example.com", "test"],
        namespaces: { network: "host" }
      })
    )
    assert.match(hosts!, /\n10\.0\.0\.2\tdb\n10\.0\.0\.3\tcache\nfd00::2\tsix\n/)
    const said = servers!.split("\n").filter((line) => /^(nameserver|search|domain)/.test(line))
    assert.deepEqual(said, ["nameserver 10.0.0.53", "nameserver fd00::53", "search example.com test"])
  })

  effect("a container that joins the network of another one has its names and servers", function* () {
    const image = yield* Image.host
    const first = yield* Container.start(image, {
      command: ["sleep", "1000"],
      hostname: "first",
      dns: ["10.0.0.53"],
      extraHosts: ["db:10.0.0.2"]
    })
    const text = yield* out(show, { hostname: "second", namespaces: { network: first } })
    const [hosts, hostname, servers] = parts(text)
    assert.match(hosts!, /\n10\.0\.0\.2\tdb\n127\.0\.0\.1\tfirst\n127\.0\.0\.1\tsecond\n$/)
    assert.equal(hostname, "second\n")
    assert.equal(servers, "nameserver 10.0.0.53\n")
    yield* Container.stop(first, { grace: 0 })
  })

  effect(
    "a mount of the caller is shown in place of a file, and etcFiles: false shows those of the image",
    function* () {
      const image = yield* makeImage(`${folder()}/root`)
      const own = `${folder()}/own-hosts`
      fs.writeFileSync(own, "10.0.0.7 mine\n")
      const covered = yield* Container.run(image, {
        command: sh("cat /etc/hosts /etc/hostname"),
        hostname: "here",
        mounts: [Mount.bind(own, "/etc/hosts")]
      })
      assert.equal(covered.stdout, "10.0.0.7 mine\nhere\n")
      const whole = yield* Container.run(image, { command: ["ls", "/etc"], mounts: [Mount.tmpfs("/etc")] })
      assert.equal(whole.stdout, "")
      const without = yield* Container.run(image, { command: ["ls", "/etc"], etcFiles: false })
      assert.equal(without.stdout, "group\npasswd\n")
    },
    options
  )

  const links: Readonly<Record<string, (root: string) => void>> = {
    "is a link to another folder": (root) => {
      fs.renameSync(`${root}/etc`, `${root}/real`)
      fs.symlinkSync("real", `${root}/etc`)
    },
    "is a link out of the root": (root) => {
      fs.mkdirSync(`${root}/tmp/berth-outside`)
      fs.renameSync(`${root}/etc`, `${root}/tmp/berth-outside/etc`)
      fs.symlinkSync("../../../../tmp/berth-outside/etc", `${root}/etc`)
    },
    "has links in place of the files": (root) => {
      fs.symlinkSync("/tmp/berth-nowhere", `${root}/etc/hosts`)
      fs.symlinkSync("../../run/systemd/resolve/stub-resolv.conf", `${root}/etc/resolv.conf`)
      fs.symlinkSync("passwd", `${root}/etc/hostname`)
    },
    "is missing": (root) => fs.rmSync(`${root}/etc`, { recursive: true })
  }
  for (const [name, change] of Object.entries(links))
    effect(
      `they are supplied where /etc of the image ${name}, and nothing is made outside of the root`,
      function* () {
        const image = yield* makeEvilImage(`evil-${name.replaceAll(/\W/g, "-")}`, change)
        const { stdout, stderr } = yield* Container.run(image, {
          command: sh(`${show}; cat /etc/passwd`),
          user: "0",
          hostname: "linked"
        })
        const [hosts, hostname, servers] = parts(stdout)
        assert.match(hosts!, /127\.0\.0\.1\tlinked\n$/, stderr)
        assert.equal(hostname, "linked\n")
        assert.match(servers!, /^nameserver 127\.0\.0\.11\n/)
        if (name !== "is missing") assert.match(servers!, /^root:x:0:0/m)
        for (const path of ["/tmp/berth-nowhere", "/tmp/berth-outside"])
          assert.equal(fs.existsSync(path), false)
      },
      options
    )

  effect(
    "a file that has no place in the image is left out, and fails a start that asks for it",
    function* () {
      const image = yield* makeEvilImage("no-place", (root) => fs.mkdirSync(`${root}/etc/hosts`))
      const { exitCode, stdout } = yield* Container.run(image, {
        command: sh("test -d /etc/hosts && cat /etc/hostname"),
        hostname: "odd"
      })
      assert.deepEqual([exitCode, stdout], [0, "odd\n"])
      const error = yield* failure(
        "OperationFailed",
        Container.run(image, { command: ["true"], extraHosts: ["db:10.0.0.2"] })
      )
      assert.match(error.message, /etc\/hosts/)
      const nowhere = yield* makeEvilImage("nowhere", (root) => {
        fs.rmSync(`${root}/etc`, { recursive: true })
        fs.symlinkSync("/not/there", `${root}/etc`)
      })
      assert.equal((yield* Container.run(nowhere, { command: ["true"], user: "0" })).exitCode, 0)
    },
    options
  )

  effect("the options are refused by name where they are malformed", function* () {
    const wrong: ReadonlyArray<readonly [Container.StartOptions, string]> = [
      [{ extraHosts: ["db"] }, "extraHosts[0]"],
      [{ extraHosts: ["a:10.0.0.1", "db:host-gateway"] }, "extraHosts[1]"],
      [{ extraHosts: ["two words:10.0.0.1"] }, "extraHosts[0]"],
      [{ dns: ["dns.example.com"] }, "dns[0]"],
      [{ dnsSearch: ["a b"] }, "dnsSearch[0]"],
      [{ dnsSearch: ["a\nnameserver 10.0.0.1"] }, "dnsSearch[0]"],
      [{ etcFiles: false, dns: ["10.0.0.1"] }, "dns"]
    ]
    for (const [given, option] of wrong) {
      const error = yield* failure("InvalidOption", Effect.scoped(out("true", given)))
      assert.equal(error.option, option)
    }
  })

  effect(
    "the files are below the container's own mounts in its /dev, and its /dev shows none of them",
    function* () {
      const box = yield* sleeper
      const { stdout } = yield* Container.exec(box, sh("ls -A /dev/shm; ls /dev | grep -c host"))
      assert.equal(stdout, "0\n")
    }
  )
})
