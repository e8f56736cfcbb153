/** Containers that several programs have, by a supervisor with leases. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { Container, StartOptions } from "../../Container.ts"
import type { Image } from "../../Image.ts"
import * as Plan from "../../Plan.ts"
import * as networks from "../network/join.ts"
import type { Leased, Unit } from "../supervisor/connection.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { attempt } from "../util/fromThrowing.ts"
import { containerHandle } from "./launch.ts"
import * as prepare from "./prepare.ts"
import { makeStdio } from "./stdio.ts"
import { layerFor } from "./targets.ts"

/** What another program needs to know of a container, besides its image and its options. */
export interface Known {
  readonly id: string
  readonly unit: number
}

const noStreams = { stdin: "null", stdout: "null", stderr: "null" } as const

/**
 * Leaves a container, which this program has started, to all that have a lease of the supervisor. It ends with the last of them.
 * Its log stays with this program; after this program's end, nobody keeps what it writes.
 */
export const share = (supervisor: Leased, container: Container): Effect.Effect<Known, BerthError> => {
  const { root, stderr, stdout } = container.state
  const outputs = [stdout, stderr].flatMap((output) => (output === undefined ? [] : [output.descriptor]))
  return Effect.map(supervisor.share(container.pid, [root, ...outputs]), (unit) => ({
    id: container.id,
    unit
  }))
}

/** The handle of a container that another program has started with the same image and options. Its release leaves the container alone. */
export const attach = (
  berth: Berth,
  supervisor: Leased,
  image: Image,
  options: Pick<StartOptions, "command" | "entrypoint" | "env" | "user" | "cwd" | "mounts" | "init">,
  { id, unit: number }: Known
): Effect.Effect<Container, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const targets = yield* layerFor(berth, image, options)
    const launch = yield* attempt(() =>
      prepare.start(image, options, {
        memory: berth.memory,
        folder: supervisor.folder,
        unit: number,
        id,
        rootless: berth.rootless,
        ids: berth.ids,
        userns: undefined,
        targets,
        network: networks.none
      })
    )
    const scope = yield* Effect.scope
    const unit = yield* Effect.uninterruptibleMask((interruptible) =>
      Effect.tap(supervisor.attach(number, interruptible), (unit: Unit) =>
        Scope.addFinalizer(scope, releaseUnit(`container ${id}`, unit))
      )
    )
    const plan = Plan.make(launch.operations)
    return containerHandle({ unit, stdio: makeStdio(noStreams, id), plan, scope }, { ...launch, berth })
  })
