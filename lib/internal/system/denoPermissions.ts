/** What Deno has to allow a program that starts containers. */

interface Deno {
  readonly permissions: {
    readonly querySync: (permission: { readonly name: string }) => { readonly state: string }
  }
}

/** All that there are: Deno allows the files of /proc and /sys, which Berth uses, only to a program that has them all. */
const names = ["read", "write", "env", "sys", "ffi", "run", "net", "import"]

/** The flags that this program lacks; none in another runtime. */
export const missingFlags = (): ReadonlyArray<string> => {
  const { Deno } = globalThis as { readonly Deno?: Deno }
  if (Deno === undefined) return []
  return names
    .filter((name) => Deno.permissions.querySync({ name }).state !== "granted")
    .map((name) => `--allow-${name}`)
}
