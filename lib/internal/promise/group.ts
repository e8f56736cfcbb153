/** A group of services with promises. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Struct from "effect/Struct"
import { InvalidOption } from "../../BerthError.ts"
import * as Container from "../../Container.ts"
import type * as Fixture from "../../Fixture.ts"
import type {
  Box,
  CallOptions,
  compose,
  FixtureService,
  Group,
  group,
  ImageService,
  SupervisedOptions
} from "../../promise.ts"
import { attempt } from "../util/fromThrowing.ts"
import { later } from "../util/later.ts"
import { makeBox, withContainers } from "./box.ts"
import { effectsOf, withBox } from "./fixture.ts"
import { named } from "./images.ts"
import type { Shared } from "./runtime.ts"
import { opened, withFunctions } from "./start.ts"

const grouping = later(() => import("../fixtures/group.ts"))
const composing = later(() => import("../../Compose.ts"))

type Services = Readonly<Record<string, ImageService | FixtureService>>

/** The schedule of a function that gives a delay for each container that has ended. */
const scheduleOf = (
  restart: SupervisedOptions["restart"]
): Schedule.Schedule<unknown, Container.ExitStatus> =>
  Schedule.identity<Container.ExitStatus>().pipe(
    Schedule.intersect(Schedule.forever),
    Schedule.map(([status, times]) => restart(status, times + 1)),
    Schedule.whileOutput((delay) => delay !== false),
    Schedule.addDelay((delay) => (delay === false ? 0 : delay))
  )

const fixtureService = (
  shared: Shared,
  name: string,
  { fixture, ...options }: FixtureService
): Fixture.FixtureService => {
  const effects = effectsOf(shared, fixture)
  if (effects !== undefined) return { ...options, fixture: effects }
  const option = `services.${name}.fixture`
  throw new InvalidOption({ option, value: String(fixture), expected: "a fixture of berth/promise/fixtures" })
}

const imageService = (shared: Shared, service: ImageService): Fixture.ImageService => {
  const { ready, restart } = service
  return {
    ...(Struct.omit(service, "image", "pull", "ready", "restart", "namespaces") as object),
    ...withContainers(Struct.pick(service, "namespaces")),
    image: Effect.suspend(() => named(service.image, service)),
    ready: typeof ready === "function" ? (container) => withBox(shared, container, ready) : ready,
    restart: restart === undefined ? undefined : scheduleOf(restart)
  }
}

const servicesOf = (shared: Shared, services: Services): Readonly<Record<string, Fixture.Service>> =>
  Object.fromEntries(
    Object.entries(services).map(([name, service]) => [
      name,
      "fixture" in service ? fixtureService(shared, name, service) : imageService(shared, service)
    ])
  )

/** The boxes of a group's containers: they are closed after the group. */
class Boxes {
  private readonly boxes = new Map<Container.Container, Box>()
  private readonly make: (container: Container.Container) => Box
  private last: Promise<unknown> | undefined

  constructor(make: (container: Container.Container) => Box) {
    this.make = make
  }

  of(container: Container.Container): Box {
    const box = this.boxes.get(container) ?? this.make(container)
    this.boxes.set(container, box)
    // A service that ended after the group was closed.
    if (this.last !== undefined) void box.close()
    return box
  }

  async close(): Promise<void> {
    this.last ??= Promise.all([...this.boxes.values()].map((box) => box.close()))
    await this.last
  }
}

const kill = (container: Container.Container): Effect.Effect<void> =>
  Effect.zipRight(Container.signal(container, "SIGKILL"), container.exit).pipe(Effect.ignore)

/** A group with promises in place of effects. */
const asPromises = (
  shared: Shared,
  linger: CallOptions["linger"],
  made: Fixture.Group<Readonly<Record<string, Fixture.Service>>>,
  closeGroup: () => Promise<void>,
  scope: Scope.CloseableScope
): Group<Services> => {
  const boxes = new Boxes((container) => {
    const own = Effect.runSync(Scope.make())
    Effect.runSync(Scope.addFinalizer(own, kill(container)))
    return makeBox(shared, container, own, linger)
  })
  const services = {}
  for (const name of Object.keys(made.services)) {
    const get = () => {
      const value = made.services[name]!
      if (Container.isContainer(value)) return boxes.of(value)
      const { container, ...client } = value as Fixture.Server<object>
      return { ...client, box: boxes.of(container) }
    }
    Object.defineProperty(services, name, { enumerable: true, get })
  }
  const networks = Object.fromEntries(
    Object.entries(made.networks).map(([name, network]) => [name, withFunctions(shared, network, scope)])
  )
  const close = async (): Promise<void> => {
    await closeGroup()
    await boxes.close()
  }
  return { services, networks, close, [Symbol.asyncDispose]: close } as never
}

export const groupWith = (shared: Shared): typeof group =>
  (({ linger, signal, ...options }: Fixture.GroupOptions<Services> & CallOptions) =>
    opened(
      shared,
      { linger, signal },
      Effect.flatMap(
        attempt(() => servicesOf(shared, options.services)),
        (services) => grouping(({ make }) => make({ ...options, services }))
      ),
      (made, close, scope) => asPromises(shared, linger, made, close, scope)
    )) as never

export const composeWith =
  (shared: Shared): typeof compose =>
  (source, { linger, signal, ...options } = {}) =>
    opened(
      shared,
      { linger, signal },
      composing(({ up }) => up(source, options)),
      (made, close, scope) => asPromises(shared, linger, made, close, scope)
    ) as ReturnType<typeof compose>
