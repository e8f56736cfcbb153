/**
 * Vulnerabilities of unpackers and stores. Others are tested beside their subjects: CVE-2024-3727 and CVE-2021-41190 in
 * ImageRefused.test.ts, CVE-2021-29136 in UnpackEntries.test.ts, CVE-2018-15664 and CVE-2019-10152 in Copy.test.ts.
 */
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import { file, folder, symlink, tar } from "../support/tar.ts"
import { binary, check, env, parse } from "../support/unpack.ts"

check(
  "CVE-2025-47290: a folder that is swapped for a link during the unpack leads no file out of the layer",
  async (place) => {
    const outside = `${place.base}/outside`
    const layer = `${place.base}/racing`
    for (const made of [outside, layer, `${layer}/d`]) fs.mkdirSync(made)
    fs.symlinkSync(outside, `${layer}/l`)
    const script = `cd '${layer}'; while :; do mv -T d x; mv -T l d; mv -T d l; mv -T x d; done 2>/dev/null`
    const swapper = spawn("sh", ["-c", script], { stdio: "ignore" })
    const gone = new Promise((resolve) => swapper.on("exit", resolve))
    try {
      const entries = Array.from({ length: 400 }, (_, k) =>
        k % 20 === 0 ? symlink(`d/s${k}`, "../l") : k % 5 === 0 ? folder(`d/f${k}/`) : file(`d/f${k}`, "x")
      )
      fs.writeFileSync(`${place.base}/archive`, tar(...entries))
      for (let k = 0; k < 5; k++) {
        const input = fs.openSync(`${place.base}/archive`, "r")
        const unpacker = spawn(binary, [layer], { stdio: [input, "pipe", "pipe"], env })
        let stdout = ""
        unpacker.stdout!.on("data", (bytes) => {
          stdout += bytes
        })
        const status = await new Promise<number | null>((resolve) => unpacker.on("close", resolve))
        fs.closeSync(input)
        // The unpack succeeds or fails with a report: the folder may be missing or a link just then.
        parse(status, Buffer.from(stdout), "")
        assert.deepEqual(fs.readdirSync(outside), [])
      }
    } finally {
      swapper.kill("SIGKILL")
      await gone
    }
  }
)
