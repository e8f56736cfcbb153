/** Writable layers that attack the program which copies them for a snapshot. */
import assert from "node:assert/strict"
import { execFileSync, spawn } from "node:child_process"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { Berth, type BerthError, Container, type Image, Store } from "../../lib/index.ts"
import { detect } from "../../lib/internal/cgroup/tree.ts"
import { plantImage } from "../support/attack.ts"
import { allowTime, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"
import { modes } from "./modes.ts"

allowTime(120_000)

const tree = detect()
const skip: string | false =
  whyNoBusybox || (tree.controllers.freezer === undefined ? `no freezer: ${tree.missing("freezer")}` : false)

/** So many snapshots are made of an entry that is replaced, and a fifth of them of folders. */
const rounds = Number(process.env.BERTH_SNAPSHOT_ROUNDS ?? 40)

const TiB = 2 ** 40

const isChange = (error: BerthError.BerthError): void => {
  assert.equal(error._tag, "ContainerError", error.message)
  assert.match(error.message, /replaced while it was copied/)
}

/** Runs a program outside of all containers, from its first line until the scope closes. */
const outside = (program: string, args: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => spawn(program, args, { stdio: ["ignore", "pipe", "ignore"], detached: true })),
      (made) =>
        Effect.async<void>((resume) => {
          made.once("exit", () => resume(Effect.void))
          process.kill(-made.pid!, "SIGKILL")
        })
    )
    yield* Effect.promise(() => new Promise((resolve) => child.stdout.once("data", resolve)))
  })

suite("hostile writable layers of a snapshot", (effect) => {
  for (const { name, options } of modes) {
    const planted = (script: string) =>
      Effect.gen(function* () {
        // Only a collection removes a tree of any depth.
        yield* Effect.addFinalizer(() => Effect.orDie(Store.gc()))
        const command = ["/bin/sleep", "1000"]
        const box = yield* Container.start(yield* plantImage, { command, ...options })
        const { exitCode, stderr } = yield* Container.exec(box, ["/bin/sh", "-euc", script])
        assert.equal(exitCode, 0, stderr)
        return box
      })
    const count = (from: Image.Image, test: string) =>
      Effect.sync(() =>
        Number(
          execFileSync("sh", ["-c", `find "$1" ${test} | wc -l`, "sh", from.layers.at(-1)!], {
            encoding: "utf8"
          })
        )
      )
    const out = (from: Image.Image, script: string) =>
      Effect.map(
        Container.run(from, { command: ["/bin/sh", "-euc", script], ...options }),
        ({ stderr, stdout }) => `${stdout}${stderr}`
      )

    effect(
      `${name}: a tree of 2500 levels is copied`,
      function* () {
        const made = yield* Container.snapshot(yield* planted("plant deep /deep 2500"))
        // busybox's find ends where paths are longer than the kernel takes.
        assert.equal(yield* count(made, "-name file"), 2500)
      },
      { skip }
    )

    effect(
      `${name}: a folder of 20,000 files and one of 3,000 folders are copied`,
      function* () {
        const script = "plant many /many 20000; mkdir /folders; cd /folders; seq 3000 | xargs mkdir"
        const made = yield* Container.snapshot(yield* planted(script))
        assert.equal(yield* out(made, "find /many | wc -l; find /folders | wc -l"), "20001\n3001\n")
      },
      { skip }
    )

    effect(
      `${name}: sparse files take no more room than their data`,
      function* () {
        const size = 8 * TiB
        const script = `for k in 1 2 3 4 5 6 7 8; do plant hole /hole-$k ${size}; done`
        // Below the limit of bytes, which counts no holes.
        const made = yield* Container.snapshot(yield* planted(script), { maxBytes: "1MiB" })
        assert.equal(yield* out(made, "stat -c %s /hole-8"), `${size}\n`)
        const used = execFileSync("du", ["-s", "-k", made.layers.at(-1)!], { encoding: "utf8" })
        assert.ok(Number(used.split("\t")[0]) < 1024, used)
      },
      { skip }
    )

    effect(
      `${name}: fifos, locks, links to everywhere and names that are no text are copied, and none is opened`,
      function* () {
        const script = `
mkdir /d; cd /d; mkfifo fifo; ln fifo other; ln -s / root; ln -s /proc/self/fd/0 stdin; ln -s loop loop
printf 'x' > "$(printf '\\377\\n\\t')"; echo y > -; echo z > ' '; chmod 000 .; plant lock /bin/plant > /locked 2>&1 &
while [ ! -s /locked ]; do :; done`
        const made = yield* Container.snapshot(yield* planted(script))
        const shown = `
stat -c %a /d; cd /d; stat -c '%F %h' fifo other; for l in root stdin loop; do readlink $l; done
cat "$(printf '\\377\\n\\t')" ./- ' '`
        assert.equal(yield* out(made, shown), "0\nfifo 2\nfifo 2\n/\n/proc/self/fd/0\nloop\nxy\nz\n")
      },
      { skip }
    )

    effect(
      `${name}: a program keeps its file capability, for the root of its own user namespace alone`,
      function* () {
        const box = yield* planted("plant capability /program; cp /bin/busybox /setuid; chmod 4755 /setuid")
        const made = yield* Container.snapshot(box)
        assert.equal(yield* out(made, "stat -c '%a %u' /setuid /program"), "4755 0\n755 0\n")
      },
      { skip }
    )
  }

  effect.asRoot(
    "folders that a process outside replaces by links during the copy lead nowhere",
    function* () {
      const command = ["/bin/sleep", "1000"]
      const box = yield* Container.start(yield* plantImage, { command })
      const swap =
        "for k in 1 2 3 4 5 6 7 8; do mkdir -p /t/$k/a/b; seq 200 | (cd /t/$k/a; xargs touch); done"
      yield* Container.exec(box, ["/bin/sh", "-c", swap])
      const at = `/proc/${box.pid}/root/t`
      const script = `cd "$1" || exit 1; echo; while :; do for k in 1 2 3 4 5 6 7 8; do
mv $k/a $k/moved; ln -s / $k/a; rm $k/a; mv $k/moved moved-$k; mv moved-$k $k/a; done; done`
      yield* outside("sh", ["-c", script, "sh", at])
      for (let round = 0; round < rounds / 5; round++) {
        const made = yield* Effect.either(Container.snapshot(box))
        if (made._tag === "Left") {
          isChange(made.left)
          continue
        }
        const layer = `${made.right.layers.at(-1)}/t`
        const found = execFileSync("find", [layer, "-printf", "%P\n"], { encoding: "utf8" }).trim()
        for (const path of found.split("\n"))
          assert.match(path, /^(t|\d|moved-\d)?(\/(a|moved))?(\/(b|\d+))?$/)
      }
    },
    { skip }
  )

  effect.asRoot(
    "an entry that a process outside replaces at any moment of the copy is named as replaced",
    function* () {
      const { folder } = yield* Berth.Berth
      const box = yield* Container.start(yield* plantImage, { command: ["/bin/sleep", "1000"] })
      yield* Container.exec(box, ["/bin/mkdir", "/t"])
      yield* outside(`${folder}/plant/bin/plant`, ["swap", `/proc/${box.pid}/root/t`])
      for (let round = 0; round < rounds; round++)
        Either.match(yield* Effect.either(Container.snapshot(box)), { onLeft: isChange, onRight: () => {} })
    },
    { skip }
  )
})
