/**
 * What networks cost: a start with one, connections, throughput, names. Contenders take turns in one run. bench/network.c is the
 * server and the client, on the host and in containers.
 */

import * as net from "node:net"
import { parseArgs } from "node:util"
import { type Berth, Container, Image, Network, WaitFor } from "berth"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { podmanStarts, type Rival, rival } from "./rivals.ts"
import {
  build,
  type Contender,
  capture,
  interleave,
  isMet,
  machine,
  median,
  milliseconds,
  onBerth,
  oneContainer,
  onThisBerth,
  quantile,
  ratio,
  type Summaries,
  type Target,
  table,
  targetsTable,
  temporaryFolder,
  timed,
  timesTable,
  type Unmeasured,
  unmeasured,
  writeResults
} from "./support.ts"

const WARMUPS = 5
const SERVER_PORT = 7
const MEBIBYTES = 256
const CONNECTIONS = 500
// So many that the code of both is compiled in most of them.
const CONNECTS = 3000
const LOOKUPS = 1000
const FIRSTS = 1000
const SLOW_MS = 20

const NONE = "no network"
const JOINED = "joins a network"
const OWN = "a network of its own"

const sampled = <A, R>(effect: Effect.Effect<A, { readonly message: string }, R>) =>
  Effect.mapError(effect, unmeasured)

// Starts

const starts: Effect.Effect<ReadonlyArray<Contender>, Unmeasured, Berth.Berth | Scope.Scope> = Effect.gen(
  function* () {
    const network = yield* sampled(Network.make())
    const own = Effect.flatMap(sampled(Network.make()), (made) => oneContainer({ network: made }))
    return [
      yield* onThisBerth(NONE, oneContainer({})),
      yield* onThisBerth(JOINED, oneContainer({ network })),
      yield* onThisBerth(OWN, Effect.scoped(own))
    ]
  }
)

// Traffic

/** A server on the host's loopback and one in a container, that container's published port, and another container. */
interface Stage {
  readonly path: string
  readonly network: Network.Network
  readonly hostPort: number
  readonly server: Container.Container
  readonly publishedPort: number
  readonly client: Container.Container
}

/** A port of this machine that is free. */
const freePort = Effect.promise(
  () =>
    new Promise<number>((resolve) => {
      const server = net.createServer().listen(0, "127.0.0.1", () => {
        const { port } = server.address() as net.AddressInfo
        server.close(() => resolve(port))
      })
    })
)

const serving = (path: string, port: number, options: Container.StartOptions) =>
  Effect.gen(function* () {
    const command = [path, "serve", String(port)]
    const box = yield* Container.start(yield* Image.host, { ...options, command })
    yield* WaitFor.log(box, "listening")
    return box
  })

const stage = (path: string): Effect.Effect<Stage, Unmeasured, Berth.Berth | Scope.Scope> =>
  sampled(
    Effect.gen(function* () {
      const network = yield* Network.make()
      const hostPort = yield* freePort
      yield* serving(path, hostPort, { network: "host" })
      const server = yield* serving(path, SERVER_PORT, { network, name: "server" })
      const { port } = yield* Container.publish(server, SERVER_PORT)
      const client = yield* Container.start(yield* Image.host, { network, command: ["sleep", "infinity"] })
      return { path, network, hostPort, server, publishedPort: port, client }
    })
  )

/** The number that the client prints in a container. */
const clientIn = (box: Container.Container, path: string, args: ReadonlyArray<string>) =>
  Effect.flatMap(sampled(Container.exec(box, [path, ...args])), ({ exitCode, stderr, stdout }) =>
    exitCode === 0 ? Effect.succeed(stdout) : Effect.fail(unmeasured(stderr))
  )

const millisOf = Effect.map((micros: string) => Number.parseFloat(micros) / 1000)

const LOOPBACK = "loopback"
const PUBLISHED = "published port"
const BETWEEN = "container to container"

/** The same work of the client by each of the three ways. */
const ways = ({ client, hostPort, path, publishedPort, server }: Stage, kind: string, count: number) => {
  const here = (port: number) => millisOf(capture(path, [kind, "127.0.0.1", String(port), String(count)]))
  const between = [kind, server.state.addresses[0]!, String(SERVER_PORT), String(count)]
  return [
    { name: LOOPBACK, run: here(hostPort) },
    { name: PUBLISHED, run: here(publishedPort) },
    { name: BETWEEN, run: millisOf(clientIn(client, path, between)) }
  ]
}

const CONNECT = "Container.connect"
const NODE_CONNECT = "net.connect to loopback"

const connects = ({ hostPort, server }: Stage): ReadonlyArray<Contender> => {
  const byNode = Effect.async<void, Unmeasured>((resume) => {
    const socket = net.connect({ host: "127.0.0.1", port: hostPort })
    socket.on("error", (cause) => resume(Effect.fail(unmeasured(cause))))
    socket.on("connect", () => {
      socket.destroy()
      resume(Effect.void)
    })
  })
  return [
    { name: CONNECT, run: timed(sampled(Effect.scoped(Container.connect(server, SERVER_PORT)))) },
    { name: NODE_CONNECT, run: timed(byNode) }
  ]
}

const KNOWN = "a name of the network"
const UNKNOWN = "an unknown name"

const lookups = ({ client, path }: Stage): ReadonlyArray<Contender> =>
  [
    [KNOWN, "server"],
    [UNKNOWN, "nowhere"]
  ].map(([name, asked]) => ({
    name: name!,
    run: millisOf(clientIn(client, path, ["lookup", asked!, String(LOOKUPS)]))
  }))

/** The first connect of a fresh container, in milliseconds: its interfaces have carried nothing before. */
const firsts = ({ path, server, network }: Stage, count: number) =>
  Effect.gen(function* () {
    const command = [path, "connect", server.state.addresses[0]!, String(SERVER_PORT)]
    const image = yield* Image.host
    const one = Effect.map(sampled(Container.run(image, { network, command })), ({ exitCode, stdout }) =>
      exitCode === 0 ? Number(stdout) / 1000 : Number.POSITIVE_INFINITY
    )
    return yield* Effect.replicateEffect(one, count)
  })

/** So many containers on one network, or networks, at a time: milliseconds until all are there, and until all are gone. */
const many = (
  what: Effect.Effect<unknown, { readonly message: string }, Berth.Berth | Scope.Scope>,
  count: number
) =>
  Effect.gen(function* () {
    const begun = performance.now()
    const made = yield* Effect.scoped(
      Effect.map(Effect.replicateEffect(sampled(what), count, { discard: true }), () => performance.now())
    )
    return { there: made - begun, gone: performance.now() - made }
  })

// The benchmark

const MEGABITS = (MEBIBYTES * 2 ** 20 * 8) / 1e6

const gigabits = (millis: number): string => (MEGABITS / millis).toFixed(2)

const rates = (ways: ReadonlyArray<string>, bytes: Summaries, connections: Summaries): string =>
  table([
    ["by", "Gbit/s, p50", `to ${LOOPBACK}`, "connection and a byte, µs", `to ${LOOPBACK}`],
    ...ways.map((way) => [
      way,
      gigabits(bytes[way]?.median ?? Number.NaN),
      ratio(bytes, LOOPBACK, way).toFixed(2),
      ((connections[way]?.median ?? Number.NaN) * 1000).toFixed(0),
      ratio(connections, way, LOOPBACK).toFixed(2)
    ])
  ])

const measure = (rounds: number) =>
  Effect.gen(function* () {
    const host = machine()
    yield* Console.log(
      `Linux ${host.kernel} ${host.architecture}, ${host.cpus} CPUs, ${host.runtime}, load ${host.load.toFixed(1)}; ${rounds} rounds\n`
    )
    const path = yield* build("network")
    const begun = yield* interleave([...(yield* starts), ...(yield* podmanStarts(yield* temporaryFolder))], {
      rounds,
      warmups: WARMUPS
    })
    for (const [name, why] of begun.skipped) yield* Console.log(`skipped: ${name}: ${why}`)
    yield* Console.log(`${timesTable(begun.summaries, NONE)}\n`)

    const there = yield* stage(path)
    const once = (contenders: ReadonlyArray<Contender>, times = rounds) =>
      Effect.map(interleave(contenders, { rounds: times, warmups: 1 }), ({ skipped, summaries }) => {
        for (const [name, why] of skipped) console.log(`skipped: ${name}: ${why}`)
        return summaries
      })
    const rivals: Array<Rival> = []
    for (const engine of ["podman", "docker"] as const)
      yield* Effect.match(rival(engine, yield* temporaryFolder, path), {
        onFailure: ({ message }) => console.log(`skipped: traffic of ${engine}: ${message}`),
        onSuccess: (made) => rivals.push(made)
      })
    const traffic = (kind: string, count: number) =>
      once(
        [...ways(there, kind, count), ...rivals.flatMap(({ contenders }) => contenders(kind, count))],
        Math.ceil(rounds / 10)
      )
    const bytes = yield* traffic("bytes", MEBIBYTES)
    const connections = yield* traffic("connections", CONNECTIONS)
    const named = [LOOPBACK, PUBLISHED, BETWEEN, ...rivals.flatMap((made) => made.ways)]
    yield* Console.log(`${rates(named, bytes, connections)}\n`)
    const connected = yield* once(connects(there), CONNECTS)
    const looked = yield* once(lookups(there), Math.ceil(rounds / 10))
    yield* Console.log(`${timesTable({ ...connected, ...looked }, NODE_CONNECT)}\n`)

    const first = yield* firsts(there, FIRSTS)
    const slow = first.filter((millis) => millis > SLOW_MS).length
    const slowest = Math.max(...first)
    const p50 = milliseconds(median(first))
    const p99 = milliseconds(quantile(first, 0.99))
    yield* Console.log(
      `first connects of ${first.length} containers: p50 ${p50} ms, p99 ${p99} ms, slowest ${milliseconds(slowest)} ms, above ${SLOW_MS} ms: ${slow}`
    )
    const image = yield* Image.host
    const network = yield* sampled(Network.make())
    const containers = yield* many(Container.start(image, { network, command: ["sleep", "infinity"] }), 100)
    const networks = yield* many(Network.make(), 20)
    const scale = ({ gone, there }: { readonly there: number; readonly gone: number }): string =>
      `there after ${there.toFixed(0)} ms, gone after ${gone.toFixed(0)} ms`
    yield* Console.log(
      `100 containers on one network: ${scale(containers)}; 20 networks: ${scale(networks)}\n`
    )

    const beside = (way: string, place: number): ReadonlyArray<Target> =>
      rivals.map((made) => ({
        what: `throughput: ${way} / ${made.ways[place]}`,
        value: ratio(bytes, made.ways[place]!, way),
        atLeast: 1
      }))
    const targets: ReadonlyArray<Target> = [
      { what: `start: ${OWN} / ${NONE}`, value: ratio(begun.summaries, OWN, NONE), atMost: 1.5 },
      { what: `start: ${JOINED} / ${NONE}`, value: ratio(begun.summaries, JOINED, NONE), atMost: 1.25 },
      { what: `${CONNECT}, µs`, value: (connected[CONNECT]?.median ?? Number.NaN) * 1000, atMost: 100 },
      {
        what: `throughput: ${PUBLISHED} / ${LOOPBACK}`,
        value: ratio(bytes, LOOPBACK, PUBLISHED),
        atLeast: 0.6
      },
      ...beside(PUBLISHED, 0),
      ...beside(BETWEEN, 1),
      { what: `${KNOWN}, µs`, value: (looked[KNOWN]?.median ?? Number.NaN) * 1000, atMost: 200 },
      { what: `${UNKNOWN}, µs`, value: (looked[UNKNOWN]?.median ?? Number.NaN) * 1000, atMost: 1000 },
      { what: `first connects above ${SLOW_MS} ms`, value: slow, atMost: 0 }
    ]
    yield* Console.log(targetsTable(targets, "medians"))
    const file = writeResults("network", {
      machine: host,
      rounds,
      starts: begun.summaries,
      skipped: Object.fromEntries(begun.skipped),
      bytes,
      connections,
      connected,
      looked,
      firsts: { median: median(first), slowest, slow },
      scale: { containers, networks },
      targets: targets.map((target) => ({ ...target, met: isMet(target) }))
    })
    yield* Console.log(`\nwritten: ${file}`)
  })

export const network = (args: ReadonlyArray<string>): Effect.Effect<void> => {
  const { values } = parseArgs({ args: [...args], options: { rounds: { type: "string", default: "100" } } })
  return onBerth(measure(Number(values.rounds)))
}
