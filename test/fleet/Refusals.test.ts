import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Fleet from "../../lib/fleet.ts"
import { type Berth, type BerthError, Container, Image } from "../../lib/index.ts"
import { VERSION } from "../../lib/internal/fleet/protocol.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"
import { rawClient } from "../support/rawFleet.ts"

const sleeping: Container.StartOptions = { command: ["sleep", "1000"] }
const GIB = 1024 ** 3

/** Options that could reach past a container, and what the refusal names. */
const starts: ReadonlyArray<readonly [options: object, names: RegExp]> = [
  [{ network: "host" }, /the host's network/],
  ...["pid", "uts", "ipc", "network", "cgroup", "time", "user"].map(
    (kind) => [{ namespaces: { [kind]: "host" } }, new RegExp(`the host's ${kind} namespace`)] as const
  ),
  [{ capabilities: { add: ["CAP_SYS_ADMIN"] } }, /capabilities\.add/],
  [{ capabilities: { add: ["ALL"], drop: ["ALL"] } }, /capabilities\.add/],
  [{ capabilities: { ambient: ["CAP_SYS_ADMIN"] } }, /capabilities\.ambient/],
  [{ seccomp: "unconfined" }, /seccomp/],
  [{ seccomp: { defaultAction: "SCMP_ACT_ALLOW" } }, /seccomp/],
  [{ noNewPrivileges: false }, /noNewPrivileges/],
  [{ appArmor: "unconfined" }, /AppArmor/],
  [{ maskedPaths: [] }, /maskedPaths/],
  [{ readonlyPaths: [] }, /readonlyPaths/],
  [{ sysctls: { "net.ipv4.ip_forward": "1" } }, /sysctls/],
  [{ userns: { uidMap: [], gidMap: [] } }, /maps of its own/],
  [{ limits: { devices: [] } }, /limits\.devices/],
  [{ limits: { cpu: { weight: 10_000 } } }, /limits\.cpu\.weight/],
  [{ limits: { io: { weight: 1000 } } }, /limits\.io/],
  [{ limits: { io: { devices: [{ device: "/dev/vda", weight: 1000 }] } } }, /limits\.io/],
  [{ limits: { memory: { low: "1GiB" } } }, /limits\.memory\.low/],
  [{ rlimits: { rtprio: 99 } }, /rlimits\.rtprio/],
  [{ rlimits: { nofile: 10, memlock: Number.POSITIVE_INFINITY } }, /rlimits\.memlock/],
  [{ mounts: [{ type: "bind", source: "/etc", target: "/mnt" }] }, /the bind of "\/etc"/],
  [{ mounts: [{ type: "bind", source: "/", target: "/mnt" }] }, /the bind of "\/"/],
  [{ mounts: [{ type: "bind", source: "etc", target: "/mnt" }] }, /the bind of "etc"/]
]

/** The rights of a process beside the container's own. */
const execs: ReadonlyArray<readonly [options: object, names: RegExp]> = [
  [{ capabilities: { add: ["CAP_SYS_ADMIN"] } }, /capabilities\.add/],
  [{ capabilities: { ambient: ["CAP_SYS_ADMIN"] } }, /capabilities\.ambient/],
  [{ seccomp: "unconfined" }, /seccomp/],
  [{ noNewPrivileges: false }, /noNewPrivileges/],
  [{ appArmor: "unconfined" }, /AppArmor/],
  [{ rlimits: { nice: 40 } }, /rlimits\.nice/]
]

const limits: Fleet.Allow["limits"] = { memory: "128MiB", cpus: 1, pids: 50 }

/** Limits above the largest, in all the ways to write one. */
const tooLarge: ReadonlyArray<readonly [limits: object, names: RegExp]> = [
  [{ memory: "1GiB" }, /limits\.memory of 1073741824/],
  [{ memory: GIB }, /limits\.memory/],
  [{ memory: "max" }, /limits\.memory of max/],
  [{ memory: { max: "1GiB" } }, /limits\.memory/],
  [{ memory: { max: "max" } }, /limits\.memory of max/],
  [{ memory: { max: "64MiB", swap: "1GiB" } }, /limits\.memory\.swap/],
  [{ memory: { swap: "max" } }, /limits\.memory\.swap/],
  [{ cpus: 2 }, /limits\.cpus of 2/],
  [{ cpus: "max" }, /limits\.cpus of max/],
  [{ pids: 51 }, /limits\.pids of 51/],
  [{ pids: "max" }, /limits\.pids of max/]
]

const isRefused = (
  effect: Effect.Effect<unknown, BerthError.BerthError, Berth.Berth | Scope.Scope>,
  names: RegExp
) =>
  Effect.gen(function* () {
    const error = yield* failure("FleetError", Effect.scoped(effect))
    assert.deepEqual([error.reason, error.subject], ["Refused", "runner one"], error.message)
    assert.match(error.detail, names)
    assert.match(error.detail, /leave it out, or have the runner started with/)
  })

suite("what a runner refuses", (effect, folder) => {
  effect("options that could reach past a container", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      for (const [options, names] of starts)
        yield* isRefused(Container.start(image, { ...sleeping, ...options }), names)
    }).pipe(onFleet([yield* runner()]))
  })

  effect("rights of a process beside the container's own", function* () {
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), sleeping)
      for (const [options, names] of execs) {
        yield* isRefused(Container.exec(box, ["true"], options), names)
        yield* isRefused(Container.execStream(box, ["true"], options), names)
      }
      // Less is allowed.
      const { exitCode } = yield* Container.exec(box, ["true"], {
        capabilities: { drop: ["ALL"] },
        user: "1000"
      })
      assert.equal(exitCode, 0)
    }).pipe(onFleet([yield* runner()]))
  })

  effect("what its configuration allows is not refused", function* () {
    const allow: Fleet.Allow = { hostImage: true, hostNamespaces: true, privileges: true, binds: ["/"] }
    yield* Effect.gen(function* () {
      const box = yield* Container.start(yield* Image.pull("host"), {
        ...sleeping,
        namespaces: { network: "host" },
        noNewPrivileges: false,
        mounts: [{ type: "bind", source: folder(), target: "/mnt" }]
      })
      fs.writeFileSync(`${folder()}/seen`, "seen")
      const { stdout } = yield* Container.exec(box, ["cat", "/mnt/seen"], { seccomp: "unconfined" })
      assert.equal(stdout, "seen")
    }).pipe(onFleet([yield* runner({ allow })]))
  })

  effect("images that have no allowed registry or path", function* () {
    const allow = { images: ["registry.example.com/team/", "127.0.0.1:1/only/app"] }
    yield* Effect.gen(function* () {
      for (const name of [
        "host",
        "alpine:3",
        "registry.example.com/other/app",
        "registry.example.com/team2/app",
        "registry.example.com/teams",
        "registry.example.com.attacker.example/team/app",
        "registry.example.com:5000/team/app",
        "127.0.0.1:1/only/application",
        "127.0.0.1:1/only/app2:1",
        "docker.io/registry.example.com/team/app",
        `registry.example.com/other/app@sha256:${"0".repeat(64)}`
      ])
        yield* isRefused(Image.pull(name), /the image /)
      for (const name of [
        "registry.example.com/team/../other/app",
        "registry.example.com/team//app",
        "/etc",
        "oci:/etc"
      ])
        yield* failure("InvalidData", Image.pull(name))
      // It is asked for, and nothing answers there.
      yield* failure("RegistryError", Image.pull("127.0.0.1:1/only/app:1"))
      yield* failure("RegistryError", Image.pull("127.0.0.1:1/only/app/part"))
    }).pipe(onFleet([yield* runner({ allow })]))
  })

  effect("an image of the store by its digest, under a name that is allowed and not its own", function* () {
    const rootfs = `${folder()}/rootfs`
    fs.mkdirSync(rootfs)
    fs.writeFileSync(`${rootfs}/file`, "text")
    const { digest } = yield* Image.import(rootfs, { tag: "other.example/secret/app:1" })
    const allow = { images: ["registry.example.com/team/"] }
    yield* Effect.gen(function* () {
      yield* isRefused(
        Image.pull(`registry.example.com/team/app@${digest}`),
        /the image registry\.example\.com/
      )
      yield* isRefused(Image.pull(`other.example/secret/app@${digest}`), /the image other/)
    }).pipe(onFleet([yield* runner({ allow })]))
    const own = { images: ["other.example/secret/"] }
    yield* Effect.gen(function* () {
      assert.equal((yield* Image.pull(`other.example/secret/app@${digest}`)).digest, digest)
    }).pipe(onFleet([yield* runner({ allow: own })]))
  })

  effect("limits above the largest, however they are written, and none is the largest", function* () {
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      for (const [wrong, names] of tooLarge)
        yield* isRefused(Container.start(image, { ...sleeping, limits: wrong }), names)
      for (const wrong of [
        { memory: "12 parsecs" },
        { cpus: -1 },
        { cpus: Number.NaN },
        { cpus: "1" },
        { pids: "1" }
      ])
        yield* failure("InvalidOption", Container.start(image, { ...sleeping, limits: wrong as never }))
      for (const given of [{}, { memory: {} }, { memory: { max: "128MiB" } }]) {
        const stats = yield* Effect.scoped(
          Effect.flatMap(Container.start(image, { ...sleeping, limits: given }), Container.stats)
        )
        assert.equal(stats.memory?.limit, 128 * 1024 * 1024, JSON.stringify(given))
        assert.equal(stats.pids?.limit, 50)
      }
    }).pipe(onFleet([yield* runner({ allow: { hostImage: true, limits } })]))
  })

  effect("binds that lead out of the allowed folders", function* () {
    const shared = `${folder()}/shared`
    fs.mkdirSync(`${shared}/inner`, { recursive: true })
    fs.writeFileSync(`${folder()}/secret`, "secret")
    fs.writeFileSync(`${shared}/file`, "file")
    fs.symlinkSync("/etc", `${shared}/absolute`)
    fs.symlinkSync("../secret", `${shared}/relative`)
    fs.mkdirSync(`${folder()}/shared2`)
    const bind = (source: string): Container.StartOptions => ({
      ...sleeping,
      mounts: [{ type: "bind", source, target: "/mnt" }]
    })
    fs.symlinkSync(shared, `${folder()}/linked`)
    const allow: Fleet.Allow = { hostImage: true, binds: [`${shared}/`, `${folder()}/linked2`] }
    fs.mkdirSync(`${folder()}/real`)
    fs.symlinkSync("real", `${folder()}/linked2`)
    yield* Effect.gen(function* () {
      const image = yield* Image.pull("host")
      const box = yield* Container.start(image, bind(`${shared}/`))
      assert.equal((yield* Container.exec(box, ["cat", "/mnt/file"])).stdout, "file")
      yield* Container.exec(box, ["sh", "-c", "ln -s / /mnt/planted && ln -s /etc /mnt/etc"])
      for (const source of [
        folder(),
        `${folder()}/shared2`,
        `${folder()}/linked`,
        `${shared}/..`,
        `${shared}/inner`,
        `${shared}/inner/../../secret`,
        `${shared}/./`,
        path.relative("/", shared),
        // Links that lead out, from before and planted by a container.
        `${shared}/absolute`,
        `${shared}/relative`,
        `${shared}/planted`,
        `${shared}/etc`
      ])
        yield* isRefused(Container.start(image, bind(source)), /the bind of/)
      // A link of the configuration is followed when the runner starts, and not later.
      fs.rmSync(`${folder()}/linked2`)
      fs.symlinkSync("/etc", `${folder()}/linked2`)
      const linked = yield* Container.start(image, bind(`${folder()}/linked2`))
      assert.equal((yield* Container.exec(linked, ["ls", "/mnt"])).stdout, "")
    }).pipe(onFleet([yield* runner({ allow })]))
    for (const binds of [["/nowhere"], [`${shared}/file`], [shared, `${shared}/inner`], ["/", shared]])
      assert.equal((yield* failure("InvalidOption", runner({ allow: { binds } }))).option, "allow.binds")
  })
})

const host = { reference: "host", digest: undefined }

/** What an answer says of a failure. */
const failureOf = (answer: object): string => {
  const text = JSON.stringify(answer)
  return `${/"_tag":"(?:\w+Error|\w+Option|InvalidData|CommandFailed)"/.exec(text)?.[0] ?? ""} ${text}`
}

suite("a client that sends what the typed one would not", (effect) => {
  effect("options that no type allows", function* () {
    const address = yield* runner()
    const client = yield* rawClient(address)
    const polluted = JSON.parse('{"__proto__": {"seccomp": "unconfined"}, "command": ["sleep", "1000"]}')
    const hostile: ReadonlyArray<readonly [options: unknown, says: RegExp]> = [
      [{ ...sleeping, network: "host" }, /FleetError.*the host's network/],
      [{ ...sleeping, namespaces: { user: "host", __proto__: null } }, /FleetError|InvalidOption/],
      [{ ...sleeping, cgroup: "/sys/fs/cgroup" }, /InvalidOption/],
      [{ ...sleeping, seccomp: ["unconfined"] }, /FleetError.*seccomp/],
      [{ ...sleeping, capabilities: { add: "CAP_SYS_ADMIN" } }, /FleetError.*capabilities/],
      [{ ...sleeping, mounts: [{ type: "volume", volume: {}, target: "/mnt" }] }, /InvalidOption/],
      [{ ...sleeping, mounts: [{ type: "bind", source: 5, target: "/mnt" }] }, /InvalidOption/],
      [{ ...sleeping, limits: { cpus: {} } }, /InvalidOption/],
      [{ ...sleeping, limits: "none" }, /InvalidOption/],
      [{ ...sleeping, extra: true }, /InvalidOption/],
      [{ command: "sleep" }, /InvalidOption/],
      [{ command: ["a\0b"] }, /InvalidOption/],
      [{ command: [] }, /InvalidOption|CommandFailed/],
      [null, /InvalidOption/],
      ["sleep", /InvalidOption/]
    ]
    for (const [options, says] of hostile) {
      const answer = yield* client.ask("start", { id: "a", image: host, options })
      assert.equal(answer._tag, "Exit", failureOf(answer))
      assert.match(failureOf(answer), /"Fail"/, failureOf(answer))
      assert.match(failureOf(answer), says)
    }
    const started = yield* client.ask("start", { id: "a", image: host, options: polluted })
    assert.match(failureOf(started), /"Success"|InvalidOption/)
    assert.equal(({} as { seccomp?: unknown }).seccomp, undefined)
  })

  effect("a connection without a session, and a second session on one", function* () {
    const address = yield* runner()
    const without = yield* rawClient(address, false)
    const start = { id: "a", image: host, options: sleeping }
    for (const [tag, payload] of [
      ["start", start],
      ["renew", undefined],
      ["containers", undefined],
      ["pull", { reference: "host" }]
    ] as const)
      assert.match(failureOf(yield* without.ask(tag, payload)), /Unauthorized.*no session/)
    const client = yield* rawClient(address)
    const hello = { version: VERSION, clockMillis: Date.now(), client: "again" }
    assert.match(failureOf(yield* client.ask("session", hello)), /has a session already/)
    const old = yield* rawClient(address, false)
    assert.match(failureOf(yield* old.ask("session", { ...hello, version: 0 })), /"Version"/)
    assert.match(failureOf(yield* old.ask("session", { ...hello, clockMillis: 0 })), /"Clock"/)
  })

  effect("ids of another session, and ids of nothing", function* () {
    const address = yield* runner()
    const owner = yield* rawClient(address)
    const id = "of the owner"
    yield* owner.ask("start", { id, image: host, options: { ...sleeping, stdin: "pipe" } })
    const stranger = yield* rawClient(address)
    const bytes = new Uint8Array(1)
    const calls: ReadonlyArray<readonly [tag: string, payload: object]> = [
      ["exec", { command: ["true"], options: {} }],
      ["output", { name: "stdout" }],
      ["logs", { follow: false }],
      ["write", { bytes }],
      ["end", {}],
      ["signal", { signal: "SIGKILL" }],
      ["stop", { signal: "SIGKILL", graceMillis: 0 }],
      ["resize", { rows: 1, columns: 1 }],
      ["stats", {}],
      ["top", {}],
      ["pause", {}],
      ["resume", {}],
      ["waitForPort", { port: 1, timeoutMillis: 1 }],
      ["file", { method: "readLink", arguments: ["/etc/hostname"] }],
      ["read", { path: "/etc/hostname" }],
      ["commit", { reference: "127.0.0.1:1/a:1", options: {} }],
      ["tarOut", { path: "/etc" }],
      ["tarIn", { path: "/tmp" }],
      ["connect", { address: 1 }]
    ]
    for (const [tag, payload] of calls)
      for (const wanted of [id, "", "__proto__", "constructor", "../0", "x".repeat(64)])
        assert.match(
          failureOf(
            yield* stranger.ask(tag, {
              since: undefined,
              tail: undefined,
              signal: undefined,
              maxHoleBytes: undefined,
              ...payload,
              id: wanted
            })
          ),
          /ContainerError.*nothing of this name/,
          `${tag} ${wanted}`
        )
    for (const wanted of [id, "", "__proto__"]) {
      const answer = yield* stranger.ask("spawn", {
        id: "a",
        container: wanted,
        command: ["true"],
        options: {}
      })
      assert.match(failureOf(answer), /ContainerError.*nothing of this name/)
    }
    // It does nothing: whoever releases something twice succeeds, too.
    assert.match(failureOf(yield* stranger.ask("release", { id })), /"Success"/)
    assert.match(failureOf(yield* owner.ask("exec", { id, command: ["true"], options: {} })), /"exitCode":0/)
  })

  effect("an id twice, and what is released while it starts", function* () {
    const address = yield* runner()
    const client = yield* rawClient(address)
    const start = (id: string) => client.ask("start", { id, image: host, options: sleeping })
    const both = yield* Effect.all([start("a"), start("a")], { concurrency: 2 })
    const texts = both.map(failureOf).sort()
    assert.match(texts[0]!, /"Success"/)
    assert.match(texts[1]!, /FleetError.*has something with the id/)
    assert.match(failureOf(yield* start("a")), /has something with the id/)
    // Whichever comes first, nothing is left.
    for (let k = 0; k < 10; k++) {
      const [, released] = yield* Effect.all([start(`b${k}`), client.ask("release", { id: `b${k}` })], {
        concurrency: 2
      })
      assert.match(failureOf(released), /"containers":1\b/)
    }
    assert.match(failureOf(yield* client.ask("release", { id: "a" })), /SIGKILL.*"containers":0\b/)
    // A client that goes away while it waits for that leaves nothing either.
    for (let k = 0; k < 10; k++)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const gone = yield* rawClient(address)
          yield* gone.ask("start", { id: "a", image: host, options: sleeping })
          yield* Effect.fork(gone.ask("release", { id: "a" }))
          yield* Effect.sleep(k)
        })
      )
    yield* Effect.map(client.ask("containers", undefined), failureOf).pipe(
      Effect.repeat({ until: (text) => /"value":\[\]/.test(text), schedule: Schedule.spaced(50) }),
      Effect.timeout("15 seconds")
    )
  })

  effect("a client whose lease has ended is told so, whatever it sends then", function* () {
    const client = yield* rawClient(yield* runner({ lease: "300 millis" }))
    yield* Effect.sleep("1 second")
    for (const [tag, payload] of [
      ["renew", undefined],
      ["containers", undefined],
      ["start", { id: "a", image: host, options: sleeping }]
    ] as const)
      assert.match(
        failureOf(yield* client.ask(tag, payload)),
        /the lease of this program has ended.*RunnerLost/
      )
  })

  effect("wrong types, and numbers that are none, end no runner", function* () {
    const address = yield* runner()
    const client = yield* rawClient(address)
    const id = "__proto__"
    yield* client.ask("start", { id, image: host, options: sleeping })
    const rest = { since: undefined, tail: undefined, signal: undefined }
    const calls: ReadonlyArray<readonly [tag: string, payload: unknown]> = [
      ["nothing", {}],
      ["__proto__", {}],
      ["exec", null],
      ["exec", { id, command: "true", options: {} }],
      ["exec", { id, command: ["true"], options: { maxOutputBytes: -1 } }],
      ["exec", { id, command: ["true"], options: { env: { "a=b": "c" } } }],
      ["exec", { id: "x".repeat(65), command: ["true"], options: {} }],
      ["signal", { id, signal: Number.NaN }],
      ["signal", { id, signal: -9 }],
      ["signal", { id, signal: "SIGNOTHING" }],
      ["waitForPort", { id, port: 1e9, timeoutMillis: 1 }],
      ["connect", { id, address: { port: -1 } }],
      ["connect", { id, address: { path: "relative" } }],
      ["write", { id, bytes: "text" }],
      ["pull", { reference: "x".repeat(5000), platform: undefined }],
      ["file", { id, method: "open", arguments: ["/etc/hostname"] }],
      ["file", { id, method: "readLink", arguments: [] }],
      ["file", { id, method: "readLink", arguments: [{ __proto__: null }] }],
      ["file", { id, method: "readLink", arguments: ["a\0b"] }],
      ["file", { id, method: "writeFile", arguments: ["/tmp/x", { length: 1e12 }] }],
      ["file", { id, method: "truncate", arguments: ["/tmp/x", Number.NaN] }],
      ["file", { id, method: "chmod", arguments: ["/tmp", "rwx"] }]
    ]
    for (const [tag, payload] of calls) {
      const answer = yield* client.ask(tag, payload === null ? null : { ...rest, ...(payload as object) })
      assert.match(failureOf(answer), /"Failure"|"Defect"/, `${tag} ${failureOf(answer)}`)
    }
    assert.match(failureOf(yield* client.ask("exec", { id, command: ["true"], options: {} })), /"exitCode":0/)
  })

  effect("a message that is too long, and bytes that are no message, end no runner", function* () {
    const address = yield* runner()
    for (const length of [0xffffffff, 17 * 1024 * 1024]) {
      const long = yield* rawClient(address)
      const head = new Uint8Array(1024)
      new DataView(head.buffer).setUint32(0, length)
      long.send(head)
      yield* Effect.timeout(long.closed, "15 seconds")
    }
    const framed = (bytes: ReadonlyArray<number>) =>
      Uint8Array.of(0, 0, bytes.length >> 8, bytes.length, 0, 0, 0, 0, ...bytes)
    const garbage = yield* rawClient(address)
    garbage.send(framed(Array.from({ length: 1000 }, () => 0xc1)))
    // Arrays in arrays, and one that claims to have four thousand million members.
    garbage.send(framed([...Array.from({ length: 5000 }, () => 0x91), 0xc0]))
    garbage.send(framed([0xdd, 0xff, 0xff, 0xff, 0xff]))
    const client = yield* rawClient(address)
    const answer = yield* client.ask("pull", { reference: "host", platform: undefined })
    assert.match(failureOf(answer), /"Success"/)
  })
})
