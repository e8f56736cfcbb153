import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import * as net from "node:net"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { WaitFailed } from "../../lib/BerthError.ts"
import { type BerthError, Container, Image, WaitFor } from "../../lib/index.ts"
import { sleeper, start } from "../support/containers.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, whyNoBusybox, withConfig } from "../support/rootfs.ts"

/** The failure of a wait, which has to be for this reason. */
const failedWait = <R>(
  reason: WaitFailed["reason"],
  wait: Effect.Effect<unknown, BerthError.BerthError, R>
): Effect.Effect<WaitFailed, never, R> =>
  Effect.map(failure("WaitFailed", wait), (error) => {
    assert.equal(error.reason, reason, error.message)
    return error
  })

const healthcheck = (
  test: ReadonlyArray<string>,
  more: Partial<Image.Healthcheck> = {}
): Image.Healthcheck => ({
  test,
  interval: Duration.millis(20),
  timeout: Duration.seconds(5),
  startPeriod: undefined,
  startInterval: undefined,
  retries: undefined,
  ...more
})

/** A server of this program, on a port that the kernel chooses. */
const hostServer = Effect.acquireRelease(
  Effect.async<net.Server>((resume) => {
    const server = net.createServer()
    server.listen(0, () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
)

// Bun opens an event loop for the first child that it waits for, and keeps it. It has to exist before descriptors are
// compared.
execFileSync("true")

suite("WaitFor", (effect, folder) => {
  const busybox = (script: string, options: Container.StartOptions = {}) =>
    Effect.flatMap(makeImage(`${folder()}-root`), (image) =>
      Container.start(image, { command: ["sh", "-c", script], ...options })
    )

  effect("WaitFor.log waits for a line that contains a text or matches an expression", function* () {
    const box = yield* start("echo starting; sleep 0.1; echo listening on port 81 >&2; exec sleep 1000")
    const { line, stream } = yield* WaitFor.log(box, "listening")
    assert.deepEqual([line, stream], ["listening on port 81", "stderr"])
    // Earlier lines count as well.
    assert.equal((yield* WaitFor.log(box, /^START/gi)).line, "starting")
    assert.equal((yield* box.pipe(WaitFor.log(/port (\d+)/y))).line, "listening on port 81")
  })

  effect("WaitFor.log waits for the given stream and number of lines", function* () {
    const box = yield* start("echo ready 1; echo ready 2 >&2; echo ready 3; exec sleep 1000")
    assert.equal((yield* WaitFor.log(box, "ready", { stream: "stderr" })).line, "ready 2")
    assert.equal((yield* WaitFor.log(box, "ready", { stream: "stdout", times: 2 })).line, "ready 3")
    yield* failedWait("TimedOut", WaitFor.log(box, "ready", { times: 4, timeout: 100 }))
  })

  effect("WaitFor.log finds the last line of a container that has ended", function* () {
    const box = yield* start("echo done")
    yield* WaitFor.log(box, "done")
  })

  effect("WaitFor.log fails when the container ends, with its exit code and last lines", function* () {
    const box = yield* start("seq 100; echo why >&2; sleep 0.1; exit 3")
    const error = yield* failedWait("Ended", WaitFor.log(box, "ready"))
    assert.equal(error.state, "has ended with exit code 3")
    assert.equal(error.log.length, 20)
    assert.ok(error.log.includes("why"))
    assert.ok(error.millis < 10_000)
    assert.match(
      error.message,
      /no line with ready within \d+ ms; it has ended with exit code 3\. Last lines of its log:\n/
    )
  })

  effect("WaitFor.log fails when its timeout is over", function* () {
    const box = yield* start("echo starting; exec sleep 1000")
    yield* WaitFor.log(box, "starting")
    const error = yield* failedWait("TimedOut", WaitFor.log(box, "ready", { timeout: "100 millis" }))
    assert.equal(error.state, "is running")
    assert.deepEqual(error.log, ["starting"])
    assert.ok(error.millis >= 100 && error.millis < 5000)
  })

  effect(
    "WaitFor.port waits until a port listens and does not connect to it",
    function* () {
      // nc ends with its first connection.
      const box = yield* busybox("sleep 0.1; exec nc -l -p 8080")
      yield* WaitFor.port(box, 8080)
      yield* box.pipe(WaitFor.port(8080, { timeout: "20 seconds" }))
      // nc would end soon after a connection.
      yield* Effect.sleep(50)
      assert.equal((yield* Effect.timeoutOption(box.exit, 0))._tag, "None")
      yield* failedWait("TimedOut", WaitFor.port(box, 8081, { timeout: 100 }))
      yield* failedWait("TimedOut", WaitFor.port(box, 80, { timeout: 50 }))
    },
    { skip: whyNoBusybox }
  )

  effect(
    "WaitFor.port accepts a port that listens on IPv4 or IPv6 alone",
    function* () {
      // busybox's httpd listens on the address that it is given, and on no other.
      yield* WaitFor.port(yield* busybox("exec httpd -f -p 127.0.0.1:65535"), 65535)
      yield* WaitFor.port(yield* busybox("exec httpd -f -p [::1]:1"), 1)
    },
    { skip: whyNoBusybox }
  )

  effect("WaitFor.port looks at the container's network and not at the host's", function* () {
    const server = yield* hostServer
    const { port } = server.address() as net.AddressInfo
    yield* failedWait("TimedOut", WaitFor.port(yield* sleeper, port, { timeout: 100 }))
    const sharing = yield* start("exec sleep 1000", { namespaces: { network: "host" } })
    yield* WaitFor.port(sharing, port)
  })

  effect("WaitFor.port fails at once when the container ends", function* () {
    const box = yield* start("echo cannot bind >&2; sleep 0.1; kill -KILL $$", { init: true })
    const error = yield* failedWait("Ended", WaitFor.port(box, 80))
    assert.match(error.state, /ended/)
    assert.deepEqual(error.log, ["cannot bind"])
    assert.ok(error.millis < 10_000)
    yield* failedWait("Ended", WaitFor.port(box, 80))
  })

  effect("WaitFor.port refuses an invalid port", function* () {
    const box = yield* sleeper
    for (const port of [0, 65536, 1.5, Number.NaN]) yield* failure("InvalidOption", WaitFor.port(box, port))
  })

  effect("WaitFor.command waits until the command ends with exit code 0", function* () {
    const box = yield* start("sleep 0.1; touch /tmp/ready; exec sleep 1000")
    yield* WaitFor.command(box, ["test", "-e", "/tmp/ready"])
    yield* box.pipe(WaitFor.command(["sh", "-c", 'test "$A" = 1'], { env: { A: "1" } }))
  })

  effect("WaitFor.command fails with the output of the last attempt", function* () {
    const box = yield* sleeper
    const error = yield* failedWait(
      "TimedOut",
      WaitFor.command(box, ["sh", "-c", "echo not yet >&2; exit 2"], { timeout: "2 seconds" })
    )
    assert.match(error.message, /no exit code 0 of sh -c .* \(last time exit code 2: not yet\) within \d+ ms/)
  })

  effect("WaitFor.command tries as often as its schedule says", function* () {
    const box = yield* sleeper
    const counting = ["sh", "-c", "echo x >> /tmp/attempts; false"]
    yield* failedWait("TimedOut", WaitFor.command(box, counting, { schedule: Schedule.recurs(2) }))
    assert.equal((yield* Container.exec(box, ["cat", "/tmp/attempts"])).stdout, "x\nx\nx\n")
  })

  effect("WaitFor.command fails at once when the command is missing or the container ends", function* () {
    const error = yield* failure("CommandFailed", WaitFor.command(yield* sleeper, ["no-such-command"]))
    assert.equal(error.reason, "NotFound")
    const box = yield* start("sleep 0.2; exit 1")
    yield* failedWait("Ended", WaitFor.command(box, ["false"]))
    yield* failedWait("Ended", WaitFor.command(box, ["false"]))
  })

  effect("WaitFor.healthCheck waits until the check succeeds", function* () {
    const box = yield* start("sleep 0.1; touch /tmp/ready; exec sleep 1000")
    const options = { healthcheck: healthcheck(["CMD-SHELL", "test -e /tmp/ready"], { retries: 1000 }) }
    yield* WaitFor.healthCheck(box, options)
    yield* box.pipe(WaitFor.healthCheck({ healthcheck: healthcheck(["CMD", "true"]) }))
  })

  effect("WaitFor.healthCheck fails after the given number of failures in a row", function* () {
    const box = yield* sleeper
    const check = healthcheck(["CMD-SHELL", "echo x >> /tmp/checks; echo sick; exit 1"], { retries: 2 })
    const error = yield* failedWait("Unhealthy", WaitFor.healthCheck(box, { healthcheck: check }))
    assert.match(
      error.message,
      /health check .*exit code 1: sick.* reported that the container is unhealthy; it is running/
    )
    assert.match((yield* Container.exec(box, ["cat", "/tmp/checks"])).stdout, /^(x\n){2,}$/)
    // It runs at once, and the second failure counts only after the interval.
    const slow = { test: ["CMD", "false"], interval: "300 millis", retries: 2 } as const
    const unhealthy = yield* failedWait("Unhealthy", WaitFor.healthCheck(box, { healthcheck: slow }))
    assert.ok(unhealthy.millis >= 300, String(unhealthy.millis))
  })

  effect("WaitFor.healthCheck notices the first success soon, however long the interval is", function* () {
    const box = yield* start("sleep 0.3; touch /tmp/ready; exec sleep 1000")
    const begun = performance.now()
    yield* WaitFor.healthCheck(box, { healthcheck: { test: ["CMD", "test", "-e", "/tmp/ready"] } })
    assert.ok(performance.now() - begun < 5000)
  })

  effect("WaitFor refuses a duration that cannot be parsed, by name", function* () {
    const box = yield* sleeper
    const soon = "soon" as never
    const test = ["CMD", "true"]
    const named = (option: string, wait: Effect.Effect<unknown, BerthError.BerthError>) =>
      Effect.map(failure("InvalidOption", wait), (error) => assert.equal(error.option, option))
    yield* named("timeout", WaitFor.port(box, 80, { timeout: soon }))
    yield* named("healthcheck.interval", WaitFor.healthCheck(box, { healthcheck: { test, interval: soon } }))
    yield* named("times", WaitFor.log(box, "x", { times: 0 }))
    yield* named("grace", Container.stop(box, { grace: soon }))
  })

  effect("WaitFor.log refuses an output that has no log", function* () {
    const none = yield* start("exec sleep 1000", { stdout: "null", stderr: "null" })
    yield* failure("InvalidOption", WaitFor.log(none, "x"))
    const half = yield* start("echo x; exec sleep 1000", { stderr: "null" })
    const error = yield* failure("InvalidOption", WaitFor.log(half, "x", { stream: "stderr" }))
    assert.equal(error.option, "stderr")
    yield* WaitFor.log(half, "x")
  })

  effect("WaitFor.healthCheck does not count failures in the start period", function* () {
    const box = yield* sleeper
    const check = healthcheck(["CMD", "false"], {
      retries: 1,
      startPeriod: Duration.millis(200),
      startInterval: Duration.millis(20)
    })
    const error = yield* failedWait("Unhealthy", WaitFor.healthCheck(box, { healthcheck: check }))
    assert.ok(error.millis >= 200, String(error.millis))
  })

  effect("WaitFor.healthCheck counts a check that is too slow or missing as failed", function* () {
    const box = yield* sleeper
    for (const test of [
      ["CMD", "sleep", "1000"],
      ["CMD", "no-such-command"]
    ]) {
      const check = healthcheck(test, { retries: 1, timeout: Duration.millis(100) })
      yield* failedWait("Unhealthy", WaitFor.healthCheck(box, { healthcheck: check }))
    }
  })

  effect("WaitFor.healthCheck refuses a container without a check", function* () {
    const box = yield* sleeper
    yield* failure("InvalidOption", WaitFor.healthCheck(box))
    for (const test of [["NONE"], [], ["CMD"]])
      yield* failure("InvalidOption", WaitFor.healthCheck(box, { healthcheck: healthcheck(test) }))
  })

  effect(
    "WaitFor.http waits for the answer of a server in the container's network",
    function* () {
      // At first the page is missing: its 404 is an answer, but the wrong one.
      const box = yield* busybox(
        "mkdir /www; httpd -p 127.0.0.1:8080 -h /www; sleep 0.3; echo ready > /www/ready; exec sleep 1000"
      )
      yield* failedWait("TimedOut", WaitFor.http(box, { port: 81, timeout: 100 }))
      yield* WaitFor.http(box, { port: 8080, path: "/nowhere", status: 404 })
      yield* WaitFor.http(box, { port: 8080, path: "/ready" })
      yield* failure("InvalidOption", WaitFor.http(box, { port: 0 }))
      yield* failure("InvalidOption", WaitFor.http(box, { port: 80, path: "no slash" }))
    },
    { skip: whyNoBusybox }
  )

  effect("WaitFor.healthCheck uses the image's check by default", function* () {
    const check = healthcheck(["CMD", "test", "-e", "/bin/sh"])
    const image = withConfig(yield* Image.host, { healthcheck: check })
    yield* WaitFor.healthCheck(yield* Container.start(image, { command: ["sleep", "1000"] }))
  })

  effect("WaitFor.all waits for every wait and fails with the first failure", function* () {
    const box = yield* start("echo one; sleep 0.1; echo two; exec sleep 1000")
    yield* WaitFor.all([WaitFor.log(box, "one"), WaitFor.log(box, "two"), WaitFor.command(box, ["true"])])
    const begun = performance.now()
    yield* failedWait(
      "TimedOut",
      WaitFor.all([WaitFor.log(box, "three", { timeout: 50 }), WaitFor.port(box, 80)])
    )
    assert.ok(performance.now() - begun < 10_000)
  })

  effect("WaitFor.any waits for the first wait and fails when all have failed", function* () {
    const box = yield* start("echo one; exec sleep 1000")
    yield* WaitFor.any([WaitFor.port(box, 80, { timeout: 20 }), WaitFor.log(box, "one")])
    yield* WaitFor.any([WaitFor.port(box, 80), WaitFor.command(box, ["true"])])
    yield* failedWait(
      "TimedOut",
      WaitFor.any([WaitFor.port(box, 80, { timeout: 20 }), WaitFor.log(box, "two", { timeout: 40 })])
    )
  })
})
