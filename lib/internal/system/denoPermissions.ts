/** What Deno has to allow a program that starts containers. */

interface Deno {
  readonly permissions: {
    readonly querySync: (permission: { readonly name: string }) => {
      readonly state: string
      /** Whether a flag such as `--deny-net=HOST` refuses a part of it. */
      readonly partial: boolean
    }
  }
}

/**
 * All that there are: Deno allows the files of /proc, /sys and /dev, which Berth uses, only to a program that has them all without an
 * exception.
 */
const names = ["read", "write", "env", "sys", "ffi", "run", "net", "import"]

/** What this program lacks: nothing in another runtime. */
export const whyNotAllowed = (): string | undefined => {
  const { Deno } = globalThis as { readonly Deno?: Deno }
  if (Deno === undefined) return undefined
  const states = names.map((name) => ({ name, status: Deno.permissions.querySync({ name }) }))
  const missing = states.filter(({ status }) => status.state !== "granted")
  const limited = states.filter(({ status }) => status.partial)
  return missing.length > 0
    ? `without ${missing.map(({ name }) => `--allow-${name}`).join(", ")}`
    : limited.length > 0
      ? `with ${limited.map(({ name }) => `--deny-${name}`).join(", ")}`
      : undefined
}
