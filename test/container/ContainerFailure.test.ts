import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Container, Image, Mount, Plan } from "../../lib/index.ts"
import { repeatUntil, start, waitUntil } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { cgroupsOf, descendants, isAlive } from "../support/leftovers.ts"

// What fails for a reason that has nothing to do with what is around it, on either side of the clone.
const failing = {
  supervisor: { op: "cgroup-write", file: "/no/such/cgroup/file", value: "1" },
  child: { op: "working-directory", path: "/no/such/folder", create: 0 }
} as const satisfies Record<string, Plan.Operation>

const options: Container.StartOptions = {
  command: ["true"],
  limits: { memory: "64MiB", pids: 20, cpus: 0.5 },
  mounts: [Mount.bind("/usr", "/mnt/usr", { readOnly: true }), Mount.tmpfs("/scratch")],
  sysctls: { "net.ipv4.ip_unprivileged_port_start": "80" },
  readOnly: true,
  rlimits: { core: 0 },
  hostname: "box"
}

interface Machine {
  readonly processes: ReadonlyArray<number>
  readonly cgroups: ReadonlyArray<string>
  readonly folders: ReadonlyArray<string>
}

const look = (berth: Berth.Berth): Machine => ({
  processes: descendants(berth.supervisor.pid),
  cgroups: cgroupsOf([process.pid]).filter((path) =>
    path.includes(berth.supervisor.folder.split("/").at(-1)!)
  ),
  folders: fs.readdirSync(berth.supervisor.folder).filter((name) => /^\d+$/.test(name))
})

/** The full plan of a container on a disk of its own, as this Berth would make it for a unit of this number. */
const fullPlan = (berth: Berth.Berth, unit: number) =>
  Effect.gen(function* () {
    const { folder } = berth.supervisor
    fs.mkdirSync(`${berth.folder}/lower`, { recursive: true })
    const image = yield* Image.fromRootfs(`${berth.folder}/lower`)
    const plan = yield* Container.plan(image, options)
    const state = folder.slice(folder.lastIndexOf("/") + 1)
    // A plan that is only looked at is that of unit 1 of a supervisor in /var/lib/berth/run/0.
    const own = <A>(value: A): A =>
      JSON.parse(
        JSON.stringify(value, (_, item) => (typeof item === "bigint" ? `bigint:${item}` : item))
          .replaceAll("/var/lib/berth/run/0/1", `${folder}/${unit}`)
          .replaceAll("/var/lib/berth/run/0", folder)
          .replaceAll("berth.0.1", `berth.${state}.${unit}`),
        (_, item) => (typeof item === "string" && item.startsWith("bigint:") ? BigInt(item.slice(7)) : item)
      )
    // The filter of system calls is bytes, and has no path.
    return plan.operations.map(
      (operation): Plan.Operation => (operation.op === "seccomp" ? operation : own(operation))
    )
  })

const exec: Plan.Operation = { op: "exec", program: null, paths: ["/x"], arguments: ["x"], environment: [] }

suite("Container: a plan that fails", (effect) => {
  effect(
    "a plan that fails at any operation leaves nothing, and the error names the operation",
    function* () {
      const berth = yield* Berth.Berth
      const before = look(berth)
      const complete = yield* fullPlan(berth, 0)
      const clone = complete.findIndex((operation) => operation.op === "process")
      assert.ok(clone > 5 && complete.length > 25, Plan.print(Plan.make(complete)))
      const descriptors = { stdin: 0, stdout: 1, stderr: 2 }
      for (let k = 0; k <= complete.length; k++) {
        const id = berth.supervisor.nextId()
        const operations = yield* fullPlan(berth, id)
        const inChild = k > clone
        const plan = Plan.make([
          ...operations.slice(0, Math.min(k, operations.length - 1)),
          inChild ? failing.child : failing.supervisor,
          ...(inChild ? [exec] : [])
        ])
        const error = yield* failure("OperationFailed", berth.supervisor.start(id, plan, descriptors))
        const at = Math.min(k, operations.length - 1)
        assert.equal(error.index, at, `${Plan.print(plan)}\n${error.message}`)
        assert.equal(error.syscall, inChild ? "openat2" : "open")
        assert.equal(error.code, "ENOENT")
        assert.equal(error.operation, Plan.printOperation(plan.operations[at]!))
        // It has been given back by the time that this is known.
        assert.deepEqual(look(berth), before, `after the failure of operation ${k}`)
      }
    }
  )

  effect("a plan whose user namespace's ids the kernel refuses leaves nothing", function* () {
    const berth = yield* Berth.Berth
    const before = look(berth)
    const plan = Plan.make([
      { op: "process", namespaces: 0x10000000 },
      { op: "id-map", uids: "0 0 1\n0 0 1\n", gids: "0 0 1\n" },
      { op: "session" },
      exec
    ])
    const error = yield* failure(
      "OperationFailed",
      berth.supervisor.start(berth.supervisor.nextId(), plan, {})
    )
    assert.deepEqual([error.index, error.syscall, error.code], [1, "write", "EINVAL"])
    assert.deepEqual(look(berth), before)
  })

  effect(
    "a plan with a descriptor that is not open fails with EBADF, and the connection lives on",
    function* () {
      const berth = yield* Berth.Berth
      const plan = Plan.make([
        { op: "process", namespaces: 0 },
        { op: "join", process: "missing", namespaces: 0x20000 },
        exec
      ])
      const error = yield* failure(
        "OperationFailed",
        berth.supervisor.start(berth.supervisor.nextId(), plan, {})
      )
      assert.deepEqual([error.syscall, error.code], ["sendmsg", "EBADF"])
      // And the connection is as good as before.
      const image = yield* Image.host
      assert.equal((yield* Container.run(image, { command: ["true"] })).exitCode, 0)
    }
  )

  effect("a malformed plan is refused, and the supervisor lives on", function* () {
    const berth = yield* Berth.Berth
    const bad: ReadonlyArray<ReadonlyArray<Plan.Operation>> = [
      [exec],
      [{ op: "process", namespaces: 0 }],
      [{ op: "scratch", path: "/a\0b", mode: 0 }],
      Array.from({ length: 5000 }, () => ({ op: "scratch", path: "/x", mode: 0 }) as const)
    ]
    for (const operations of bad) {
      const id = berth.supervisor.nextId()
      const error = yield* failure("OperationFailed", berth.supervisor.start(id, Plan.make(operations), {}))
      assert.deepEqual([error.syscall, error.code], ["plan", "EBADMSG"])
    }
    assert.ok(isAlive(berth.supervisor.pid))
  })

  effect("a hundred commands that fail to start leave nothing", function* () {
    const berth = yield* Berth.Berth
    const image = yield* Image.host
    const before = look(berth)
    yield* Effect.forEach(
      Array.from({ length: 100 }),
      () => failure("CommandFailed", Container.run(image, { command: ["/no/such"], limits: {} })),
      { concurrency: 8 }
    )
    assert.deepEqual(look(berth), before)
  })

  effect("a container of a hundred processes is released with its cgroup", function* () {
    const berth = yield* Berth.Berth
    const before = look(berth)
    yield* Effect.scoped(
      Effect.gen(function* () {
        const script = "for i in $(seq 100); do (trap '' TERM; sleep 1000) & done; wait"
        const container = yield* start(script, { limits: { pids: 400 } })
        yield* repeatUntil(
          "a hundred processes sleep",
          Container.exec(container, ["pgrep", "-c", "sleep"]),
          ({ stdout }) => Number(stdout) >= 100
        )
      })
    )
    assert.deepEqual(look(berth), before)
    yield* waitUntil("no cgroup is left", () => cgroupsOf([process.pid]).length === 0)
  })
})
