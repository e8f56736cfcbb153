import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Fleet from "../../lib/fleet.ts"
import { Berth, Container, Image } from "../../lib/index.ts"
import { berthIn, failure, suite } from "../support/effect.ts"
import { onFleet, runner } from "../support/fleets.ts"
import { whyNoRegistry } from "../support/registry.ts"
import { makeRoot, whyNoBusybox } from "../support/rootfs.ts"
import { runningRegistry } from "../support/scoped.ts"

const skip = { skip: whyNoRegistry || whyNoBusybox }

/** Sends an image of busybox to a registry. */
const publish = (folder: string, name: string) =>
  Effect.gen(function* () {
    const root = `${folder}/base`
    if (!fs.existsSync(root)) makeRoot(root)
    yield* Image.push(yield* Image.import(root), name)
  })

suite("the images of a fleet", (effect) => {
  effect(
    "are committed to a registry, where the runner allows it, and start on another runner",
    function* () {
      const { folder } = yield* Berth.Berth
      const registry = yield* runningRegistry()
      const team = `${registry.host}/team`
      // The first image of the registry.
      yield* publish(folder, `${team}/base:1`)
      const one = yield* runner({ name: "one", allow: { images: [`${team}/`], push: [`${team}/`] } })
      // Another machine: a Berth of its own, whose store has nothing.
      const two = yield* Effect.provide(
        runner({ name: "two", allow: { images: [`${team}/`] } }),
        yield* Layer.build(Layer.fresh(berthIn(`${folder}/two`)))
      )
      yield* Effect.gen(function* () {
        const image = yield* Image.pull(`${team}/base:1`)
        const box = yield* Container.start(image, { command: ["sleep", "1000"] }).pipe(
          Fleet.on({ runner: "one" })
        )
        yield* Container.exec(box, ["sh", "-c", "echo made > /made"])
        const made = yield* Container.commit(box, {
          tag: `${team}/made:1`,
          config: { labels: { by: "fleet" } }
        })
        assert.equal(made.reference, `${team}/made:1`)
        assert.equal(made.config.labels.by, "fleet")
        const result = yield* Container.run(made, { command: ["cat", "/made"] }).pipe(
          Fleet.on({ runner: "two" })
        )
        assert.equal(result.stdout, "made\n")

        const unnamed = yield* failure("InvalidOption", Container.commit(box))
        assert.match(unnamed.message, /tag/)
        const elsewhere = yield* failure(
          "FleetError",
          Container.commit(box, { tag: `${registry.host}/other:1` })
        )
        assert.equal(elsewhere.reason, "Refused")
        const other = yield* Container.start(image, { command: ["sleep", "1000"] }).pipe(
          Fleet.on({ runner: "two" })
        )
        const nowhere = yield* failure("FleetError", Container.commit(other, { tag: `${team}/made:2` }))
        assert.match(nowhere.message, /runner two: its configuration does not allow to send images/)
      }).pipe(onFleet([one, two]))
    },
    skip
  )

  effect(
    "make containers go where they are already",
    function* () {
      const { folder } = yield* Berth.Berth
      const registry = yield* runningRegistry()
      yield* publish(folder, `${registry.host}/base:1`)
      const one = yield* runner({ name: "one" })
      const two = yield* runner({ name: "two" })
      yield* Effect.gen(function* () {
        const image = yield* Image.pull(`${registry.host}/base:1`).pipe(Fleet.on({ runner: "two" }))
        for (let k = 0; k < 3; k++)
          assert.equal(Fleet.runnerOf(yield* Container.start(image, { command: ["sleep", "1000"] })), "two")
      }).pipe(onFleet([one, two]))
    },
    skip
  )
})
