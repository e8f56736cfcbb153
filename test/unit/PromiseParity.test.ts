import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { Container, Network } from "../../lib/index.ts"
import type * as promise from "../../lib/promise.ts"

/** The function that a program without Effect uses instead. TypeScript checks that it exists. */
type Instead =
  | { readonly promise: keyof typeof promise }
  | { readonly box: keyof promise.Box }
  | { readonly network: keyof promise.ClosableNetwork }
  | { readonly none: string }

const ofContainer: Readonly<Record<keyof typeof Container, Instead>> = {
  TypeId: { none: "a symbol" },
  attach: { box: "attach" },
  cgroup: { box: "update" },
  commandExecutor: { none: "a service of Effect" },
  commit: { box: "commit" },
  connect: { box: "connect" },
  copyIn: { box: "copyIn" },
  copyOut: { box: "copyOut" },
  exec: { box: "exec" },
  execStream: { box: "$" },
  fetch: { box: "fetch" },
  fileSystem: { box: "files" },
  fork: { box: "fork" },
  httpClient: { none: "a service of Effect" },
  isContainer: { none: "a guard of a handle that promises do not give" },
  keep: { box: "keep" },
  listen: { box: "listen" },
  logs: { box: "logs" },
  netServer: { box: "netServer" },
  netSocket: { box: "netSocket" },
  pause: { box: "pause" },
  plan: { none: "for programs that look into Berth" },
  publish: { box: "publish" },
  published: { box: "published" },
  resize: { box: "resize" },
  resume: { box: "resume" },
  run: { promise: "run" },
  signal: { box: "kill" },
  snapshot: { box: "snapshot" },
  spawn: { none: "for programs that make roots and namespaces by themselves" },
  start: { promise: "start" },
  stats: { box: "stats" },
  stop: { box: "stop" },
  supervised: { promise: "supervised" },
  tarIn: { box: "tarIn" },
  tarOut: { box: "tarOut" },
  top: { box: "top" },
  wait: { box: "wait" }
}

const ofNetwork: Readonly<Record<keyof typeof Network, Instead>> = {
  PodTypeId: { none: "a symbol" },
  TypeId: { none: "a symbol" },
  capture: { network: "capture" },
  captureToFile: { network: "captureToFile" },
  dispatcher: { network: "dispatcher" },
  expose: { network: "expose" },
  fetch: { network: "fetch" },
  httpClient: { none: "a service of Effect" },
  impair: { network: "impair" },
  isNetwork: { none: "a guard" },
  isPod: { none: "a guard" },
  join: { network: "join" },
  leave: { network: "leave" },
  make: { promise: "network" },
  partition: { network: "partition" },
  pod: { promise: "pod" },
  rate: { network: "rate" },
  refusals: { network: "refusals" },
  toxic: { network: "toxic" }
}

describe("berth/promise", () => {
  for (const [name, module, table] of [
    ["Container", Container, ofContainer],
    ["Network", Network, ofNetwork]
  ] as const)
    test(`has what each function of ${name} does, or there is a reason`, () => {
      assert.deepEqual(Object.keys(table).sort(), Object.keys(module).sort())
    })
})
