/** Effect programs as tests. The tests of a suite share one Berth, which has to leave nothing behind. */
import assert from "node:assert/strict"
import { execFileSync, spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { after, before, describe, test } from "node:test"
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import type * as Scope from "effect/Scope"
import type { YieldWrap } from "effect/Utils"
import { Berth, type BerthError, Container, Image } from "../../lib/index.ts"
import { leftovers, type Snapshot, sleep, snapshot } from "./leftovers.ts"

type Services = Berth.Berth | NodeContext.NodeContext

/** A test whose body is a generator, as of `Effect.gen`. It has a scope of its own. */
type Test = (
  name: string,
  body: () => Generator<YieldWrap<Effect.Effect<unknown, unknown, Services | Scope.Scope>>, unknown, never>,
  options?: { readonly skip?: string | false }
) => void

export interface EffectTest extends Test {
  /** A test that needs root and is skipped without. */
  readonly asRoot: Test
}

const bun = "bun:test"
const runner = "Bun" in globalThis ? await import(bun) : undefined

/** Raises the time limit of Bun's runner, which is 5 seconds for each test or hook, in the file that calls it. */
export const allowTime = (millis = 60_000): void => runner?.setDefaultTimeout(millis)

export const berthIn = (folder: string): Layer.Layer<Services, BerthError.BerthError> =>
  Berth.layerWith({ folder }).pipe(Layer.provideMerge(NodeContext.layer))

export const makeTemporaryFolder = (): string =>
  fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), "berth-test-")))

/** Removes a folder. Without root, its layers have files of subordinate ids, which only root of a user namespace may remove. */
export const remove = (folder: string): void => {
  try {
    fs.rmSync(folder, { recursive: true, force: true })
  } catch (error) {
    if (process.getuid?.() === 0) throw error
    execFileSync("unshare", ["--map-auto", "--map-root-user", "rm", "-rf", "--", folder])
  }
}

/** Why containers cannot be started here, or false. */
export const whyNoContainers: string | false =
  process.platform !== "linux"
    ? "not Linux"
    : process.getuid?.() !== 0 && spawnSync("unshare", ["--user", "true"]).status !== 0
      ? "not root, and unshare --user does not work here"
      : false

/** Why a test that needs root is skipped here, or false. */
export const whyNotRoot: string | false = process.getuid?.() === 0 ? false : "needs root"

// A runtime opens descriptors on first use and keeps them, so that has to happen before anything is compared.
const warmUp = async (folder: string): Promise<void> => {
  await Effect.runPromise(
    Effect.flatMap(Image.host, (image) => Container.run(image, { command: ["true"] })).pipe(
      Effect.provide(berthIn(folder))
    )
  )
  await sleep(1)
  await fs.promises.realpath(folder)
  await new Promise((resolve) => spawn("true", { stdio: "pipe" }).on("close", resolve))
  // Bun opens an epoll and an eventfd for its first synchronous child and keeps them.
  execFileSync("true")
}

/** A suite of tests. `body` gets a function for the folder of its Berth, which exists when the tests run. */
export const suite = (name: string, body: (effect: EffectTest, folder: () => string) => void): void => {
  allowTime()
  describe(name, { skip: whyNoContainers }, () => {
    let folder = ""
    let runtime: ManagedRuntime.ManagedRuntime<Services, BerthError.BerthError>
    let earlier: Snapshot
    before(async () => {
      if (whyNoContainers !== false) return
      folder = makeTemporaryFolder()
      await warmUp(`${folder}/warm`)
      earlier = snapshot()
      runtime = ManagedRuntime.make(berthIn(`${folder}/berth`))
      await runtime.runPromise(Effect.void)
    })
    after(async () => {
      if (whyNoContainers !== false) return
      await runtime.dispose()
      const left = await leftovers(earlier, `${folder}/berth`)
      remove(folder)
      assert.deepEqual(left, [])
    })
    const run: Test = (title, body, options) =>
      test(title, options ?? {}, () => runtime.runPromise(Effect.asVoid(Effect.scoped(Effect.gen(body)))))
    const asRoot: Test = (title, body, options) =>
      run(title, body, { skip: whyNotRoot || (options?.skip ?? false) })
    body(Object.assign(run, { asRoot }), () => `${folder}/berth`)
  })
}

/** The reason that a promise rejects with. */
export const rejection = (promise: PromiseLike<unknown>): Promise<unknown> =>
  Promise.resolve(promise).then(
    () => assert.fail("the promise should be rejected"),
    (error) => error
  )

/** The error that an effect fails with, which has to have this tag. */
export const failure = <Tag extends BerthError.BerthError["_tag"], R>(
  tag: Tag,
  effect: Effect.Effect<unknown, BerthError.BerthError, R>
): Effect.Effect<Extract<BerthError.BerthError, { readonly _tag: Tag }>, never, R> =>
  Effect.map(Effect.either(effect), (result) => {
    assert.equal(result._tag, "Left", `should fail with ${tag}`)
    const error = (result as { readonly left: BerthError.BerthError }).left
    assert.equal(error._tag, tag, `${error._tag}: ${error.message}`)
    return error as Extract<BerthError.BerthError, { readonly _tag: Tag }>
  }) as never
