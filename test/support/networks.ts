/** Containers that ask each other, over networks. */
import assert from "node:assert/strict"
import { spawnSync } from "node:child_process"
import * as Effect from "effect/Effect"
import { Container, type Network } from "../../lib/index.ts"
import { whyNotRoot } from "./effect.ts"

export const modes: ReadonlyArray<readonly [name: string, options: Container.StartOptions]> = [
  ["containers", {}],
  ...(whyNotRoot ? [] : [['containers with userns: "auto"', { userns: "auto" }] as const])
]

/** What a container gets from port 7 of an address: the text and "bye", or nothing. */
export const ask = (box: Container.Container, address: string) =>
  Effect.map(
    Container.exec(box, ["sh", "-c", `echo hello | timeout 5 nc -w 2 ${address} 7`]),
    ({ stdout }) => stdout
  )

/** The IPv4 addresses of a name, as a container looks them up. */
export const lookUp = (box: Container.Container, name: string) =>
  Effect.map(Container.exec(box, ["busybox", "nslookup", "-type=a", name]), ({ stdout }) =>
    [...stdout.matchAll(/^Address: (\d[\d.]+)$/gm)].map(([, address]) => address).sort()
  )

/** A file of /proc/net in the namespace of a network, proc(5); undefined without root, which cannot enter it. */
export const readInside = ({ state }: Network.Network, name: string): string | undefined => {
  const namespace = `/proc/${process.pid}/fd/${state.router.namespace.fd}`
  const command = [`--net=${namespace}`, "cat", `/proc/self/net/${name}`]
  const { status, stdout } = spawnSync("nsenter", command, { encoding: "utf8" })
  return status === 0 ? stdout : undefined
}

export const ANSWER = "hello\nbye"

/** Checks until it is so, for 15 seconds. */
export const eventually = <E>(what: string, check: Effect.Effect<boolean, E>) =>
  Effect.gen(function* () {
    for (const limit = Date.now() + 15_000; !(yield* check); yield* Effect.sleep(5))
      assert.ok(Date.now() < limit, `${what}: not within 15 s`)
  })
