/** A program that a round of the soak ends: `soakVictim.ts FOLDER WORK MILLIS`; exits by itself where MILLIS is not -1. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Berth } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"
import { type Work, work } from "./soakWork.ts"

const [folder, text, millis] = process.argv.slice(2) as [string, string, string]

Effect.runFork(
  Effect.gen(function* () {
    const { supervisor } = yield* Berth.Berth
    fs.writeSync(1, `${supervisor.pid}\n`)
    if (millis !== "-1") setTimeout(() => process.exit(0), Number(millis))
    yield* work(JSON.parse(text) as Work)
  }).pipe(Effect.scoped, Effect.provide(Layer.merge(berthIn(folder), Logger.remove(Logger.defaultLogger))))
)
