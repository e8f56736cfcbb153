/** Starts a container again each time it ends. */
import { setTimeout as sleep } from "node:timers/promises"
import * as Duration from "effect/Duration"
import type { Image } from "../../Image.ts"
import type { ExitStatus } from "../../Process.ts"
import type { Box, SupervisedOptions, start } from "../../promise.ts"
import type { Shared } from "./runtime.ts"

/** Waits for the end of a box, while `onStart` runs. */
const ended = async (
  box: Box,
  onStart: SupervisedOptions["onStart"],
  signal: AbortSignal | undefined
): Promise<ExitStatus> => {
  try {
    const exit = box.wait({ signal })
    const used = async (): Promise<ExitStatus> => {
      await onStart?.(box)
      return await exit
    }
    return await Promise.race([exit, used()])
  } finally {
    await box.close()
  }
}

export const restarted =
  (shared: Shared, startBox: typeof start) =>
  async (image: string | Image, { onStart, restart, ...options }: SupervisedOptions): Promise<ExitStatus> => {
    const release = shared.hold(options.linger)
    try {
      for (let times = 1; ; times++) {
        const status = await ended(await startBox(image, options), onStart, options.signal)
        const delay = restart(status, times)
        if (delay === false) return status
        await sleep(Duration.toMillis(delay), undefined, { signal: options.signal }).catch(() => {})
        options.signal?.throwIfAborted()
      }
    } finally {
      await release()
    }
  }
