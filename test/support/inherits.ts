/**
 * `inherits.ts FOLDER WORD...`: tries the words (attack.c) in a container that has this program's standard input, and all
 * that comes from its parents otherwise; in FOLDER is the attacker's root, made before.
 */
import { NodeContext } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Berth, Container, Image } from "../../lib/index.ts"

const [folder, ...words] = process.argv.slice(2) as [string, ...Array<string>]

const attacked = Effect.flatMap(Image.fromRootfs(`${folder}/attack`), (image) =>
  Container.run(image, { command: ["attack", ...words], stdin: "inherit", seccomp: "unconfined" })
).pipe(Effect.provide(Layer.provide(Berth.layerWith({ folder: `${folder}/inherits` }), NodeContext.layer)))

const { stdout } = await Effect.runPromise(attacked)
process.stdout.write(stdout)
