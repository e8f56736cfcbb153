/** The attacker of processes that join its pid namespace, in a root of its own. */
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Image } from "../../lib/index.ts"
import { compile } from "./attack.ts"
import { makeRoot } from "./rootfs.ts"

/** An image of busybox and the program, `joining`; made once in each Berth's folder. */
export const joiningImage = Effect.flatMap(Berth.Berth, ({ folder }) => {
  const root = `${folder}/joining`
  if (!fs.existsSync(root)) {
    makeRoot(root)
    compile(`${root}/bin/joining`, "joining.c")
  }
  return Image.fromRootfs(root)
})
