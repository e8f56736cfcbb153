/** `npm run bench -- NAME [options]`: one module for each benchmark. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import type * as Effect from "effect/Effect"
import { build } from "./build.ts"
import { cgroup } from "./cgroup.ts"
import { exec } from "./exec.ts"
import { first } from "./first.ts"
import { fixtures } from "./fixtures.ts"
import { fleetCosts } from "./fleet.ts"
import { network } from "./network.ts"
import { output } from "./output.ts"
import { pull } from "./pull.ts"
import { seccomp } from "./seccomp.ts"
import { start } from "./start.ts"

interface Benchmark {
  readonly usage: ReadonlyArray<string>
  readonly run: (args: ReadonlyArray<string>) => Effect.Effect<void>
}

const benchmarks: Readonly<Record<string, Benchmark>> = {
  start: {
    usage: [
      "start [--rounds N]     starting, ending and removing a container, against the system calls alone",
      "start --phases         where the time of those system calls goes"
    ],
    run: start
  },
  exec: {
    usage: ["exec [--rounds N]      a command in a running container"],
    run: exec
  },
  fixtures: {
    usage: [
      "fixtures [--rounds N]  a database for a test, against a postgres of the host on a copied folder"
    ],
    run: fixtures
  },
  fleet: {
    usage: ["fleet [--rounds N]     containers on other machines: commands, output, starts, lost runners"],
    run: fleetCosts
  },
  first: {
    usage: [
      "first [--rounds N] [--runtimes node,deno,bun]   from the start of a runtime to the end of a first container"
    ],
    run: first
  },
  build: {
    usage: ["build [--rounds N]     a Dockerfile of ten steps, against buildah; a commit of 100 MB"],
    run: build
  },
  cgroup: {
    usage: ["cgroup [--rounds N]    limits in a start, statistics, and those of 500 every second"],
    run: cgroup
  },
  network: {
    usage: ["network [--rounds N]   starts with networks, connections, throughput and names, against podman"],
    run: network
  },
  output: {
    usage: ["output [--rounds N]    how fast a container's output comes"],
    run: output
  },
  seccomp: {
    usage: ["seccomp [--rounds N]   what the default policy adds to a start"],
    run: seccomp
  },
  pull: {
    usage: ["pull [--rounds N]      a large image from a registry, against podman, skopeo and umoci"],
    run: pull
  }
}

const [name = "", ...args] = process.argv.slice(2)
const benchmark = Object.hasOwn(benchmarks, name) ? benchmarks[name] : undefined
if (benchmark === undefined) {
  const lines = Object.values(benchmarks).flatMap(({ usage }) => usage)
  console.error(`usage: npm run bench -- NAME\n\n${lines.map((line) => `  ${line}`).join("\n")}`)
  process.exitCode = 2
} else {
  NodeRuntime.runMain(benchmark.run(args))
}
