/** What a round of the soak does until it is cut short: containers with everything that Berth offers, and a slow pull. */
import * as fs from "node:fs"
import { createServer } from "node:http"
import * as net from "node:net"
import { gzipSync } from "node:zlib"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Berth, type BerthError, Container, Image, Mount, Namespace, Network } from "../../lib/index.ts"
import { goArchitecture, sha256, types } from "./images.ts"
import * as Tar from "./tar.ts"

/** A number below `n`, of a sequence that the seed decides (mulberry32). */
export const random = (seed: number): ((n: number) => number) => {
  let state = seed >>> 0
  return (n) => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % n
  }
}

export interface Slow {
  readonly reference: string
  readonly stop: () => Promise<void>
}

/** A registry of one image, whose layer comes in small pieces, so that a pull and an unpack take a while. */
export const slowRegistry = async (): Promise<Slow> => {
  const files = Array.from({ length: 40 }, (_, k) => Tar.file(`f${k}/a/b`, "x".repeat(3000 + k)))
  const layer = Tar.tar(...files)
  const blob = gzipSync(layer, { level: 0 })
  const config = Buffer.from(
    JSON.stringify({
      architecture: goArchitecture,
      os: "linux",
      config: {},
      rootfs: { type: "layers", diff_ids: [sha256(layer)] }
    })
  )
  const describe = (mediaType: string, bytes: Uint8Array) => ({
    mediaType,
    digest: sha256(bytes),
    size: bytes.length
  })
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: types.manifest,
      config: describe(types.config, config),
      layers: [describe(types.gzip, blob)]
    })
  )
  // One that has been made for a request that was never sent is kept by Node's fetch for four seconds, and looks so, too.
  const unused = { connectionsCheckingInterval: 50, headersTimeout: 250 }
  const server = createServer(unused, (request, response) => {
    // A connection that the client keeps for the next request would look like one that is left.
    response.shouldKeepAlive = false
    const url = request.url ?? ""
    if (url.endsWith("/v2/")) return response.end("{}")
    if (url.includes("/manifests/")) {
      response.setHeader("content-type", types.manifest)
      response.setHeader("docker-content-digest", sha256(manifest))
      return response.end(request.method === "HEAD" ? undefined : manifest)
    }
    if (url.endsWith(sha256(config))) return response.end(config)
    let at = 0
    const next = (): void => {
      if (response.destroyed) return
      response.write(blob.subarray(at, at + 8192))
      at += 8192
      if (at >= blob.length) response.end()
      else setTimeout(next, 4)
    }
    return next()
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return {
    reference: `127.0.0.1:${(server.address() as net.AddressInfo).port}/soak:latest`,
    stop: () =>
      new Promise((resolve) => {
        server.closeAllConnections()
        server.close(() => resolve())
      })
  }
}

export interface Work {
  readonly seed: number
  /** In the environment of every process, by which it is known. */
  readonly mark: string
  /** A root with a busybox. */
  readonly root: string
  /** A folder for binds and logs. */
  readonly folder: string
  /** What is pulled, slowly. */
  readonly reference: string
  /** Whether containers fork until their limit refuses it. */
  readonly bomb: boolean
  /** Whether it is a container that attacks what is executed in it, and one beside it that has to go on as ever. */
  readonly attack: boolean
}

const sh = (script: string): ReadonlyArray<string> => ["sh", "-c", script]

const scripts = [
  "exec sleep 1000",
  "sleep 1000 & sleep 1000 & wait",
  "trap '' TERM INT HUP; while :; do sleep 0.01; echo line; done",
  "mkdir -p /tmp/a/b/c; cd /tmp/a; for i in 1 2 3 4 5 6 7 8 9; do : > f$i; done; exec sleep 1000",
  "yes | head -c 300000; exec sleep 1000",
  "exit 0",
  "exit 3"
]

const bomb = "b() { b | b & }; while :; do b 2>/dev/null; done"

type Running = Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>

type Env = Readonly<Record<string, string>>

/** Executes in it again and again, whatever comes of it; what never comes to execute is given up. */
const provoke = (box: Container.Container, env: Env) =>
  Container.exec(box, ["echo", "x"], { env }).pipe(Effect.timeout(200), Effect.ignore, Effect.forever)

/** Executes in it, which has to work. */
export const checkExec = (box: Container.Container, env: Env = {}) =>
  Container.exec(box, ["echo", "x"], { env }).pipe(
    Effect.timeoutFail({ duration: 10_000, onTimeout: () => "it takes longer than 10 seconds" }),
    Effect.filterOrFail(
      ({ stdout }) => stdout === "x\n",
      ({ stdout }) => `it printed ${JSON.stringify(stdout)}`
    )
  )

/** A container of an attacker (births.c) that is executed in, and reads of its output. */
export const attacker = (root: string, options: Pick<Container.StartOptions, "env" | "userns"> = {}) =>
  Effect.gen(function* () {
    const image = yield* Image.fromRootfs(root)
    const box = yield* Container.start(image, { ...options, command: ["/births"] })
    yield* Effect.forkScoped(Stream.runDrain(box.stdout))
    for (let k = 0; k < 3; k++) yield* Effect.forkScoped(provoke(box, options.env ?? {}))
  })

/** Beside an attacker, a container in which every command has to do what it should, as long as the scope. */
const beside = (root: string, env: Env) =>
  Effect.gen(function* () {
    const broken = yield* Deferred.make<never>()
    const image = yield* Image.fromRootfs(root)
    yield* Effect.forkScoped(Effect.ignore(Effect.zipRight(attacker(root, { env }), Effect.never)))
    const box = yield* Container.start(image, { command: ["sleep", "1000"], env })
    yield* checkExec(box, env).pipe(
      Effect.forever,
      Effect.catchAll((why) => Deferred.die(broken, new Error(`a command beside an attacker: ${why}`))),
      Effect.forkScoped
    )
    return yield* Deferred.await(broken)
  })

/** Starts it all and does not end by itself. A part may fail, as what it needs is being taken away. */
export const work = (options: Work): Effect.Effect<never, never, Berth.Berth | Scope.Scope> => {
  const below = random(options.seed)
  const env = { BERTH_SOAK: options.mark }
  if (options.attack) return Effect.orDie(beside(options.root, env))
  fs.mkdirSync(`${options.folder}/bound`, { recursive: true })
  const container = (number: number): Running => {
    const limited = options.bomb || below(2) === 0
    const command = sh(options.bomb ? bomb : scripts[below(scripts.length)]!)
    const settings: Container.StartOptions = {
      command,
      env,
      init: below(3) === 0,
      upper: below(2) === 0 ? "disk" : "memory",
      ...(limited ? { limits: { pids: 20 + below(20), memory: "64MiB" } } : {}),
      ...(!options.bomb && below(5) === 0 ? { namespaces: { pid: "host" as const } } : {}),
      ...(below(2) === 0
        ? { mounts: [Mount.bind(`${options.folder}/bound`, "/mnt/bound"), Mount.tmpfs("/mnt/memory")] }
        : {}),
      ...(below(3) === 0 ? { logs: { folder: `${options.folder}/log${number}` } } : {}),
      ...(below(4) === 0 ? { terminal: true } : {})
    }
    const execs = Array.from({ length: below(3) }, () => below(2))
    const pauses = below(3) === 0
    const reads = below(2) === 0 && settings.logs === undefined
    return Effect.gen(function* () {
      const image = yield* Image.fromRootfs(options.root)
      const box = yield* Container.start(image, settings)
      // What is executed meanwhile comes first, or is refused.
      if (pauses) yield* Effect.forkScoped(Effect.ignore(Container.pause(box)))
      if (reads) yield* Effect.forkScoped(Stream.runDrain(box.stdout))
      yield* Effect.forEach(
        execs,
        (kind): Running =>
          kind === 0
            ? Container.execStream(box, ["sleep", "1000"], { env })
            : Container.exec(box, ["echo", "x"], { env }),
        { concurrency: "unbounded" }
      )
    })
  }
  /** A server on a network, with a published port, and connections to it, by the program and by the port. */
  const outbound = (["proxy", "none", "pasta"] as const)[below(3)]!
  const isUsed = Array.from({ length: 8 }, () => below(3) === 0)
  const network: Running = Effect.gen(function* () {
    const image = yield* Image.fromRootfs(options.root)
    // Pasta needs a machine with a default route.
    const own = yield* Effect.catchTag(Network.make({ outbound }), "Unsupported", () => Network.make())
    const box = yield* Container.start(image, {
      network: [own, yield* Network.make()],
      command: sh("mkdir /tmp/www; exec busybox httpd -f -p 80 -h /tmp/www"),
      env
    })
    const published = yield* Container.publish(box, 80)
    const { hostname, port } = published
    const sleeper = (settings: Container.StartOptions) =>
      Container.start(image, { command: ["sleep", "1000"], env, ...settings })
    const uses: ReadonlyArray<Running> = [
      Network.expose(own, { host: port, name: "mock" }),
      Effect.flatMap(Network.capture(own, box), ({ stream }) => Stream.runDrain(stream)),
      Effect.flatMap(sleeper({ network: own }), (other) => Network.partition(own, box, other)),
      Network.rate(own, box, { up: "10mbit", down: "10mbit" }),
      Network.toxic(published, { latency: "20 millis", rate: "64KiB" }),
      Container.publish(box, { container: 80, path: `${options.folder}/published` }),
      Effect.flatMap(sleeper({}), (late) => Effect.forever(Effect.scoped(Network.join(own, late)))),
      Effect.flatMap(Network.pod({ network: own }), (pod) => sleeper({ network: pod }))
    ]
    for (const [k, use] of uses.entries())
      if (isUsed[k]) yield* Effect.forkScoped(Effect.ignore(Effect.zipRight(use, Effect.never)))
    const byPort = Effect.async<void>((resume) => {
      const socket = net.connect(port, hostname, () => socket.write("GET / HTTP/1.0\r\n\r\n"))
      socket.on("error", () => {}).on("close", () => resume(Effect.void))
      socket.resume()
      return Effect.sync(() => socket.destroy())
    })
    const byProgram = Effect.scoped(Container.connect(box, 80))
    for (const use of [Effect.ignore(byProgram), byPort])
      yield* Effect.forkScoped(Effect.forever(Effect.delay(use, 2)))
    return yield* Effect.never
  })
  const parts: Array<Running> = Array.from({ length: 1 + below(3) }, (_, k) => container(k))
  if (below(3) === 0) parts.push(Image.pull(options.reference))
  if (below(4) === 0) parts.push(Namespace.make(["pid", "network", "mount"]))
  if (below(2) === 0) parts.push(network)
  return Effect.zipRight(
    Effect.forEach(parts, (part) => Effect.forkScoped(Effect.ignore(part)), { discard: true }),
    Effect.never
  )
}
