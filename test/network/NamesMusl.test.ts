/**
 * Names in a container whose C library is musl. It asks for A and AAAA at the same time by one socket and waits for both answers; and takes
 * an unknown AAAA for an unknown name.
 */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import { isIPv4, isIPv6 } from "node:net"
import * as Effect from "effect/Effect"
import { Container, Image, Network } from "../../lib/index.ts"
import { compile } from "../support/attack.ts"
import { suite } from "../support/effect.ts"
import { modes } from "../support/networks.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"

const CC = "/usr/bin/musl-gcc"

const skip = {
  skip: whyNoBusybox || (!fs.existsSync(CC) && "no musl-gcc: apt-get install musl-tools")
}

suite("names for programs with musl", (effect, folder) => {
  const start = (options: Container.StartOptions) =>
    Effect.suspend(() => {
      const root = `${folder()}/root`
      if (!fs.existsSync(`${root}/bin/lookup`)) compile(`${makeRoot(root)}/bin/lookup`, "lookup.c", CC)
      return Effect.flatMap(Image.fromRootfs(root), (image) =>
        Container.start(image, { ...options, command: ["sleep", "1000"] })
      )
    })

  const output = (box: Container.Container, ...words: ReadonlyArray<string>) =>
    Effect.map(Container.exec(box, ["lookup", ...words]), ({ exitCode, stderr, stdout }) => {
      assert.equal(exitCode, 0, stderr)
      return stdout.trimEnd().split("\n")
    })

  const sorted = (box: Container.Container): string => [...box.state.addresses].sort().join(" ")

  for (const [mode, options] of modes)
    effect(
      `${mode} find names, aliases and ids with addresses of both kinds, and no unknown name`,
      function* () {
        const network = yield* Network.make()
        const db = yield* start({ ...options, network, name: "db", aliases: ["primary", "db.lab.test"] })
        const box = yield* start({ ...options, network, name: "asker" })
        const [four, six] = [isIPv4, isIPv6].map((is) => db.state.addresses.find(is))
        const hosts = ["db", "primary", "db.lab.test", "DB", "db.", db.id]
        const each = (result: string) => hosts.map((host) => `${host} ${result}`)
        assert.deepEqual(yield* output(box, "0", ...hosts), each(sorted(db)))
        assert.deepEqual(yield* output(box, "4", ...hosts), each(four!))
        assert.deepEqual(yield* output(box, "6", ...hosts), each(six!))
        // EAI_AGAIN would mean that nobody has answered.
        for (const family of ["0", "4", "6"])
          assert.deepEqual(yield* output(box, family, "unknown", "unknown.test", "lab.test"), [
            "unknown EAI_NONAME",
            "unknown.test EAI_NONAME",
            "lab.test EAI_NONAME"
          ])
      },
      skip
    )

  effect(
    "a name without an address of IPv6 is found by its address of IPv4",
    function* () {
      const network = yield* Network.make({ ipv6: false })
      const db = yield* start({ network, name: "db" })
      assert.deepEqual(yield* output(db, "0", "db"), [`db ${sorted(db)}`])
      assert.ok(isIPv4(sorted(db)))
    },
    skip
  )

  effect(
    "domains are searched in their order, and a name of its own is found after them",
    function* () {
      const network = yield* Network.make()
      const dnsSearch = ["none.test", "lab.test", "other.test"]
      const first = yield* start({ network, name: "first", aliases: ["api.lab.test", "db"] })
      const second = yield* start({
        network,
        name: "second",
        aliases: ["api.other.test"]
      })
      const box = yield* start({ network, dnsSearch })
      assert.deepEqual(yield* output(box, "0", "api", "db", "unknown"), [
        `api ${sorted(first)}`,
        `db ${sorted(first)}`,
        "unknown EAI_NONAME"
      ])
      assert.deepEqual(yield* output(second, "0", "api"), ["api EAI_NONAME"])
    },
    skip
  )

  effect(
    "many threads at once have the right answers, while other names come and go",
    function* () {
      const network = yield* Network.make()
      const db = yield* start({ network, name: "db", aliases: ["db.lab.test"] })
      const box = yield* start({ network, dnsSearch: ["lab.test"] })
      const changing = start({ network, name: "other" }).pipe(Effect.scoped, Effect.forever)
      const names = ["db", "db.lab.test", db.id, "unknown"]
      assert.deepEqual(yield* output(box, "0", ...names), [
        ...names.slice(0, 3).map((name) => `${name} ${sorted(db)}`),
        "unknown EAI_NONAME"
      ])
      const lines = yield* Effect.raceFirst(output(box, "many", "50", "20", ...names), changing)
      assert.deepEqual(lines, ["0"])
    },
    skip
  )
})
