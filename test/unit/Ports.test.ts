import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { parseOnePort, parsePorts } from "../../lib/internal/network/ports.ts"

describe("ports in Docker's spelling", () => {
  test("are parsed into the typed form", () => {
    const expected: ReadonlyArray<readonly [string, ReadonlyArray<object>]> = [
      ["80", [{ container: 80 }]],
      ["80/tcp", [{ container: 80, protocol: "tcp" }]],
      ["8080:80", [{ container: 80, host: 8080 }]],
      ["127.0.0.1:8080:80/udp", [{ container: 80, host: 8080, hostname: "127.0.0.1", protocol: "udp" }]],
      ["[::1]:8080:80", [{ container: 80, host: 8080, hostname: "::1" }]],
      ["0.0.0.0::80", [{ container: 80, hostname: "0.0.0.0" }]],
      ["localhost:1:65535", [{ container: 65535, host: 1, hostname: "localhost" }]],
      ["80-81", [{ container: 80 }, { container: 81 }]],
      [
        "8000-8002:80-82",
        [
          { container: 80, host: 8000 },
          { container: 81, host: 8001 },
          { container: 82, host: 8002 }
        ]
      ]
    ]
    for (const [text, ports] of expected) assert.deepEqual(parsePorts("ports", text), ports, text)
    assert.deepEqual(parsePorts("ports", 80), [{ container: 80 }])
    const typed = { container: 80, host: 8080 }
    assert.deepEqual(parsePorts("ports", typed), [typed])
  })

  test("that are wrong are refused, with the text and what is expected", () => {
    const shape = /a port as in Docker: "80", "8080:80"/
    const wrong: ReadonlyArray<readonly [string, RegExp]> = [
      ["", shape],
      ["http", shape],
      ["80/sctp", shape],
      ["80/", shape],
      [":80", shape],
      ["8080:", shape],
      ["-80", shape],
      ["1.5", shape],
      ["80 ", shape],
      ["::1:8080:80", shape],
      ["1:2:3:4", shape],
      ["70000", /ports from 1 to 65535/],
      ["0", /ports from 1 to 65535/],
      ["0:80", /ports from 1 to 65535/],
      ["8080:70000", /ports from 1 to 65535/],
      ["99999999999999999999:80", /ports from 1 to 65535/],
      ["82-80", /unlike 82-80/],
      ["1-65536", /ports from 1 to 65535/],
      ["8000-8001:80", /as many ports of the host/],
      ["8000:80-81", /as many ports of the host/]
    ]
    for (const [text, expected] of wrong)
      assert.throws(
        () => parsePorts("ports", text),
        (error: { _tag: string; message: string }) => {
          assert.equal(error._tag, "InvalidOption")
          assert.ok(error.message.startsWith(`ports: ${JSON.stringify(text)}`), error.message)
          assert.match(error.message, expected)
          return true
        },
        text
      )
  })

  test("are one where a single port is published", () => {
    assert.deepEqual(parseOnePort("8080:80"), { container: 80, host: 8080 })
    assert.throws(
      () => parseOnePort("8000-8001:80-81"),
      /port: "8000-8001:80-81" .*one port; a range is for/s
    )
  })
})
