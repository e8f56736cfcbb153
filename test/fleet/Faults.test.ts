import { execFileSync } from "node:child_process"
import * as Console from "effect/Console"
import { suite, whyNotRoot } from "../support/effect.ts"
import { faults, makeFleet, round } from "../support/fleetFaults.ts"
import { service } from "../support/services.ts"

const { image, missing } = await service("postgres")

const whyNoNsenter = (): string | false => {
  try {
    execFileSync("nsenter", ["--version"])
    return false
  } catch {
    return "no nsenter: apt-get install util-linux"
  }
}

/** Many rounds take longer than `npm test` gives a file: run them by `npx tsx --test test/fleet/Faults.test.ts`. */
const ROUNDS = Number(process.env.BERTH_FLEET_ROUNDS ?? faults.length)

suite("a fleet whose parts fail", (effect, folder) => {
  effect.asRoot(
    `has each container once, and none of a client that is gone, in ${ROUNDS} rounds`,
    function* () {
      const fleet = yield* makeFleet(folder(), yield* image)
      for (let k = 0; k < ROUNDS; k++) {
        yield* round(fleet, faults[k % faults.length]!, Math.floor(k / faults.length))
        if ((k + 1) % 30 === 0) yield* Console.log(`${k + 1} rounds`)
      }
    },
    { skip: whyNotRoot || whyNoNsenter() || missing }
  )
})
