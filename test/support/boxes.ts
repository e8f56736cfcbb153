/** Containers that talk to each other, for tests of networks. */
import assert from "node:assert/strict"
import * as Effect from "effect/Effect"
import { Container, WaitFor } from "../../lib/index.ts"
import { echoImage } from "./attack.ts"
import { whyNotRoot } from "./effect.ts"

/** The ways to start a container that a network has to work for, by name. */
export const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["a container", {}],
  ...(whyNotRoot ? [] : [['a container with userns: "auto"', { userns: "auto" }] as const])
]

/** A container in which `echo` listens on port 7 of all addresses. */
export const echoing = (options: Container.StartOptions) =>
  Effect.gen(function* () {
    const command = ["/bin/echo", "any4:7", "any6:7"]
    const box = yield* Container.start(yield* echoImage, { ...options, command })
    yield* WaitFor.log(box, "listening")
    return box
  })

export const idle = (options: Container.StartOptions) =>
  Effect.flatMap(echoImage, (image) => Container.start(image, { ...options, command: ["sleep", "1000"] }))

/** The milliseconds until so many bytes of a container that is `echoing` have come to another. */
export const flood = (from: Container.Container, to: Container.Container, bytes: number) =>
  Effect.gen(function* () {
    const begun = performance.now()
    const command = `echo flood | timeout 60 nc ${from.state.addresses[0]} 7 | head -c ${bytes} | wc -c`
    const { exitCode, stderr, stdout } = yield* Container.exec(to, ["sh", "-c", command])
    assert.equal(stdout, `${bytes}\n`, `exit code ${exitCode}: ${stdout} ${stderr}`)
    return performance.now() - begun
  })
