import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { allowTime, makeTemporaryFolder, remove, whyNoContainers } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { faults, makeSoak, round, type Soak } from "../support/soak.ts"

const rounds = Number(process.env.BERTH_SOAK_ROUNDS ?? 20)

allowTime()

describe("Soak", { skip: whyNoContainers || whyNoBusybox }, () => {
  let folder = ""
  let soak: Soak | undefined
  before(async () => {
    if (whyNoContainers || whyNoBusybox) return
    folder = makeTemporaryFolder()
    soak = await makeSoak(folder)
  })
  after(async () => {
    await soak?.registry.stop()
    if (folder !== "") remove(folder)
  })

  // The rounds are the same each time; `npm run soak` has other ones.
  const first = 1
  // In parts, because Bun limits the time of a test. The first rounds have each fault once.
  for (let part = 0; part < rounds; part += 10) {
    test(`containers that are cut short leave nothing, rounds ${part} to ${Math.min(part + 10, rounds) - 1}`, async () => {
      for (let k = part; k < Math.min(part + 10, rounds); k++) {
        const fault = faults[k]
        const done = await round(soak!, first + k, fault)
        const again = `npm run soak -- --seed ${done.seed}${fault === undefined ? "" : ` --fault "${fault}"`}`
        assert.deepEqual(done.left, [], `${done.fault} at ${done.at} ms; again: ${again}`)
      }
    })
  }
})
