/** Runs processes beside a container's first process, in all its namespaces. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type BerthError, ContainerError, type OperationFailed } from "../../BerthError.ts"
import type { Container } from "../../Container.ts"
import type { Process, ProcessOptions } from "../../Process.ts"
import { native } from "../system/addon.ts"
import { ENOMEM, ESRCH } from "../util/errno.ts"
import { attempt } from "../util/fromThrowing.ts"
import * as compile from "./compile.ts"
import { launchProcess } from "./launch.ts"
import * as prepare from "./prepare.ts"

/** The command of a process beside a container's first one, with its environment, working directory and user. */
export type Execution = Pick<compile.Settings, "arguments" | "environment" | "workingDirectory" | "user">

const notRunning = (container: Container): ContainerError =>
  new ContainerError({
    reason: "NotRunning",
    container: container.id,
    detail: "it has ended; start another one"
  })

/** Fails if the container has ended. */
export const running = (container: Container): Effect.Effect<void, ContainerError> =>
  Effect.flatMap(Deferred.isDone(container.state.ended), (ended) =>
    ended || native().signal(container.state.pidfd, 0) < 0 ? Effect.fail(notRunning(container)) : Effect.void
  )

/** The container's namespaces can no longer be joined, or no process can be made in them. */
const isEnding = (error: OperationFailed): boolean =>
  (error.syscall === "setns" && error.errno === ESRCH) ||
  (error.syscall === "clone" && error.errno === ENOMEM)

/** The time that the end of a container may take to be known once its cgroup has been removed. */
const END_PATIENCE = "1 second"

/** Waits for the end of a container whose cgroup has been removed: that begins by killing all its processes. */
const ending = (container: Container, error: BerthError): Effect.Effect<unknown> =>
  error._tag === "CgroupError" && error.reason === "Gone"
    ? Effect.timeoutOption(Effect.exit(Deferred.await(container.state.ended)), END_PATIENCE)
    : Effect.void

/** Replaces an error by `NotRunning` if the container has ended in the meantime. */
export const unlessEnded =
  (container: Container) =>
  <A, R>(effect: Effect.Effect<A, BerthError, R>): Effect.Effect<A, BerthError, R> =>
    Effect.catchIf(
      effect,
      (error) => error._tag === "OperationFailed" || error._tag === "CgroupError",
      (error) =>
        error._tag === "OperationFailed" && isEnding(error)
          ? Effect.fail(notRunning(container))
          : ending(container, error).pipe(
              Effect.zipRight(running(container)),
              Effect.zipRight(Effect.fail(error))
            )
    )

/** Starts a process beside the first one, confined in the same way unless the options say otherwise. */
export const launchInside = (
  container: Container,
  options: ProcessOptions,
  execution: Execution
): Effect.Effect<Process, BerthError, Scope.Scope> => {
  const { berth, ids, kinds, pidfd } = container.state
  return attempt(() =>
    prepare.settings(
      berth.memory,
      options,
      {
        ...execution,
        createWorkingDirectory: false,
        init: false,
        cgroup: container.state.cgroup,
        joined: [{ descriptor: "container", kinds }],
        inUserNamespace: berth.rootless || kinds.includes("user")
      },
      container.state.settings
    )
  ).pipe(
    Effect.flatMap((settings) =>
      launchProcess({
        berth,
        unit: berth.supervisor.nextId(),
        id: container.id,
        options,
        settings,
        operations: compile.joining(settings),
        descriptors: { container: pidfd },
        ids,
        container
      })
    ),
    unlessEnded(container)
  )
}
