/**
 * What Berth can use on this machine, and the exact fix for what it cannot: the report of `Berth.doctor`.
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
 * How a thing is: there; there in part, so that something that needs it fails; not there.
 *
 * @since 0.1.0
 * @category models
 */
export type Status = "ok" | "limited" | "missing"

/**
 * What there is to look at.
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
 * One thing that was looked at.
 *
 * @since 0.1.0
 * @category models
 */
export interface Check {
  readonly name: Name
  readonly status: Status
  /** Whether no container can be started without it. */
  readonly required: boolean
  /** What was found, or what failed and how. */
  readonly detail: string
  /** Commands, or what else to do, where the status is not `"ok"`; undefined where nothing has to be done. */
  readonly fix: string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Report extends Inspectable.Inspectable {
  readonly [TypeId]: TypeId
  /** Whether this process is not root, which everything was looked at as. */
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
 * The report as a table: a line for each check, and below it the fix where there is one.
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
