import assert from "node:assert/strict"
import * as fs from "node:fs"
import { test } from "node:test"
import * as Effect from "effect/Effect"
import { failed, moveAll } from "../../lib/internal/cgroup/cgroup.ts"
import { ENOENT } from "../../lib/internal/util/errno.ts"
import { makeTemporaryFolder, remove } from "../support/effect.ts"

test("a missing file means a cgroup that is being removed, or a kernel without it", () => {
  const folder = makeTemporaryFolder()
  const reasonOf = (controller: string, file: string) =>
    failed(controller, `${folder}/${file}`, ENOENT, "write").reason
  try {
    // The kernel removes the files one after the other, and the folder last.
    assert.equal(reasonOf("memory", "memory.zswap.max"), "Gone")
    fs.writeFileSync(`${folder}/cgroup.procs`, "")
    assert.equal(reasonOf("memory", "memory.zswap.max"), "NotInKernel")
    assert.equal(reasonOf("freezer", "freezer.state"), "Gone")
  } finally {
    remove(folder)
  }
})

test("processes that are moved into a cgroup that has just been removed are told so", async () => {
  const folder = makeTemporaryFolder()
  try {
    // The cgroup above is there.
    fs.writeFileSync(`${folder}/cgroup.procs`, "")
    const error = await Effect.runPromise(Effect.flip(moveAll(`${folder}/gone`, () => [process.pid])))
    assert.equal(error._tag === "CgroupError" && error.reason, "Gone", error.message)
  } finally {
    remove(folder)
  }
})
