/**
 * A report of what Berth can use on this machine, with the exact fix for each gap: the result of `Berth.doctor`.
 *
 * @since 0.1.0
 */
import * as Inspectable from "effect/Inspectable"
import { hasProperty } from "effect/Predicate"

/**
 * @since 0.1.0
 * @category symbols
 */
export const TypeId: unique symbol = Symbol.for("berth/Doctor")

/**
 * @since 0.1.0
 * @category symbols
 */
export type TypeId = typeof TypeId

/**
 * The status of a check: available; partly available, so that some features fail; not available.
 *
 * @since 0.1.0
 * @category models
 */
export type Status = "ok" | "limited" | "missing"

/**
 * The names of the checks.
 *
 * @since 0.1.0
 * @category models
 */
export type Name =
  | "system"
  | "kernel"
  | "addon"
  | "supervisor"
  | "unpacker"
  | "namespaces"
  | "user namespaces"
  | "ranges of ids"
  | "overlay"
  | "overlay in user namespaces"
  | "idmapped mounts"
  | "cgroups"
  | "seccomp"
  | "AppArmor"
  | "pasta"
  | "netavark"

/**
 * The result of one check.
 *
 * @since 0.1.0
 * @category models
 */
export interface Check {
  readonly name: Name
  readonly status: Status
  /** Whether containers cannot be started without it. */
  readonly required: boolean
  /** What was found, or what failed and how. */
  readonly detail: string
  /** The fix: commands or other steps if the status is not `"ok"`; undefined if there is nothing to do. */
  readonly fix: string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Report extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** Whether this process runs as a non-root user; all checks are made as this user. */
  readonly rootless: boolean
  /** Whether containers can be started. */
  readonly ready: boolean
  readonly checks: ReadonlyArray<Check>
}

const Proto = {
  [TypeId]: TypeId as TypeId,
  ...Inspectable.BaseProto,
  toJSON(this: Report) {
    return { _id: "berth/Doctor", rootless: this.rootless, ready: this.ready, checks: this.checks }
  },
  toString(this: Report) {
    return print(this)
  }
}

/**
 * @since 0.1.0
 * @category guards
 */
export const isReport = (u: unknown): u is Report => hasProperty(u, TypeId)

/** @internal */
export const unsafeMake = (rootless: boolean, checks: ReadonlyArray<Check>): Report =>
  Object.assign(Object.create(Proto), {
    rootless,
    ready: checks.every((check) => !check.required || check.status !== "missing"),
    checks
  })

/**
 * The report as a table: a line for each check, with the fix below it if there is one.
 *
 * @since 0.1.0
 * @category conversions
 */
export const print = (report: Report): string => {
  const width = Math.max(...report.checks.map(({ name }) => name.length))
  const lines = report.checks.flatMap(({ detail, fix, name, status }) => [
    `${status.padEnd(7)}  ${name.padEnd(width)}  ${detail}`,
    ...(fix === undefined ? [] : fix.split("\n").map((line) => `${" ".repeat(width + 11)}> ${line}`))
  ])
  const user = report.rootless ? "without root" : "as root"
  const last = report.ready ? `Containers can be started ${user}.` : `No container can be started ${user}.`
  return [...lines, "", last].join("\n")
}
