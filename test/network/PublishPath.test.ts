import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Connection, Container, WaitFor } from "../../lib/index.ts"
import { echoImage } from "../support/attack.ts"
import { failure, makeTemporaryFolder, remove, suite, whyNotRoot } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const promise = <A>(body: () => Promise<A>): Effect.Effect<A> => Effect.promise(body)

/** A container in which everybody may connect to the sockets of `echo`. */
const start = (addresses: ReadonlyArray<string>, options: Container.StartOptions = {}) =>
  Effect.gen(function* () {
    const command = ["sh", "-c", `umask 0; exec /bin/echo ${addresses.join(" ")}`]
    const box = yield* Container.start(yield* echoImage, { ...options, command })
    yield* WaitFor.log(box, "listening")
    return box
  })

const temporaryFolder: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(makeTemporaryFolder),
  (folder) => Effect.sync(() => remove(folder))
)

/** Sends a text, ends the sending half, and gives all that comes back. */
const exchange = (to: net.NetConnectOpts, text: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = net.connect({ ...to, allowHalfOpen: true })
    let all = ""
    socket.on("data", (data) => {
      all += data
    })
    socket.on("error", reject)
    socket.on("end", () => {
      socket.destroy()
      resolve(all)
    })
    socket.on("connect", () => socket.end(text))
  })

/** The same once a server listens. */
const exchangeSoon = async (to: net.NetConnectOpts, text: string): Promise<string> => {
  for (const limit = Date.now() + 15_000; ; await new Promise((resolve) => setTimeout(resolve, 5))) {
    const answer = await exchange(to, text).catch((error: NodeJS.ErrnoException) => error)
    if (typeof answer === "string") return answer
    if (Date.now() > limit) throw answer
  }
}

const at = ({ hostname, port }: Connection.PublishedPort): net.NetConnectOpts => ({ host: hostname, port })

const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

suite("a published path", (effect) => {
  for (const [name, options] of modes)
    effect(
      `${name}: a socket file of the host leads to a port or to a Unix socket, for as long as the scope is open`,
      function* () {
        const folder = yield* temporaryFolder
        const box = yield* start(["v4:7", "unix:/tmp/echo", "abstract:echo"], options)
        const servers = [7, { path: "/tmp/echo" }, { path: "@echo" }] as const
        for (const [k, container] of servers.entries()) {
          const path = `${folder}/${k}.sock`
          yield* Effect.scoped(
            Effect.gen(function* () {
              assert.deepEqual(yield* Container.publish(box, { container, path }), { path })
              assert.equal(fs.statSync(path).mode & 0o777, 0o600)
              assert.equal(yield* promise(() => exchangeSoon({ path }, "hello")), "hellobye")
              const { port } = yield* Container.publish(box, { container })
              assert.equal(
                yield* promise(() => exchangeSoon({ host: "127.0.0.1", port }, "hello")),
                "hellobye"
              )
            })
          )
          assert.deepEqual(fs.readdirSync(folder), [])
        }
        const open = { container: 7, path: `${folder}/open`, mode: 0o666 }
        yield* Container.publish(box, open)
        assert.equal(fs.statSync(open.path).mode & 0o777, 0o666)
      },
      { skip: whyNoBusybox }
    )

  effect(
    "refuses connections until the server listens, and finds a server that has made its socket anew",
    function* () {
      const folder = yield* temporaryFolder
      const path = `${folder}/sock`
      const box = yield* Container.start(yield* echoImage, { command: ["sleep", "100"] })
      yield* Container.publish(box, { container: { path: "/tmp/echo" }, path })
      yield* promise(() => assert.rejects(exchange({ path }, "hello"), { code: "ECONNREFUSED" }))
      for (let k = 0; k < 2; k++) {
        const script = "rm -f /tmp/echo; /bin/echo unix:/tmp/echo & echo $! > /tmp/pid; wait"
        const server = yield* Container.execStream(box, ["sh", "-c", script])
        assert.equal(yield* promise(() => exchangeSoon({ path }, "hello")), "hellobye")
        yield* Container.exec(box, ["sh", "-c", "kill $(cat /tmp/pid)"])
        yield* server.exit
      }
    },
    { skip: whyNoBusybox }
  )

  effect(
    "leads to no socket of the host, whatever the links of the container say",
    function* () {
      const folder = yield* temporaryFolder
      let accepted = 0
      const server = net.createServer((socket) => {
        accepted++
        socket.destroy()
      })
      yield* Effect.acquireRelease(
        promise(() => new Promise<void>((resolve) => server.listen(`${folder}/host`, resolve))),
        () => promise(() => new Promise((resolve) => server.close(resolve)))
      )
      const box = yield* start(["unix:/tmp/own"])
      const links = [`${folder}/host`, `../../../../../..${folder}/host`, `/proc/1/root${folder}/host`]
      for (const [k, to] of links.entries()) {
        yield* Container.exec(box, ["ln", "-s", to, `/tmp/link${k}`])
        const published = yield* Container.publish(box, { container: { path: `/tmp/link${k}` } })
        yield* promise(() => assert.rejects(exchange(at(published), "hello"), { code: "ECONNREFUSED" }))
      }
      yield* Container.exec(box, ["ln", "-s", "../../../tmp/own", "/tmp/link"])
      const published = yield* Container.publish(box, { container: { path: "/tmp/link" } })
      assert.equal(yield* promise(() => exchangeSoon(at(published), "hello")), "hellobye")
      assert.equal(accepted, 0)
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that is taken is an error that names its holder; a file that a killed program has left is replaced",
    function* () {
      const folder = yield* temporaryFolder
      const box = yield* start(["v4:7"])
      const path = `${folder}/sock`
      yield* Container.publish(box, { container: 7, path })
      const taken = Effect.scoped(Container.publish(box, { container: 7, path }))
      const error = yield* failure("NetworkError", taken)
      assert.equal(error.reason, "AddressInUse")
      assert.match(error.message, /sock: the path is taken by .*berth-proxy \(pid \d+\)/)

      fs.writeFileSync(`${folder}/file`, "kept")
      const onFile = Effect.scoped(Container.publish(box, { container: 7, path: `${folder}/file` }))
      assert.equal((yield* failure("NetworkError", onFile)).reason, "AddressInUse")
      assert.equal(fs.readFileSync(`${folder}/file`, "utf8"), "kept")

      const server = net.createServer()
      yield* promise(() => new Promise<void>((resolve) => server.listen(`${folder}/killed`, resolve)))
      fs.linkSync(`${folder}/killed`, `${folder}/left`)
      yield* promise(() => new Promise((resolve) => server.close(resolve)))
      yield* Container.publish(box, { container: 7, path: `${folder}/left` })
      assert.equal(yield* promise(() => exchangeSoon({ path: `${folder}/left` }, "hello")), "hellobye")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that another file has replaced is not removed",
    function* () {
      const folder = yield* temporaryFolder
      const box = yield* start(["v4:7"])
      yield* Effect.scoped(
        Effect.gen(function* () {
          const { path } = yield* Container.publish(box, { container: 7, path: `${folder}/sock` })
          fs.rmSync(path)
          fs.writeFileSync(path, "another")
        })
      )
      assert.equal(fs.readFileSync(`${folder}/sock`, "utf8"), "another")
    },
    { skip: whyNoBusybox }
  )

  effect(
    "that cannot be is refused by name",
    function* () {
      const folder = yield* temporaryFolder
      const box = yield* start(["v4:7"])
      const wrong: ReadonlyArray<readonly [object, RegExp]> = [
        [{ container: 7, path: "relative" }, /path: "relative".*absolute path/],
        [{ container: 7, path: `${folder}/` }, /an absolute path of a file/],
        [{ container: 7, path: `${folder}/..` }, /an absolute path of a file/],
        [{ container: 7, path: `/${"x".repeat(107)}` }, /at most 107 bytes/],
        [{ container: 7, path: `${folder}/none/sock` }, /none\/sock.*a path in a folder that exists/],
        [{ container: 7, path: `${folder}/sock`, mode: 0o1777 }, /mode: 1023/],
        [{ container: 7, path: `${folder}/sock`, host: 80 }, /host: 80.*nothing beside `path`/],
        [{ container: 70000, path: `${folder}/sock` }, /container: 70000/],
        [{ container: { path: "relative" } }, /path: "relative".*absolute path in the container/],
        [{ container: { path: "/tmp/echo" }, protocol: "udp" }, /a Unix socket has no UDP/]
      ]
      for (const [options, message] of wrong) {
        const refused = Effect.scoped(Container.publish(box, options as Connection.PublishOptions))
        assert.match((yield* failure("InvalidOption", refused)).message, message)
      }
      assert.deepEqual(fs.readdirSync(folder), [])
    },
    { skip: whyNoBusybox }
  )
})
