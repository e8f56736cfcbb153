/** A file or folder of the layers of an image as a volume: an overlay in the supervisor's mount namespace, whose writes are dropped. */
import { realpathSync } from "node:fs"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import * as Plan from "../../Plan.ts"
import type { Volume } from "../../Volume.ts"
import { releaseUnit } from "../supervisor/scopedUnit.ts"
import { attempt } from "../util/fromThrowing.ts"
import { make, type State } from "./volume.ts"

export interface Shown {
  /** The lowest first. */
  readonly layers: ReadonlyArray<string>
  /** A path without links, from the root of the layers: the supervisor follows none. */
  readonly path: string
  readonly isFile: boolean
  /** Whether containers can write. What they write ends with the scope. */
  readonly isWritable: boolean
}

export const ofLayers = (
  berth: Berth,
  { isFile, isWritable, layers, path }: Shown
): Effect.Effect<Volume, BerthError, Scope.Scope> =>
  Effect.gen(function* () {
    const id = berth.supervisor.nextId()
    const base = `${yield* attempt(() => realpathSync(berth.supervisor.folder))}/volume-${id}`
    const [merged, upper, work] = ["merged", "data", "work"].map((name) => `${base}/${name}`)
    const plan = Plan.make([
      { op: "scratch", path: base, mode: 0o700 },
      { op: "scratch", path: merged!, mode: 0o755 },
      ...(isWritable
        ? ([
            { op: "scratch", path: upper!, mode: 0o755 },
            { op: "scratch", path: work!, mode: 0o700 },
            { op: "copy-attributes", from: layers.at(-1)!, path: upper! }
          ] as const)
        : []),
      {
        op: "overlay",
        lower: layers.toReversed(),
        upper: isWritable ? upper! : "",
        work: isWritable ? work! : "",
        options: [...(isWritable ? ["volatile"] : []), ...(berth.rootless ? ["userxattr"] : [])],
        attributes: 0
      },
      { op: "attach", path: merged!, discard: 0 }
    ])
    const unit = yield* Effect.acquireRelease(berth.supervisor.start(id, plan, {}), (started) =>
      releaseUnit(`volume ${id}`, started)
    )
    const state: State = {
      berth,
      name: undefined,
      label: `${id}`,
      properties: { size: undefined, from: undefined },
      storage: "disk",
      folder: path === "" ? merged! : `${merged}/${path}`,
      isFile,
      layers: [],
      source: undefined,
      uses: new Map(),
      unit,
      // The scope releases the unit, after the containers that use it.
      holders: 1
    }
    return make(state)
  })
