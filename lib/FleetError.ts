/**
 * The ways in which a fleet fails, besides the errors of its containers, which arrive as they were on their runners.
 *
 * @since 0.2.0
 */
import { type ErrorClass, error } from "./internal/util/errorClass.ts"

const fleetError = {
  reason: [
    /** No runner answers. */
    "Unreachable",
    /** The token or the certificate is missing or wrong. */
    "Unauthorized",
    /** The runner has another version of Berth. */
    "Version",
    /** The clocks of the runner and of this machine differ by more than a minute. */
    "Clock",
    /** No runner of the fleet is one that the container can run on: of its architecture, with its labels, large enough. */
    "NoRunner",
    /** The runners that it can run on were full for the whole time that it may wait. */
    "NoRoom",
    /** The configuration of the runner does not allow it. */
    "Refused",
    /** The address cannot be listened on. */
    "Listen",
    /** The database of the fleet does not answer, or refuses the program. */
    "Database"
  ],
  /** The runner, by its name or address, the database, by its address, or `fleet`. */
  subject: "string",
  /** What is wrong, and what to do about it. */
  detail: "string"
} as const
const FleetErrorClass: ErrorClass<FleetError, "FleetError", typeof fleetError> = error(
  "FleetError",
  fleetError
)

/**
 * A fleet cannot be reached, or does not take a container. Nothing was started.
 *
 * @since 0.2.0
 * @category errors
 */
export class FleetError extends FleetErrorClass {
  override get message(): string {
    return `${this.subject}: ${this.detail}`
  }
}

const runnerLost = {
  /** The name of the runner. */
  runner: "string",
  /** What is known about it. */
  detail: "string"
} as const
const RunnerLostClass: ErrorClass<RunnerLost, "RunnerLost", typeof runnerLost> = error(
  "RunnerLost",
  runnerLost
)

/**
 * The runner of a container has ended, or cannot be reached any more. It ends what this program has there, at the latest when the
 * program's lease ends.
 *
 * @since 0.2.0
 * @category errors
 */
export class RunnerLost extends RunnerLostClass {
  override get message(): string {
    return `runner ${this.runner}: ${this.detail}`
  }
}
