/** Folders, environment variables and registries that a test needs until its scope closes. */
import * as process from "node:process"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { makeTemporaryFolder, remove } from "./images.ts"
import {
  type Front,
  type RegistryOptions,
  type RunningRegistry,
  startFront,
  startRegistry
} from "./registry.ts"

export const temporaryFolder: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(makeTemporaryFolder),
  (folder) => Effect.sync(() => remove(folder))
)

const assign = (variables: Readonly<Record<string, string | undefined>>): void => {
  for (const [name, value] of Object.entries(variables)) {
    if (value === undefined) {
      delete process.env[name]
    } else {
      process.env[name] = value
    }
  }
}

/** Sets environment variables of this process; undefined removes one. */
export const environment = (
  variables: Readonly<Record<string, string | undefined>>
): Effect.Effect<void, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const earlier = Object.fromEntries(Object.keys(variables).map((name) => [name, process.env[name]]))
      assign(variables)
      return earlier
    }),
    (earlier) => Effect.sync(() => assign(earlier))
  )

/** Hides the credentials and certificates of the user who runs the tests: they are looked for in this folder instead. */
export const nobody: Effect.Effect<string, never, Scope.Scope> = Effect.tap(temporaryFolder, (folder) =>
  environment({
    REGISTRY_AUTH_FILE: undefined,
    XDG_RUNTIME_DIR: `${folder}/runtime`,
    XDG_CONFIG_HOME: `${folder}/config`,
    DOCKER_CONFIG: `${folder}/docker`
  })
)

export const runningRegistry = (
  options?: RegistryOptions
): Effect.Effect<RunningRegistry, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(() => startRegistry(options)),
    (registry) => Effect.promise(registry.stop)
  )

export const front = (...options: Parameters<typeof startFront>): Effect.Effect<Front, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.promise(() => startFront(...options)),
    (running) => Effect.promise(running.stop)
  )
