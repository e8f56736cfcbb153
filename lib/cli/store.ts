/** The commands of images, layers and volumes. */
import process from "node:process"
import type { Progress } from "../Progress.ts"
import type { Transfer } from "../promise.ts"
import {
  type Invocation,
  megabytes,
  openBerth,
  print,
  printEvent,
  printJson,
  printTable
} from "./invocation.ts"

export const images = async (_: {}, invocation: Invocation): Promise<void> => {
  const { json, signal } = invocation
  await using berth = await openBerth(invocation)
  const named = await berth.images.list({ signal })
  if (json) return printJson(named)
  printTable(
    ["NAME", "DIGEST", "PLATFORM"],
    named.map(({ digest, name, platform }) => [name, digest.slice(0, 19), platform ?? ""])
  )
}

/** Waits for a transfer: bars on a terminal, or its steps as events. */
const follow = async <A>(transfer: Transfer<A>, { json }: Invocation): Promise<A> => {
  if (json) for await (const step of transfer) printEvent("layer", step satisfies Progress)
  return await transfer
}

export interface PullOptions {
  readonly name: string
  readonly platform: string | undefined
}

export const pull = async ({ name, platform }: PullOptions, invocation: Invocation): Promise<void> => {
  await using berth = await openBerth(invocation)
  const { signal } = invocation
  const { config, digest, reference } = await follow(
    berth.images.pull(name, { platform, signal }),
    invocation
  )
  if (invocation.json) printEvent("image", { reference, digest, config })
  else print(`${reference} ${digest}`)
}

export interface PushOptions {
  readonly name: string
  readonly to: string | undefined
}

export const push = async ({ name, to = name }: PushOptions, invocation: Invocation): Promise<void> => {
  await using berth = await openBerth(invocation)
  const { signal } = invocation
  const descriptor = await follow(berth.images.push(name, to, { signal }), invocation)
  if (invocation.json) printEvent("pushed", { reference: to, ...descriptor })
  else print(`${to} ${descriptor.digest}`)
}

export interface LoadOptions {
  readonly archive: string | undefined
  readonly tag: string | undefined
}

export const load = async ({ archive, tag }: LoadOptions, invocation: Invocation): Promise<void> => {
  await using berth = await openBerth(invocation)
  const { json, signal } = invocation
  const source = archive === undefined || archive === "-" ? process.stdin : archive
  const loaded = await berth.images.load(source, { tag, signal })
  if (json) printJson(loaded.map(({ config, digest, reference }) => ({ reference, digest, config })))
  else for (const { digest, reference } of loaded) print(`${reference} ${digest}`)
}

export interface SaveOptions {
  readonly name: string
  readonly path: string
  readonly format: "oci-archive" | "docker-archive" | "oci-layout"
  readonly platform: string | undefined
}

export const save = async (
  { format, name, path, platform }: SaveOptions,
  invocation: Invocation
): Promise<void> => {
  await using berth = await openBerth(invocation)
  await berth.images.save(name, path, { format, platform, signal: invocation.signal })
  if (invocation.json) printJson({ name, path, format })
}

export const inspect = async ({ name, platform }: PullOptions, invocation: Invocation): Promise<void> => {
  await using berth = await openBerth(invocation)
  const { json, signal } = invocation
  const found = await berth.images.inspect(name, { platform, signal })
  if (json) return printJson(found)
  const { command, entrypoint, environment, exposedPorts, user, workingDirectory } = found.config
  const fields: ReadonlyArray<readonly [string, string | undefined]> = [
    ["name", found.name],
    ["digest", found.digest],
    ["platform", found.platform],
    ["created", found.created?.toISOString()],
    ["size", megabytes(found.size)],
    ["layers", String(found.layers.length)],
    ["entrypoint", entrypoint.length === 0 ? undefined : JSON.stringify(entrypoint)],
    ["command", command.length === 0 ? undefined : JSON.stringify(command)],
    ["user", user || undefined],
    ["folder", workingDirectory || undefined],
    ["ports", exposedPorts.join(" ") || undefined],
    ...Object.entries(environment).map(([key, value]) => ["variable", `${key}=${value}`] as const)
  ]
  for (const [key, value] of fields) if (value !== undefined) print(`${key.padEnd(10)}  ${value}`)
}

export interface TagOptions {
  readonly name: string
  readonly newName: string
}

export const tag = async ({ name, newName }: TagOptions, invocation: Invocation): Promise<void> => {
  await using berth = await openBerth(invocation)
  await berth.images.tag(name, newName, { signal: invocation.signal })
  if (invocation.json) printJson({ name, newName })
}

export const rm = async (
  { names }: { readonly names: ReadonlyArray<string> },
  invocation: Invocation
): Promise<void> => {
  await using berth = await openBerth(invocation)
  for (const name of names) await berth.images.remove(name, { signal: invocation.signal })
  if (invocation.json) printJson({ removed: names })
}

export const gc = async (
  { dryRun, keep }: { readonly dryRun: boolean; readonly keep: string | undefined },
  invocation: Invocation
): Promise<void> => {
  await using berth = await openBerth(invocation)
  const collected = await berth.images.gc({ dryRun, keep, signal: invocation.signal })
  if (invocation.json) return printJson({ ...collected, dryRun })
  const { blobs, bytes, layers } = collected
  print(`${dryRun ? "would remove" : "removed"} ${blobs} blobs and ${layers} layers: ${megabytes(bytes)}`)
}

export const volumes = async (
  { remove }: { readonly remove: ReadonlyArray<string> },
  invocation: Invocation
): Promise<void> => {
  await using berth = await openBerth(invocation)
  const { json, signal } = invocation
  for (const name of remove) await berth.volumes.remove(name, { signal })
  if (remove.length > 0) return json ? printJson({ removed: remove }) : undefined
  const stored = await berth.volumes.list({ signal })
  if (json) return printJson(stored)
  printTable(
    ["NAME", "SIZE", "COPY OF"],
    stored.map(({ from, name, size }) => [name, size === undefined ? "" : megabytes(size), from ?? ""])
  )
}
