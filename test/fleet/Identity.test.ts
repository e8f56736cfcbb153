import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as tls from "node:tls"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Fleet from "../../lib/fleet.ts"
import { Container, Image } from "../../lib/index.ts"
import { type Certified, makeAuthority } from "../support/certificates.ts"
import { failure, suite } from "../support/effect.ts"
import { onFleet, runner, token } from "../support/fleets.ts"

const ours = makeAuthority()
const others = makeAuthority()

const own = ({ certificate, key }: Certified) => ({ certificate, key: Redacted.make(key) })
const server = own(ours.issue("localhost"))
const client = own(ours.issue("client"))

const tlsRunner = (options: Partial<Fleet.RunnerOptions>) =>
  runner({ listen: "tls://127.0.0.1:0", tls: server, ...options })

/** A container on the runner at this address. */
const used = (address: string, identity: Fleet.Identity) =>
  Effect.gen(function* () {
    const image = yield* Image.pull("host")
    const { stdout } = yield* Container.run(image, { command: ["echo", "there"] })
    assert.equal(stdout, "there\n")
  }).pipe(onFleet([address], { token: undefined, ...identity }))

const isRefused = (address: string, identity: Fleet.Identity, says: RegExp) =>
  Effect.gen(function* () {
    const error = yield* failure("FleetError", used(address, identity))
    assert.deepEqual([error.reason, error.subject], ["Unauthorized", address], error.message)
    assert.match(error.detail, says)
  })

/** What the other side sends to a stranger until it closes the connection. */
const answerTo = (socket: net.Socket, text: string | undefined) =>
  Effect.async<string>((resume) => {
    let got = ""
    socket.on("data", (chunk) => {
      got += chunk
    })
    socket.on("error", () => {}).on("close", () => resume(Effect.succeed(got)))
    if (text !== undefined) socket.write(text)
  }).pipe(Effect.timeout("15 seconds"))

const connectTo = (address: string): net.Socket => {
  const { hostname, port } = new URL(address)
  return net.connect({ host: hostname, port: Number(port) })
}

suite("who may use a runner", (effect, folder) => {
  effect("a token opens a runner, with TLS and without", function* () {
    yield* used(yield* runner(), { token })
    const secure = yield* tlsRunner({})
    yield* used(secure, { token, tls: { authority: ours.certificate } })
    // The name of a certificate is checked, too.
    yield* used(secure.replace("127.0.0.1", "localhost"), { token, tls: { authority: ours.certificate } })
  })

  effect("a certificate of the runner's authority opens it without a token", function* () {
    const address = yield* tlsRunner({ token: undefined, tls: { ...server, authority: ours.certificate } })
    yield* used(address, { tls: { ...client, authority: ours.certificate } })
  })

  effect("a client without a certificate, or with one of another authority, is told so", function* () {
    const both = yield* tlsRunner({ tls: { ...server, authority: ours.certificate } })
    const authority = ours.certificate
    yield* isRefused(
      both,
      { token, tls: { authority } },
      /asks for a certificate.*tls\.certificate and tls\.key/
    )
    const stranger = own(others.issue("client"))
    yield* isRefused(
      both,
      { token, tls: { ...stranger, authority } },
      /refuses the certificate of this program/
    )
    yield* isRefused(both, { tls: { ...client, authority } }, /asks for a token/)
    yield* used(both, { token, tls: { ...client, authority } })
  })

  effect("a runner of another authority, or with another name, gets no token", function* () {
    const address = yield* tlsRunner({ tls: own(others.issue("localhost")) })
    yield* isRefused(
      address,
      { token, tls: { authority: ours.certificate } },
      /does not trust the certificate.*tls\.authority/
    )
    yield* isRefused(address, { token }, /does not trust the certificate/)
    let got = ""
    const impostor = yield* Effect.acquireRelease(
      Effect.async<tls.Server>((resume) => {
        const made = tls.createServer(
          { cert: server.certificate, key: Redacted.value(server.key) },
          (socket) =>
            socket
              .on("error", () => {})
              .on("data", (chunk) => {
                got += chunk
              })
        )
        made.on("tlsClientError", () => {}).listen(0, "127.0.0.2", () => resume(Effect.succeed(made)))
      }),
      (made) => Effect.sync(() => made.close())
    )
    const { port } = impostor.address() as net.AddressInfo
    yield* isRefused(
      `tls://127.0.0.2:${port}`,
      { token, tls: { authority: ours.certificate } },
      /a name that is in it/
    )
    assert.equal(got, "")
  })

  effect("a wrong token, and none, are refused by name", function* () {
    const address = yield* runner()
    yield* isRefused(address, { token: Redacted.make("wrong") }, /refuses the token/)
    yield* isRefused(address, {}, /asks for a token/)
    const without = yield* tlsRunner({ token: undefined, tls: { ...server, authority: ours.certificate } })
    yield* isRefused(
      without,
      { token, tls: { ...client, authority: ours.certificate } },
      /or none if it was started with none/
    )
  })

  effect("a token that is no line is refused on both sides", function* () {
    const address = yield* runner()
    for (const text of ["", `${Redacted.value(token)}\n`, "a\nb", "x".repeat(2000)]) {
      const wrong = { token: Redacted.make(text) }
      const error = yield* failure("InvalidOption", used(address, wrong))
      assert.equal(error.option, "token")
      assert.ok(text === "" || !error.message.includes(text))
      yield* failure("InvalidOption", runner(wrong))
    }
  })

  effect("certificates and keys that cannot be used are refused on both sides", function* () {
    const wrong: Fleet.Identity["tls"] = { ...server, key: Redacted.make(others.key) }
    assert.equal((yield* failure("InvalidOption", tlsRunner({ tls: wrong }))).option, "tls")
    assert.equal(
      (yield* failure("InvalidOption", tlsRunner({ tls: { ...server, certificate: "?" } }))).option,
      "tls"
    )
    assert.equal((yield* failure("InvalidOption", tlsRunner({ tls: undefined }))).option, "tls")
    const address = yield* tlsRunner({})
    assert.equal((yield* failure("InvalidOption", used(address, { token, tls: wrong }))).option, "tls")
  })

  effect("an address that others reach needs a token, or the certificates of clients", function* () {
    for (const options of [
      { listen: "tcp://127.0.0.1:0", token: undefined },
      // An authority protects no connection without TLS.
      { listen: "tcp://127.0.0.1:0", token: undefined, tls: { ...server, authority: ours.certificate } },
      { listen: "tls://127.0.0.1:0", token: undefined, tls: server }
    ])
      assert.equal((yield* failure("InvalidOption", runner(options))).option, "token")
    const path = `${folder()}/socket`
    // A program that was killed leaves such a file.
    const killed = "require('net').createServer().listen(process.argv[1], () => process.kill(process.pid, 9))"
    spawnSync("node", ["--eval", killed, path])
    assert.ok(fs.lstatSync(path).isSocket())
    yield* used(yield* runner({ listen: `unix:${path}`, token: undefined }), {})
    assert.equal(fs.statSync(path).mode & 0o777, 0o600)
  })

  effect("a stranger reaches no decoder: garbage, an endless line and silence are cut off", function* () {
    const address = yield* runner()
    const garbage = yield* answerTo(connectTo(address), "GET / HTTP/1.1\r\n\r\n")
    assert.equal(garbage, "REFUSED token\n")
    // A valid message after a wrong line is not read.
    assert.equal(
      yield* answerTo(connectTo(address), `BERTH-FLEET wrong\n${"\x93".repeat(100)}`),
      "REFUSED token\n"
    )
    assert.equal(yield* answerTo(connectTo(address), "x".repeat(100_000)), "")
    assert.equal(yield* answerTo(connectTo(address), undefined), "")
    yield* used(address, { token })
  })

  effect("thousands of strangers keep no client out", function* () {
    for (const address of [yield* runner(), yield* tlsRunner({})]) {
      const sockets = yield* Effect.acquireRelease(
        Effect.sync(() => {
          const all = Array.from({ length: 3000 }, () => connectTo(address.replace("tls:", "tcp:")))
          for (const socket of all) socket.on("error", () => {})
          return all
        }),
        (all) => Effect.sync(() => all.forEach((socket) => socket.destroy()))
      )
      assert.equal(sockets.length, 3000)
      yield* used(address, { token, tls: { authority: ours.certificate } })
    }
  })

  effect("what answers, and is no runner, is named", function* () {
    const stranger = yield* Effect.acquireRelease(
      Effect.async<net.Server>((resume) => {
        const made = net.createServer((socket) =>
          socket
            .resume()
            .on("error", () => {})
            .end("HTTP/1.1 400 Bad Request\r\n\r\n")
        )
        made.listen(0, "127.0.0.1", () => resume(Effect.succeed(made)))
      }),
      (made) => Effect.sync(() => made.close())
    )
    const { port } = stranger.address() as net.AddressInfo
    for (const scheme of ["tcp", "tls"]) {
      const address = `${scheme}://127.0.0.1:${port}`
      const error = yield* failure("FleetError", used(address, { token }))
      assert.deepEqual([error.reason, error.subject], ["Unreachable", address], error.message)
    }
  })
})
