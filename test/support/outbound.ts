/**
 * Containers that reach outside: a program in a network namespace of its own, which is its machine, with a link to the machines of
 * `outside.ts`. Its arguments are an empty folder, and `auto` or `host` for the ids of the containers. It prints what happened as one line of JSON.
 */
import * as fs from "node:fs"
import * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Container, Image, Network } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"
import { machine6, machines, own, startOutside } from "./outside.ts"
import { makeRoot } from "./rootfs.ts"

const [, , folder, ids] = process.argv as [string, string, string, string]
const root = makeRoot(`${folder}/root`)
const options: Container.StartOptions = ids === "auto" ? { userns: "auto" } : {}
const HIDDEN_PORT = 7777

const asked: Array<string> = []

/** A server of this machine on all of its addresses. */
const hidden = Effect.acquireRelease(
  Effect.promise(
    () =>
      new Promise<net.Server>((resolve) => {
        const server = net.createServer((socket) => socket.end("hidden\n"))
        server.listen(HIDDEN_PORT, "::", () => resolve(server))
      })
  ),
  (server) => Effect.sync(() => server.close())
)

const idle = (network: Network.Network, more: Container.StartOptions = {}) =>
  Effect.flatMap(Image.fromRootfs(root), (image) =>
    Container.start(image, { ...options, ...more, network, command: ["sleep", "1000"] })
  )

/** What a container gets at an address or a name and a port: the line of the server, and its own text again; `no such name`. */
const ask = (box: Container.Container, host: string, port: number) =>
  Effect.map(
    Container.exec(box, ["sh", "-c", `echo hello | timeout 15 nc -w 10 ${host} ${port}`]),
    ({ stderr, stdout }) =>
      /bad address/.test(stderr) ? "no such name" : stdout.trim().replaceAll("\n", ", ")
  )

/** The refusals that are told until one of a port that nothing else uses. */
const refusalsOf = (network: Network.Network, box: Container.Container) =>
  Effect.gen(function* () {
    yield* Container.exec(box, ["nc", "-w", "5", "169.254.169.254", "9"])
    const all = yield* Network.refusals(network).pipe(
      Stream.takeUntil(({ port }) => port === 9),
      Stream.runCollect
    )
    return [...all]
      .slice(0, -1)
      .map(
        ({ address, container, port }) => `${container === box.id ? "" : `${container} `}${address} ${port}`
      )
  })

const dns = [machines[0]!]

const answers = (box: Container.Container, addresses: ReadonlyArray<readonly [string, number]>) =>
  Effect.map(
    Effect.forEach(addresses, ([host, port]) =>
      Effect.map(ask(box, host, port), (text) => [`${host} ${port}`, text])
    ),
    Object.fromEntries
  )

const everything = Effect.gen(function* () {
  const network = yield* Network.make({ outbound: "proxy", dns })
  const box = yield* idle(network)
  yield* hidden
  const reached = yield* answers(box, [
    [machines[0]!, 80],
    [machine6, 81],
    ["mirror.test", 80],
    ["alias.test", 81],
    ["no.test", 80]
  ])
  const refused = yield* answers(box, [
    ...own.map((address) => [address, HIDDEN_PORT] as const),
    ["169.254.169.254", 80],
    ["meta.test", 80],
    ["self.test", HIDDEN_PORT],
    ["loop.test", HIDDEN_PORT],
    ["any.test", HIDDEN_PORT],
    ["240.0.0.1", 80]
  ])
  return { reached, refused, told: yield* refusalsOf(network, box) }
})

const listed = Effect.gen(function* () {
  const allow = ["mirror.test:80", "*.pool.test", "alias.test", "meta.test", "self.test", `${machines[2]}:81`]
  const network = yield* Network.make({ outbound: { allow }, dns })
  const box = yield* idle(network)
  asked.length = 0
  const reached = yield* answers(box, [
    [machines[1]!, 80],
    ["mirror.test", 80],
    ["mirror.test", 81],
    ["sub.pool.test", 80],
    [machines[1]!, 81],
    ["pool.test", 80],
    ["other.test", 80],
    [machines[2]!, 81],
    [machines[2]!, 80],
    ["alias.test", 80],
    ["meta.test", 80],
    ["self.test", HIDDEN_PORT]
  ])
  return { reached, told: yield* refusalsOf(network, box), asked: [...new Set(asked)].sort() }
})

/** The program does nothing at all while a container asks and connects. */
const blocked = Effect.gen(function* () {
  // The first server does not answer.
  const network = yield* Network.make({ outbound: { allow: ["mirror.test"] }, dns: ["10.99.0.99", ...dns] })
  const shared = `${folder}/shared`
  fs.mkdirSync(shared)
  fs.chmodSync(shared, 0o777)
  const box = yield* idle(network, { mounts: [{ type: "bind", source: shared, target: "/shared" }] })
  const script =
    "until [ -e /shared/go ]; do :; done; echo | nc -w 5 mirror.test 80 >/shared/got; mv /shared/got /shared/done"
  const process = yield* Container.execStream(box, ["sh", "-c", script])
  fs.writeFileSync(`${shared}/go`, "")
  const pause = new Int32Array(new SharedArrayBuffer(4))
  for (const limit = Date.now() + 15_000; !fs.existsSync(`${shared}/done`) && Date.now() < limit; )
    Atomics.wait(pause, 0, 0, 5)
  const got = fs.existsSync(`${shared}/done`) ? fs.readFileSync(`${shared}/done`, "utf8").trim() : "nothing"
  yield* process.exit
  return got
})

const none = Effect.gen(function* () {
  const box = yield* idle(yield* Network.make())
  return yield* answers(box, [["mirror.test", 80]])
})

const main = Effect.gen(function* () {
  yield* startOutside((name) => asked.push(name))
  return {
    everything: yield* Effect.scoped(everything),
    listed: yield* Effect.scoped(listed),
    blocked: yield* Effect.scoped(blocked),
    none: yield* Effect.scoped(none)
  }
})

console.log(
  JSON.stringify(
    await Effect.runPromise(main.pipe(Effect.scoped, Effect.provide(berthIn(`${folder}/berth`))))
  )
)
