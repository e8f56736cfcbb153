/**
 * The way out of a network. The kernel redirects each TCP connection that leaves the network's range to a socket in the network's
 * namespace (nftables.ts). There native/proxy accepts it, asks where it was going to, and connects from the program's own network
 * namespace, if the rules allow that (outboundRules.ts). A second native/names asks the servers of the program's machine for the names
 * that the network's responder does not know, on a socket in the responder's namespace; it tells the proxy the addresses of allowed names
 * before anybody can use them. What is not TCP leaves by pasta, if at all (pasta.ts).
 */
import { randomInt } from "node:crypto"
import { readFileSync } from "node:fs"
import { isIP } from "node:net"
import * as Effect from "effect/Effect"
import * as PubSub from "effect/PubSub"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type BerthError, InvalidOption, OperationFailed, Unsupported } from "../../BerthError.ts"
import type { Network, NetworkOptions, Refusal } from "../../Network.ts"
import { socketIn } from "../files/namespaceRoot.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { makeSocketPair } from "../system/pipe.ts"
import { EAGAIN, EPIPE } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { AF_INET, candidates, portOf, type SocketAddress } from "./address.ts"
import { startHelper } from "./helper.ts"
import type { Names } from "./names.ts"
import { ip } from "./netlink.ts"
import { type Listener, redirect } from "./nftables.ts"
import { type Rules, rulesOf } from "./outboundRules.ts"
import { joinUplink } from "./pasta.ts"
import { addAll, type Proxy, startProxy, wherever } from "./proxy.ts"
import { bindInside, gatewaysOf, numberOf, perform } from "./router.ts"
import { SOCK_DGRAM, SOCK_STREAM } from "./socket.ts"
import { shape } from "./toxic.ts"

/** So many refusals are kept for who asks later, and for who reads slowly. */
const REFUSALS_MAX = 256

/** The proxy reads messages of 4159 bytes at most, the responder of 8192. */
const MESSAGE_BYTES_MAX = 4000

const REFUSAL_BYTES_MAX = 256

/** So many messages are read before others have their turn. */
const REFUSALS_IN_TURN = 64

const failed = (operation: string, syscall: string, errno: number): BerthError =>
  new OperationFailed({ operation, index: -1, syscall, errno, hint: "" })

/** Words in as few lines as messages have room for. */
const linesOf = (words: ReadonlyArray<string>): ReadonlyArray<string> => {
  const lines: Array<string> = []
  for (const word of words) {
    const last = lines.at(-1)
    if (last === undefined || last.length + word.length >= MESSAGE_BYTES_MAX) lines.push(word)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines
}

/** Two connected sockets, which are closed with the scope. */
const socketPair = Effect.acquireRelease(attempt(makeSocketPair), (pair) =>
  Effect.sync(() => pair.forEach((fd) => native().close(fd)))
)

/** Starts a responder that asks other servers. Gives what sends it a message, and throws. */
const startForwarder = (network: Network) =>
  Effect.gen(function* () {
    const { socket } = yield* startHelper(network.state.berth, {
      program: "berth-names",
      name: `outbound names of network ${network.name}`,
      place: [{ op: "process", namespaces: flagsOf(["pid", "ipc", "uts"]) }]
    })
    let ended = false
    yield* Effect.addFinalizer(() => Effect.sync(() => (ended = true)))
    return (message: string, fds: ReadonlyArray<number> = []): void => {
      // The scope may have closed while the network is made: the socket's number may be another file's by now.
      const sent = ended ? -EPIPE : native().send(socket, new TextEncoder().encode(message), fds)
      if (sent < 0) throw failed("a message to the responder for outbound names", "sendmsg", -sent)
    }
  })

const closeAll = (fds: Array<number>): void => fds.splice(0).forEach((fd) => native().close(fd))

const boundPort = (fd: number): number => {
  const name = new Uint8Array(28)
  native().socketAddress(fd, name)
  return portOf(name)
}

/** Bound sockets with their ports. They are closed with the scope, unless that is done before. */
const scopedSockets = (open: (fds: Array<number>) => void) =>
  Effect.acquireRelease(
    attempt(() => {
      const fds: Array<number> = []
      try {
        open(fds)
        return { fds, ports: fds.map(boundPort) }
      } catch (error) {
        closeAll(fds)
        throw error
      }
    }),
    ({ fds }) => Effect.sync(() => closeAll(fds))
  )

const listenAt = (fd: number, what: string): void => {
  const listening = native().listen(fd)
  if (listening < 0) throw failed(what, "listen", -listening)
}

const parseServer = (text: string, index: number): string => {
  const bracketed = /^\[(.*)\]:(\d{1,5})$/.exec(text)
  const plain = /^([\d.]+):(\d{1,5})$/.exec(text)
  const [address, port] = bracketed?.slice(1) ?? plain?.slice(1) ?? [text, "53"]
  if (isIP(address!) !== 0 && !address!.includes("%") && Number(port) >= 1 && Number(port) <= 65535)
    return `${address} ${port}`
  throw new InvalidOption({
    option: `dns[${index}]`,
    value: JSON.stringify(text),
    expected: 'the address of a name server, with a port or without: "192.0.2.53", "[2001:db8::53]:5353"'
  })
}

/** The name servers of this machine, resolv.conf(5); without any, the one on its loopback. */
const hostServers = (): ReadonlyArray<string> => {
  let text = ""
  try {
    text = readFileSync("/etc/resolv.conf", "utf8")
  } catch {
    // The file may be missing.
  }
  const found = [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)]
    .map((match) => match[1]!)
    .filter((address) => isIP(address) !== 0 && !address.includes("%"))
  return (found.length === 0 ? ["127.0.0.1"] : found).map(parseServer)
}

/** A socket in the namespace of the responder; throws. */
const bindBeside = (names: Names, type: number, { bytes, text }: SocketAddress): number => {
  const fd = socketIn(names.responder.pidfd(), AF_INET, type)
  if (fd < 0) throw failed("a socket of the responder for names", "socket", -fd)
  const bound = native().bind(fd, bytes)
  if (bound >= 0) return fd
  native().close(fd)
  throw failed(`bind ${text} beside the responder for names`, "bind", -bound)
}

/** Has the network's responder ask the servers, for names that the rules allow. */
const forwardNames = (network: Network, rules: Rules, servers: ReadonlyArray<string>, proxy: Proxy) =>
  Effect.gen(function* () {
    const { names } = network.state
    if (rules.names?.length === 0) return
    const tell = yield* startForwarder(network)
    // Each network has a loopback address of its own there, on which every port is free.
    const host = `127.${randomInt(1, 255)}.${randomInt(1, 255)}.${randomInt(1, 255)}`
    const { fds, ports } = yield* scopedSockets((fds) => {
      fds.push(bindBeside(names, SOCK_DGRAM, candidates({ host, port: 0 }, 0)[0]!))
      fds.push(bindBeside(names, SOCK_STREAM, candidates({ host, port: boundPort(fds[0]!) })[0]!))
      listenAt(fds[1]!, "a socket of the responder for names")
    })
    if (rules.names !== undefined) {
      const [learning, telling] = yield* socketPair
      yield* proxy.tell("learn", "", [learning])
      yield* attempt(() => {
        tell("tell", [telling])
        for (const line of linesOf(rules.names!)) tell(`allow ${line}`)
      })
    }
    yield* attempt(() => {
      for (const line of linesOf(servers)) tell(`forward 1 ${line}`)
      tell("serve 1 1", fds)
      closeAll(fds)
      names.forward(host, ports[0]!)
    })
  })

/** Reads what the proxy tells, until the scope closes. */
const readRefusals = (network: Network, proxy: Proxy) =>
  Effect.gen(function* () {
    const [socket, theirs] = yield* socketPair
    yield* proxy.tell("refusals", "", [theirs])
    const refusals = yield* Effect.acquireRelease(
      PubSub.sliding<Refusal>({ capacity: REFUSALS_MAX, replay: REFUSALS_MAX }),
      PubSub.shutdown
    )
    const bytes = new Uint8Array(REFUSAL_BYTES_MAX)
    let cancel: (() => void) | number = 0
    const take = (): void => {
      for (let k = 0; k < REFUSALS_IN_TURN; k++) {
        const [length] = native().receive(socket, bytes)
        if (length === -EAGAIN) break
        if (length <= 0) return
        const [why, from, address, port] = new TextDecoder().decode(bytes.subarray(0, length)).split(" ")
        const member = network.state.members.get(numberOf(from!))
        refusals.unsafeOffer({
          reason: why === "full" ? "TooMany" : "NotAllowed",
          container: member?.container,
          address: address!,
          port: Number(port)
        })
      }
      cancel = Loop.watch(socket, EPOLLIN, take)
    }
    take()
    yield* Effect.addFinalizer(() => Effect.sync(() => typeof cancel === "number" || cancel()))
    return refusals
  })

const unsupported = (error: BerthError): BerthError =>
  error._tag === "OperationFailed" && /^(netlink|socket)/.test(error.syscall)
    ? new Unsupported({
        feature: "outbound of networks",
        why: `the kernel refuses to redirect connections by nf_tables: ${error.syscall} fails with ${error.code}`,
        hint: "It needs nf_tables with NAT, for IPv6 as well: modprobe nft_chain_nat nft_nat (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6)",
        cause: error
      })
    : error

/** Opens the way out of a network until the scope closes. */
export const openOutbound = (
  network: Network,
  { dns, outbound = "none" }: NetworkOptions
): Effect.Effect<PubSub.PubSub<Refusal> | undefined, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const servers = yield* attempt(() => dns?.map(parseServer))
    if (outbound === "none") {
      if (dns === undefined) return undefined
      const expected = "undefined without outbound: no other machine's names are asked for"
      return yield* Effect.fail(new InvalidOption({ option: "dns", value: JSON.stringify(dns), expected }))
    }
    const { berth, router } = network.state
    const { prefix4, prefix6 } = router.range
    const own = [`${prefix4}.0.0/16`, ...(prefix6 === undefined ? [] : [`${prefix6}::/64`])]
    const rules = yield* attempt(() => rulesOf(outbound === "pasta" ? "proxy" : outbound, own))
    const gateways = gatewaysOf(router)
    const { fds, ports } = yield* scopedSockets((fds) => {
      for (const host of gateways) {
        const fd = bindInside(router, candidates({ host, port: 0 }, 0)[0]!)
        fds.push(fd)
        listenAt(fd, "the socket of outbound connections")
      }
    })
    const listeners = gateways.map((host, place): Listener => {
      const address = ip(host)
      return { address, port: ports[place]!, prefix: address.bytes.slice(0, host.includes(":") ? 8 : 2) }
    })
    const proxy = yield* startProxy(berth, {
      name: `outbound of network ${network.name}`,
      place: [{ op: "process", namespaces: 0 }]
    })
    for (const line of linesOf(rules.rules)) yield* proxy.tell("rules", line)
    const refusals = yield* readRefusals(network, proxy)
    shape(network, proxy, yield* addAll(proxy, fds, wherever))
    yield* forwardNames(network, rules, servers ?? hostServers(), proxy)
    const messages = new Uint8Array(redirect(listeners).flat())
    yield* perform(berth, router.namespace.fd, "outbound of a network", [{ op: "netfilter", messages }]).pipe(
      Effect.zipRight(outbound === "pasta" ? joinUplink(network) : Effect.void),
      Effect.mapError(unsupported)
    )
    return refusals
  })

/** See `Network.refusals`. */
export const refusals = (network: Network): Stream.Stream<Refusal, BerthError> =>
  Stream.suspend(() => {
    const { refusals } = network.state
    if (refusals !== undefined) return Stream.fromPubSub(refusals)
    return Stream.fail(
      new InvalidOption({
        option: "network",
        value: network.name,
        expected:
          "a network that was made with outbound: nothing leaves the others, and nothing is told of it"
      })
    )
  })
