import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Container, type Namespace } from "../lib/index.ts"
import { failure, suite } from "./support/effect.ts"
import { isAlive } from "./support/leftovers.ts"
import { owners, ownersImage } from "./support/owners.ts"
import { makeImage, whyNoBusybox } from "./support/rootfs.ts"

/** The ids of a process's user namespace: where they begin on the host. */
const mapOf = (pid: number): { readonly host: number; readonly size: number } => {
  const [container, host, size] = fs
    .readFileSync(`/proc/${pid}/uid_map`, "utf8")
    .trim()
    .split(/\s+/)
    .map(Number)
  assert.equal(container, 0)
  return { host: host!, size: size! }
}

/** The user and group that a process runs as, as the host sees them. */
const idsOf = (pid: number): ReadonlyArray<string> =>
  /^Uid:\t(\d+).*\nGid:\t(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, "utf8"))!.slice(1)

const statAll = `stat -c '%n %u:%g %a' ${Object.keys(owners).join(" ")}`
const expected = Object.entries(owners)
  .map(([name, value]) => `${name} ${value}\n`)
  .join("")

suite("Container, in a user namespace with ids of its own", (effect, berthFolder) => {
  const image = Effect.suspend(() => makeImage(`${berthFolder()}.root`))
  const withOwners = Effect.suspend(() => ownersImage(`${berthFolder()}.owners`))
  const sleeping = { command: ["sleep", "1000"], userns: "auto" } as const
  const skip = whyNoBusybox

  for (const upper of ["disk", "memory"] as const)
    effect.asRoot(
      `has the image's owners, as they are, and writes as itself, its writable layer on ${upper}`,
      () =>
        Effect.gen(function* () {
          const from = yield* withOwners
          const box = yield* Container.start(from, { ...sleeping, upper, entrypoint: [] })
          const { host, size } = mapOf(box.pid)
          assert.equal(size, 65536)
          assert.deepEqual(idsOf(box.pid), [String(host), String(host)])
          const script = `${statAll}; cd /home/app; echo more >> private/secret; chown 7:8 setuid; touch new; stat -c '%n %u:%g' private/secret setuid new`
          const seen = yield* Container.exec(box, ["sh", "-c", script])
          assert.equal(seen.stderr, "")
          assert.equal(seen.stdout, `${expected}private/secret 1000:1001\nsetuid 7:8\nnew 0:0\n`)
          const mine = yield* Container.exec(box, ["sh", "-c", "id -u; cat /home/app/private/secret"], {
            user: "app"
          })
          assert.equal(mine.stdout, "1000\napp's\nmore\n")
          // What it was made from is shown with other ids, and has not been given any.
          const [lowest] = from.layers
          assert.deepEqual(
            ["bin/busybox", "etc/passwd"].map((name) => fs.statSync(`${lowest}/${name}`).uid),
            [0, 0]
          )
          if (upper === "memory") return
          const written = box.plan.operations.find((operation) => operation.op === "overlay")!
          const stat = (name: string) => fs.statSync(`${written.upper}/home/app/${name}`)
          assert.deepEqual([stat("new").uid, stat("new").gid], [host, host])
          assert.deepEqual([stat("setuid").uid, stat("setuid").gid], [host + 7, host + 8])
          assert.deepEqual([stat("private/secret").uid, stat("private").uid], [host + 1000, host + 1000])
        }),
      { skip }
    )

  effect.asRoot(
    "has ids that no other container has, until it is gone",
    () =>
      Effect.gen(function* () {
        const from = yield* image
        const boxes = yield* Effect.all(
          Array.from({ length: 8 }, () => Container.start(from, sleeping)),
          { concurrency: "unbounded" }
        )
        const hosts = boxes.map(({ pid }) => mapOf(pid).host)
        assert.equal(new Set(hosts).size, hosts.length)
        const sorted = hosts.toSorted((a, b) => a - b)
        for (const [k, host] of sorted.entries())
          assert.ok(k === 0 || host - sorted[k - 1]! >= 65536, `${sorted}`)
        const explicit = [{ container: 0, host: hosts[0]!, size: 10 }]
        const other = yield* Container.start(from, {
          ...sleeping,
          userns: { uidMap: explicit, gidMap: explicit }
        })
        assert.deepEqual(mapOf(other.pid), { host: hosts[0], size: 10 })
        assert.ok(boxes.every(({ pid }) => isAlive(pid)))
      }),
    { skip }
  )

  effect.asRoot(
    "is nobody to the host: neither reads nor writes what is root's, though it is bound in",
    () =>
      Effect.gen(function* () {
        const source = `${berthFolder()}/bound`
        fs.mkdirSync(source, { recursive: true })
        fs.writeFileSync(`${source}/secret`, "root's\n", { mode: 0o600 })
        const mounts = [{ type: "bind", source, target: "/bound" }] as const
        const { stdout } = yield* Container.run(yield* image, {
          userns: "auto",
          mounts,
          capabilities: { add: ["ALL"] },
          command: [
            "sh",
            "-c",
            "cat /bound/secret || echo unread; echo x > /bound/new || echo unwritten; chown 0 /bound/secret || echo unowned; stat -c %u /bound/secret; mknod /tmp/null c 1 3 || echo unmade"
          ]
        })
        assert.equal(stdout, "unread\nunwritten\nunowned\n65534\nunmade\n")
        assert.deepEqual(fs.readdirSync(source), ["secret"])
      }),
    { skip }
  )

  effect.asRoot(
    "is committed with the ids that it sees",
    () =>
      Effect.gen(function* () {
        const box = yield* Container.start(yield* withOwners, {
          userns: "auto",
          entrypoint: [],
          command: [
            "sh",
            "-c",
            "touch /root/mine; echo x >> /home/app/private/secret; touch /home/app/his; chown 1000:1001 /home/app/his"
          ]
        })
        assert.equal((yield* box.exit).exitCode, 0)
        const made = yield* Container.commit(box)
        const list = "stat -c '%n %u:%g' /root/mine /home/app/private/secret /home/app/his"
        const { stdout } = yield* Container.run(made, { entrypoint: [], command: ["sh", "-c", list] })
        assert.equal(stdout, "/root/mine 0:0\n/home/app/private/secret 1000:1001\n/home/app/his 1000:1001\n")
      }),
    { skip }
  )

  effect.asRoot(
    "may write to its own standard output by its name",
    () =>
      Effect.map(
        Effect.flatMap(image, (from) =>
          Container.run(from, {
            userns: "auto",
            command: ["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"]
          })
        ),
        ({ stdout, stderr }) => assert.deepEqual([stdout, stderr], ["out\n", "err\n"])
      ),
    { skip }
  )

  effect.asRoot(
    "maps that make no sense are refused before anything is made",
    () =>
      Effect.gen(function* () {
        const from = yield* image
        const before = fs.readdirSync(`${berthFolder()}/run`)
        const good = [{ container: 0, host: 500000, size: 1000 }]
        const bad: ReadonlyArray<readonly [RegExp, ReadonlyArray<Namespace.IdRange>]> = [
          [/at least one id/, [{ container: 0, host: 500000, size: 0 }]],
          [/without a gap/, [{ container: 5, host: 500000, size: 1000 }]],
          [/do not overlap/, [...good, { container: 10, host: 600000, size: 10 }]],
          [/do not overlap/, [...good, { container: 1000, host: 500999, size: 10 }]]
        ]
        for (const [message, uidMap] of bad) {
          const error = yield* failure(
            "InvalidOption",
            Container.start(from, { userns: { uidMap, gidMap: good } })
          )
          assert.equal(error.option, "userns.uidMap")
          assert.match(error.message, message)
        }
        const both = yield* failure(
          "InvalidOption",
          Container.start(from, { userns: "auto", namespaces: { user: "host" } })
        )
        assert.equal(both.option, "namespaces.user")
        yield* failure("InvalidOption", Container.start(from, { userns: "some" as never }))
        assert.deepEqual(fs.readdirSync(`${berthFolder()}/run`), before)
      }),
    { skip }
  )

  effect.asRoot(
    "a failed start gives its ids back",
    () =>
      Effect.gen(function* () {
        const from = yield* image
        for (let k = 0; k < 3; k++)
          yield* failure("CommandFailed", Container.start(from, { ...sleeping, command: ["/no/such"] }))
        yield* Container.start(from, sleeping)
      }),
    { skip }
  )

  effect(
    "without root is refused, with what there is instead",
    () =>
      Effect.gen(function* () {
        const error = yield* failure("Unsupported", Container.start(yield* image, sleeping))
        assert.match(error.message, /only root.*user: "new"/)
        const from = yield* image
        const { stdout } = yield* Container.run(from, { namespaces: { user: "new" }, command: ["id", "-u"] })
        assert.equal(stdout, "0\n")
      }),
    { skip: skip || (process.getuid?.() === 0 ? "is about those who are not root: .ci/rootless" : false) }
  )
})
