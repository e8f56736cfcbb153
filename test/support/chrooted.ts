/**
 * A container in a chroot: `chrooted.ts FOLDER`. Its program tries to leave its root by another chroot(2); prints whether the
 * program still sees the container's own root.
 */
import { existsSync } from "node:fs"
import * as Effect from "effect/Effect"
import { Container, Image } from "../../lib/index.ts"
import { berthIn } from "./effect.ts"

const leave =
  'chroot "/inside" or die "chroot: $!"; chdir ".." for 1..64; print -d "inside" ? "inside" : "outside"'

const readOnly = (path: string) => ({ type: "bind", source: path, target: path, readOnly: true }) as const

const result = await Effect.runPromise(
  Container.run(Image.scratch, {
    command: ["/usr/bin/perl", "-e", leave],
    mounts: [
      ...["/usr", "/lib", "/lib64"].filter((path) => existsSync(path)).map(readOnly),
      { type: "tmpfs", target: "/inside" }
    ]
  }).pipe(Effect.provide(berthIn(process.argv[2]!)))
)
console.log(result.exitCode, result.stdout, result.stderr)
