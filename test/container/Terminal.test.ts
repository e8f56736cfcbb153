import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Container, Image, type Process } from "../../lib/index.ts"
import { repeatUntil, waitUntil } from "../support/containers.ts"
import { suite } from "../support/effect.ts"
import { commandOf } from "../support/program.ts"
import { makeImage, whyNoBusybox } from "../support/rootfs.ts"
import { typedOnTerminal } from "../support/terminal.ts"

const type = (box: Container.Container, keys: string) =>
  box.state.stdin!.write(new TextEncoder().encode(keys))

/** Reads the screen in the background; `text` is what has come so far, and `shows` waits for a part of it. */
const screen = (box: Process.Process) =>
  Effect.gen(function* () {
    let text = ""
    const reading = yield* Effect.forkScoped(
      Stream.runForEach(Stream.decodeText(box.stdout), (more) =>
        Effect.sync(() => {
          text += more
        })
      )
    )
    const shows = (part: string) => waitUntil(`${part} on the screen`, () => text.includes(part))
    return { text: () => text, shows, end: Fiber.join(reading) }
  })

const shell = (options: Container.StartOptions = {}) =>
  Effect.flatMap(Image.host, (image) =>
    Container.start(image, { command: ["sh"], terminal: { rows: 30, columns: 100 }, ...options })
  )

suite("Terminal", (effect, folder) => {
  effect("a terminal has the given size, belongs to the user and is in the container's devpts", function* () {
    const box = yield* shell({ user: "nobody" })
    const { end, text } = yield* screen(box)
    yield* type(box, "stty size; tty; ls -l $(tty)\nexit 3\n")
    assert.equal((yield* box.exit).exitCode, 3)
    yield* end
    assert.match(text(), /30 100\r\n\/dev\/pts\/0\r\ncrw--w---- 1 nobody/)
  })

  effect("resizing a terminal signals its foreground process", function* () {
    const waiting = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    const box = yield* shell({ command: ["sh", "-c", waiting] })
    const { end, shows, text } = yield* screen(box)
    yield* shows("ready")
    yield* Container.resize(box, { rows: 11, columns: 22 })
    yield* box.exit
    yield* end
    assert.match(text(), /11 22\r\n/)
  })

  effect("a terminal passes on Ctrl-C as SIGINT and the end of stdin as end of file", function* () {
    const box = yield* shell({ command: ["sh", "-c", "echo up; exec sleep 1000"], init: true })
    yield* (yield* screen(box)).shows("up")
    yield* type(box, "\x03")
    assert.equal((yield* box.exit).exitCode, 130)
    const cat = yield* shell({ command: ["cat"] })
    const { end, text } = yield* screen(cat)
    yield* Stream.run(Stream.encodeText(Stream.make("typed\n")), cat.stdin)
    assert.equal((yield* cat.exit).exitCode, 0)
    yield* end
    assert.equal(text().split("typed").length, 3, "once as an echo, once by cat")
  })

  effect("an exec has a terminal of its own", function* () {
    const box = yield* shell({ command: ["sleep", "1000"] })
    const command = yield* Container.execStream(box, ["sh", "-c", "tty; stty size"], {
      terminal: { rows: 5, columns: 6 }
    })
    const { end, text } = yield* screen(command)
    assert.equal((yield* command.exit).exitCode, 0)
    yield* end
    assert.equal(text(), "/dev/pts/1\r\n5 6\r\n")
  })

  effect(
    "Container.attach connects the calling program's terminal: its size, keys, resizes and exit code",
    function* () {
      const { args, command } = commandOf("attached.ts", [`${folder()}/attached`])
      yield* typedOnTerminal([command, ...args])
    },
    { skip: fs.existsSync("/usr/bin/script") ? false : "script(1) is not installed" }
  )

  effect(
    "a full-screen editor works in a terminal",
    function* () {
      const image = yield* makeImage(`${folder()}/editor`)
      const box = yield* Container.start(image, {
        command: ["vi", "/tmp/note"],
        terminal: { rows: 24, columns: 80 }
      })
      const { shows, text } = yield* screen(box)
      yield* shows("/tmp/note")
      yield* type(box, "ihello, world\x1b")
      // An editor tells the Escape key from the beginning of a sequence by the time after it.
      yield* Effect.sleep("500 millis")
      yield* type(box, "0x:w\r")
      yield* repeatUntil(
        "the written file",
        Container.exec(box, ["cat", "/tmp/note"]),
        ({ stdout }) => stdout === "ello, world\n"
      )
      yield* type(box, ":q\r")
      assert.equal((yield* box.exit).exitCode, 0)
      assert.ok(text().includes("\x1b["), "it moves its cursor")
    },
    { skip: whyNoBusybox }
  )
})
