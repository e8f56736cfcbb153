/**
 * The way out for UDP and ICMP: pasta(1), which passes packets on by sockets of the program's own network namespace. A
 * Berth has one pasta, on an interface of a network of its own, the uplink. The router of each network with this way out is
 * on the uplink as a container is on a network, so that its packets go there, and what its containers may not reach is unreachable
 * by its own routes. Both routers hide who has sent a packet behind an address of theirs (masquerade).
 */
import * as fs from "node:fs"
import { networkInterfaces } from "node:os"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import { type BerthError, Unsupported } from "../../BerthError.ts"
import type { Network } from "../../Network.ts"
import * as Plan from "../../Plan.ts"
import * as Ids from "../ids/idMaps.ts"
import { flagsOf } from "../ids/namespaceFlags.ts"
import { maskOf } from "../security/capabilities.ts"
import { scopedUnit } from "../supervisor/scopedUnit.ts"
import { EPOLLIN, native } from "../system/addon.ts"
import * as Loop from "../system/eventLoop.ts"
import { makePipe } from "../system/pipe.ts"
import { defaultPath } from "../util/defaultPath.ts"
import { EAGAIN, ENOENT } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import { MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY } from "../util/mountAttributes.ts"
import { startOnce } from "../util/startOnce.ts"
import { AF_INET, AF_INET6 } from "./address.ts"
import { ip, refuse } from "./netlink.ts"
import { masquerade } from "./nftables.ts"
import { refusedRanges } from "./outboundRules.ts"
import {
  attach,
  far,
  hasIPv6,
  makeOwnedNamespace,
  makeRouter,
  netlinkOperations,
  perform,
  type Range,
  type Router
} from "./router.ts"

/** Nobody reaches these addresses outside: the first are reserved (RFC 1112), and the second are this network's alone (RFC 4193). */
const rangeOf = (): Range => ({ prefix4: "240.0", prefix6: hasIPv6() ? "fd62:6572:7468:1" : undefined })
const UPLINK_RANGE_6 = "fd62:6572:7468::/48"

const INTERFACE = "pasta0"

/** The largest packet of pasta. It takes the first fragment of a datagram for the whole, so that no link before it may make any. */
export const UPLINK_MTU = 65520

const addressesOf = ({ prefix6 }: Range): ReadonlyArray<string> => [
  ...["-a", "240.1.0.2", "-n", "24", "-g", "240.1.0.1"],
  ...(prefix6 === undefined ? ["-4"] : ["-a", "fd62:6572:7468:2::2", "-g", "fd62:6572:7468:2::1"])
]

/** The options that Berth needs besides. An older pasta lacks some of them. */
export const options: ReadonlyArray<string> = [
  ...["--foreground", "--quiet", "--config-net", "--no-netns-quit", "--no-dhcp", "--no-dhcpv6", "--no-ra"],
  // Pasta of Debian 12 repeats bytes of a connection whose one half has ended: connections go by the proxy.
  "--no-tcp",
  ...["--mtu", String(UPLINK_MTU)],
  // Else the address of the gateway leads to the loopback of this machine.
  "--no-map-gw",
  // No port of the one side leads to the other.
  ...["--udp-ports", "none", "--udp-ns", "none"]
]

/** What a network with pasta needs of its Berth. */
type At = Pick<Berth, "supervisor" | "rootless">

const NOBODY = 65534

/** The ids of the user namespace that owns the uplink and in which pasta is root: outside it is an unprivileged user. */
const idsOf = ({ rootless }: At) => (rootless ? Ids.single(0, 0) : Ids.single(NOBODY, NOBODY))

/** Rights over the uplink and over namespaces of its own, which pasta needs to enter the one and to mount an empty root in the others. */
const capabilities = Number(maskOf(["NET_ADMIN", "SYS_ADMIN"]))

const DEVICE = "/dev/net/tun"

/**
 * A root where /dev/net/tun is a device that everybody may open, as the machine's may be root's alone. Without root, Berth
 * can make no device.
 */
const withDevice = ({ rootless, supervisor }: At): ReadonlyArray<Plan.Operation> =>
  rootless
    ? [{ op: "process", namespaces: 0 }]
    : [
        { op: "process", namespaces: flagsOf(["mount"]) },
        // What is read-only gets no file for a device that is missing.
        { op: "root-bind", path: "/", attributes: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, recursive: 1 },
        {
          op: "bind",
          source: `${supervisor.folder}/dev/tun`,
          target: DEVICE,
          attributes: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
          recursive: 0,
          pinned: 0
        },
        { op: "attach-root" },
        { op: "pivot" }
      ]

const PACKAGE = "apt-get install passt"

const unsupported = (why: string, cause?: unknown): Unsupported =>
  new Unsupported({
    feature: 'outbound: "pasta"',
    why,
    hint: `It needs pasta(1) of 2023 or later (${PACKAGE}), ${DEVICE} that this user may open (chmod 0666 ${DEVICE}), and a default route of this machine`,
    ...(cause === undefined ? {} : { cause })
  })

/** The paths of pasta, as execvp(3) tries them. */
const paths = (): ReadonlyArray<string> =>
  (process.env.PATH ?? defaultPath)
    .split(":")
    .filter((folder) => folder.startsWith("/"))
    .map((folder) => `${folder}/pasta`)

const SAID_BYTES_MAX = 4096
const START_SECONDS = 15

/** Reads what pasta writes, which would wait otherwise; the effect waits until it has written its pid, as it does once it works. */
const hear = (output: number): Effect.Effect<Effect.Effect<void, BerthError>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const begun = yield* Deferred.make<void, BerthError>()
    const bytes = new Uint8Array(SAID_BYTES_MAX)
    let said = ""
    let cancel: (() => void) | number = 0
    const take = (): void => {
      const length = native().read(output, bytes)
      if (length > 0)
        said = (said + new TextDecoder().decode(bytes.subarray(0, length))).slice(-SAID_BYTES_MAX)
      if (length > 0 && /^\d+\n/m.test(said)) Deferred.unsafeDone(begun, Exit.void)
      if (length > 0 || length === -EAGAIN) cancel = Loop.watch(output, EPOLLIN, take)
      else Deferred.unsafeDone(begun, Exit.fail(unsupported(`pasta ends: ${firstLine(said)}`)))
    }
    take()
    yield* Effect.addFinalizer(() => Effect.sync(() => typeof cancel === "number" || cancel()))
    return Effect.acquireUseRelease(
      Effect.sync(Loop.retain),
      () => Deferred.await(begun),
      () => Effect.sync(Loop.release)
    ).pipe(
      Effect.timeoutFail({
        duration: `${START_SECONDS} seconds`,
        onTimeout: () => unsupported(`pasta does not work after ${START_SECONDS} seconds: ${firstLine(said)}`)
      })
    )
  })

/** Without what pasta says of itself where the machine has no system log. */
const firstLine = (said: string): string =>
  said
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !/^\d+$/.test(line) && !/ bytes to syslog$/.test(line))[0] ??
  "it says nothing"

/** Runs pasta on the namespace. Its standard input is the namespace: newer versions close all descriptors but the standard streams. */
const startPasta = (at: At, namespace: number) =>
  Effect.gen(function* () {
    const [ours, theirs] = yield* attempt(() => makePipe(0))
    // Pasta opens it by its path, as another user.
    yield* attempt(() => fs.chmodSync(`/proc/self/fd/${theirs}`, 0o666))
    yield* Effect.addFinalizer(() => Effect.sync(() => native().close(ours)))
    const plan = Plan.make([
      ...withDevice(at),
      { op: "stdio", stdin: "namespace", stdout: "output", stderr: "output" },
      { op: "session" },
      { op: "join-owner", namespace: "namespace" },
      { op: "root-user" },
      { op: "bounding", capabilities },
      { op: "capabilities", effective: capabilities, permitted: capabilities, inheritable: 0, ambient: 0 },
      { op: "no-new-privileges" },
      {
        op: "exec",
        program: null,
        paths: paths(),
        arguments: [
          "pasta",
          ...options,
          "--ns-ifname",
          INTERFACE,
          ...addressesOf(rangeOf()),
          "--netns",
          "/proc/self/fd/0",
          "--pid",
          "/proc/self/fd/1"
        ],
        // A list of processes says by it whose pasta it is, as it takes no argument for that.
        environment: [`BERTH_FOLDER=${at.supervisor.folder}`]
      }
    ])
    const descriptors = { namespace, output: theirs }
    const unit = yield* scopedUnit(at, at.supervisor.nextId(), "pasta", plan, descriptors).pipe(
      Effect.mapError((error) => {
        if (error._tag !== "OperationFailed") return error
        if (plan.operations[error.index]?.op === "bind")
          return unsupported(`this machine has no ${DEVICE}: ${error.code}`, error)
        if (!error.syscall.startsWith("exec")) return error
        const why =
          error.errno === ENOENT ? "pasta is not installed" : `pasta cannot be executed: ${error.code}`
        return unsupported(why, error)
      }),
      Effect.ensuring(Effect.sync(() => native().close(theirs)))
    )
    const working = yield* hear(ours)
    yield* Effect.interruptible(working)
    return unit
  })

/** The time between the end of a pasta and the start of the next, which may end as well. */
const PAUSE = "1 second"

/**
 * Runs pasta on the namespace until the scope closes. One that ends is followed by another, with the same interface: a packet of a
 * container may end it. Fails if the first does not start.
 */
const keepPasta = (at: At, namespace: number): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const begun = yield* Deferred.make<void, BerthError>()
    const run = Effect.scoped(
      Effect.gen(function* () {
        const { ended } = yield* startPasta(at, namespace)
        yield* Deferred.succeed(begun, undefined)
        const { status } = yield* Effect.interruptible(Deferred.await(ended))
        yield* Effect.logWarning(
          `pasta, by which UDP and ICMP leave networks, has ended (status ${status} of wait(2)); it starts again`
        )
      })
    )
    const again = Effect.interruptible(Effect.sleep(PAUSE)).pipe(
      Effect.zipRight(run),
      // Without its supervisor nothing of the Berth is there; all else may be over at the next try.
      Effect.catchIf(
        (error) => error._tag !== "SupervisorError",
        (error) => Effect.logWarning(error)
      ),
      Effect.forever
    )
    yield* run.pipe(
      // Also if the scope closes meanwhile.
      Effect.tapErrorCause((cause) => Deferred.failCause(begun, cause)),
      Effect.zipRight(again),
      Effect.ignore,
      Effect.uninterruptible,
      Effect.forkScoped
    )
    yield* Deferred.await(begun)
  })

const hideBehind = (at: Pick<Berth, "supervisor">, { namespace }: Router, interfaceName: string) => {
  const families = [AF_INET, ...(hasIPv6() ? [AF_INET6] : [])]
  return perform(at, namespace.fd, "outbound of a network", [
    { op: "netfilter", messages: new Uint8Array(masquerade(interfaceName, families).flat()) }
  ])
}

/** The network that leads outside. */
const start = (at: At): Effect.Effect<Router, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const router = makeRouter(yield* makeOwnedNamespace(at, rangeOf(), idsOf(at)), UPLINK_MTU)
    yield* keepPasta(at, router.namespace.fd)
    yield* hideBehind(at, router, INTERFACE)
    return router
  })

/** Starts the uplink when it is first asked for; it ends with the scope. */
export const makeUplink = (at: At) => startOnce(start(at))

/** The addresses of this machine that are there now. */
const ownRanges = (): ReadonlyArray<string> =>
  Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .map(({ address, family }) => `${address}/${family === "IPv4" ? 32 : 128}`)

const without6 = (router: Router, isWithout: boolean): Router =>
  isWithout ? { ...router, range: { ...router.range, prefix6: undefined } } : router

/** Leads what leaves a network to the uplink. */
export const joinUplink = ({ state }: Network): Effect.Effect<void, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const { berth, router } = state
    const uplink = yield* berth.uplink
    const { prefix4, prefix6 } = router.range
    const own = [`${prefix4}.0.0/16`, ...(prefix6 === undefined ? [] : [`${prefix6}::/64`, UPLINK_RANGE_6])]
    const place = yield* Effect.acquireRelease(
      attempt(() => attach(without6(uplink, prefix6 === undefined), 0, true)),
      ({ close, number }) =>
        Effect.sync(() => {
          close()
          uplink.numbers.give(number)
        })
    )
    const refused = yield* attempt(() =>
      refusedRanges([...own, ...ownRanges()])
        .filter(({ address }) => prefix6 !== undefined || !address.includes(":"))
        .map(({ address, bits }) => refuse(ip(address), bits))
    )
    yield* perform(
      berth,
      router.namespace.fd,
      "outbound of a network",
      [...place.operations, ...netlinkOperations(refused)],
      place.descriptors
    )
    if (prefix6 !== undefined) uplink.ruled.add(place.number)
    yield* hideBehind(berth, router, far(place.place).name)
  })
