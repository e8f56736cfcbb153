/**
 * Evaluates the steps of a build. A step with a layer is looked up by its key, which says all that it depends on besides the layers
 * below it; without a layer of that key in the store, it runs. Equal steps run once, also in programs that build at the same time.
 */
import { createHash, randomUUID } from "node:crypto"
import { posix } from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Berth } from "../../Berth.ts"
import type { BerthError } from "../../BerthError.ts"
import type { BuildEvent, Explanation, ImageOptions } from "../../Build.ts"
import * as Image from "../../Image.ts"
import type { History } from "../image/derive.ts"
import { make } from "../image/image.ts"
import { kept } from "../image/kept.ts"
import * as Kept from "../layer/kept.ts"
import type * as Oci from "../oci/documents.ts"
import { parsePlatform } from "../oci/layout.ts"
import type { Cache } from "./cache.ts"
import * as copying from "./copy.ts"
import { alias, unlessEqual } from "./equal.ts"
import { inPlace } from "./failure.ts"
import * as Inputs from "./inputs.ts"
import { type From, type Node, shownBy } from "./node.ts"
import { isBuild } from "./part.ts"
import * as running from "./run.ts"

/** Another number makes the layers of earlier versions unknown. */
const VERSION = 2

/** A step since the first image. */
export interface StateStep {
  /** What it adds to the history. */
  readonly history: History
  /** The layer that it made. */
  readonly layer: string | undefined
  /** What it was made of, if the provenance is asked for. */
  readonly inputs?: Inputs.Inputs | undefined
}

/** An image as it is after a step. */
export interface State {
  readonly image: Image.Image
  /** The image that the first step is from. */
  readonly base: Image.Image
  /** The platform of an image that begins with no other one. */
  readonly platform: Oci.Platform | undefined
  /** What tells base layers that are folders of the host from other ones at the same paths. */
  readonly identity: string
  /** Fields of the configuration that Berth does not use. */
  readonly raw: Readonly<Record<string, unknown>>
  readonly author: string | undefined
  readonly steps: ReadonlyArray<StateStep>
  /** Whether a step that has not been made is among them, so that the files are not known; only if nothing runs. */
  readonly isUnknown: boolean
}

/** The states of the builds whose files a command sees. */
export type Seen = ReadonlyMap<Node, State>

/** What a step that makes a layer needs. */
export interface Made {
  /** All that it depends on, except for the layers below it. */
  readonly key: unknown
  /** What the key has of each file that is copied, by its path. */
  readonly files?: ReadonlyMap<string, string> | undefined
  /** A key that more layers have in common, if it takes longer to find. */
  readonly refined?: Effect.Effect<Pick<Made, "key" | "files">, BerthError, Berth> | undefined
  /** Makes the layer with this key on top of the image; gives none if the step changes nothing. */
  readonly make: (key: string) => Effect.Effect<Image.Image | undefined, BerthError, Berth>
}

export interface Evaluation {
  readonly berth: Berth
  readonly options: ImageOptions
  readonly tell: (event: BuildEvent) => void
  /** Limits how many steps run at once. */
  readonly slots: Effect.Semaphore
  /** The result of each step, for all that need it. */
  readonly known: Map<Node, Effect.Effect<State, BerthError, Berth>>
  /** The numbers of the steps that make layers, in the order in which the build came to them. */
  readonly numbers: Map<Node, number>
  /** Where layers that the store lacks may come from. */
  readonly caches: ReadonlyArray<Cache>
  /** The folders of the keys that led to layers, in the order in which the steps ended. */
  readonly made: Set<string>
  /** If it is there, nothing runs: it gets the steps that would, with the reasons. */
  readonly explain?: ((explanation: Explanation) => void) | undefined
  /** Gets each step that fails, with the image before it, and what its command sees. */
  readonly failed?: ((node: Step, image: Image.Image, seen: Seen) => void) | undefined
}

type Step = Exclude<Node, From>

const withConfig = (image: Image.Image, config: Partial<Image.ImageConfig>): Image.Image =>
  make({ ...image, config: { ...image.config, ...config } })

/** The image that a build begins with. */
export const baseOf = (
  { platform, source }: From,
  options: Pick<ImageOptions, "platform" | "pull">
): Effect.Effect<Image.Image, BerthError, Berth> =>
  typeof source === "string"
    ? Image.get(source, { pull: options.pull, platform: platform ?? options.platform })
    : Image.isImage(source)
      ? Effect.succeed(source)
      : source

const keyOf = (parts: unknown): string =>
  `build ${createHash("sha256")
    .update(JSON.stringify([VERSION, parts]))
    .digest("hex")}`

/** The state after a step that makes a layer, which comes from the store if it has been made before. */
const layered = (
  evaluation: Evaluation,
  node: Step,
  state: State,
  { files, key, make: makeLayer, refined }: Made
): Effect.Effect<State, BerthError, Berth> =>
  Effect.gen(function* () {
    const { berth, caches, explain, numbers, options, slots, tell } = evaluation
    const { image } = state
    const isCached = options.cache !== false
    // A layer that is in the store under its key stays there, so what runs anew gets a key of its own.
    const name = keyOf([state.identity, key, ...(isCached ? [] : [randomUUID()])])
    numbers.set(node, numbers.size + 1)
    const event = { step: numbers.get(node)!, text: node.text, place: node.place }
    const place = Inputs.placeOf(node)
    const inputs = () => Inputs.inputsOf(node, image, state.identity, files, options.network)
    if (explain !== undefined) {
      const common = refined === undefined ? undefined : keyOf([state.identity, (yield* refined).key])
      const own = yield* kept(image, name)
      const found = Option.isNone(own) && common !== undefined ? yield* kept(image, common) : own
      const isMade = Option.isSome(found)
      const unknown = ["no build of this step, after the same steps, is recorded"]
      const reasons = isMade ? [] : (Inputs.reasonsOf(berth, place, inputs()) ?? unknown)
      explain({ ...event, isMade, reasons })
      const layers = isMade ? found.value.layers : image.layers
      return { ...state, image: make({ ...image, layers }), isUnknown: !isMade }
    }
    const run = (as: string) =>
      Effect.suspend(() => {
        const before = isCached ? Inputs.lastName(berth, place) : undefined
        const reasons = isCached ? Inputs.reasonsOf(berth, place, inputs()) : undefined
        tell({ _tag: "Started", ...event, reasons: reasons ?? [] })
        const began = performance.now()
        return unlessEqual(berth, image, { as, before, makeLayer }).pipe(
          slots.withPermits(1),
          Effect.tap(() =>
            Effect.sync(() => tell({ _tag: "Done", ...event, millis: performance.now() - began }))
          ),
          Effect.tapErrorCause(() => Effect.sync(() => tell({ _tag: "Failed", ...event })))
        )
      })
    const inStore = (key: string) =>
      Effect.tap(kept(image, key), (found) =>
        Effect.sync(() => {
          if (Option.isSome(found)) tell({ _tag: "Cached", ...event, from: undefined })
        })
      )
    const anywhere = (key: string) =>
      caches.reduce(
        (before, cache) =>
          Effect.flatMap(before, (found) =>
            Option.isSome(found)
              ? Effect.succeed(found)
              : Effect.tap(cache.get(image, key), (got) =>
                  Effect.sync(() => {
                    if (Option.isSome(got)) tell({ _tag: "Cached", ...event, from: cache.name })
                  })
                )
          ),
        inStore(key)
      )
    const orElse = (found: ReturnType<typeof inStore>, otherwise: ReturnType<typeof run>) =>
      Effect.flatMap(
        found,
        Option.match({ onNone: () => otherwise, onSome: (image) => Effect.succeed(image) })
      )
    /** Takes the layer of the refined key, or makes it under that. */
    const byRefined = (effect: NonNullable<typeof refined>) =>
      Effect.gen(function* () {
        const common = keyOf([state.identity, (yield* effect).key])
        const made = yield* orElse(anywhere(common), run(common))
        if (made !== undefined) yield* alias(berth, image, name, made)
        return made
      })
    const orMake = refined === undefined ? run(name) : byRefined(refined)
    const folder = Kept.folderOf(berth, image, name)
    // Looked up again once nobody else makes it.
    const made = yield* isCached
      ? orElse(inStore(name), Kept.exclusive(berth, folder, orElse(anywhere(name), orMake)))
      : run(name)
    if (isCached) Inputs.record(berth, place, name, inputs)
    if (made !== undefined) evaluation.made.add(folder)
    const isNew = made !== undefined && made.layers.length > image.layers.length
    const history: History = { created_by: node.text, ...(isNew ? {} : { empty_layer: true }) }
    return {
      ...state,
      image: isNew ? make({ ...image, digest: undefined, layout: undefined, layers: made.layers }) : image,
      steps: [
        ...state.steps,
        {
          history,
          layer: isNew ? made.layers.at(-1) : undefined,
          inputs: options.provenance === true ? inputs() : undefined
        }
      ]
    }
  })

const after = (evaluation: Evaluation, node: Node): Effect.Effect<State, BerthError, Berth> =>
  Effect.gen(function* () {
    if (node._tag === "From") {
      const base = yield* baseOf(node, evaluation.options)
      const wanted = base === Image.scratch ? (node.platform ?? evaluation.options.platform) : undefined
      const platform = wanted === undefined ? undefined : yield* parsePlatform(wanted)
      const { architecture, os } = platform ?? base.config
      const environment = { ...base.config.environment, ...node.environment }
      const isBase = platform === undefined && node.environment === undefined
      return {
        image: isBase ? base : withConfig(base, { architecture, os, environment }),
        base,
        platform,
        identity: yield* Kept.identityOf(evaluation.berth, base),
        raw: {},
        author: undefined,
        steps: [],
        isUnknown: false
      }
    }
    const failing = <A, R>(
      image: Image.Image,
      effect: Effect.Effect<A, BerthError, R>,
      seen: Seen = new Map()
    ) =>
      Effect.tapError(Effect.mapError(effect, inPlace(node)), () =>
        Effect.sync(() => evaluation.failed?.(node, image, seen))
      )
    /** A step after one that has not been made. */
    const unknown = (state: State): State => {
      const { numbers } = evaluation
      numbers.set(node, numbers.size + 1)
      const event = { step: numbers.get(node)!, text: node.text, place: node.place }
      evaluation.explain?.({ ...event, isMade: false, reasons: ["a step before it runs"] })
      return { ...state, isUnknown: true }
    }
    if (node._tag === "Copy") {
      const [state, ...sources] = yield* Effect.all(
        [
          evaluate(evaluation, node.parent),
          ...node.parts.map(({ from }) =>
            isBuild(from) ? evaluateFor(evaluation, node, from) : Effect.succeed(undefined)
          )
        ],
        { concurrency: "unbounded" }
      )
      if (state!.isUnknown || sources.some((source) => source?.isUnknown === true)) return unknown(state!)
      const images = sources.map((source) => source?.image)
      return yield* failing(
        state!.image,
        Effect.scoped(
          Effect.flatMap(copying.copy(evaluation, node, state!.image, images), (made) =>
            layered(evaluation, node, state!, made)
          )
        )
      )
    }
    const shown = node._tag === "Run" ? shownBy(node) : []
    const [state, ...states] = yield* Effect.all(
      [evaluate(evaluation, node.parent), ...shown.map((from) => evaluateFor(evaluation, node, from))],
      { concurrency: "unbounded" }
    )
    const { config } = state.image
    switch (node._tag) {
      case "Configure": {
        const image = withConfig(state.image, node.change(config))
        return {
          ...state,
          image,
          raw: { ...state.raw, ...node.raw },
          author: node.author ?? state.author,
          steps: [...state.steps, { history: { created_by: node.text, empty_layer: true }, layer: undefined }]
        }
      }
      case "Workdir": {
        const workingDirectory = posix.resolve("/", config.workingDirectory, node.path)
        const made = copying.folder(evaluation, node, state.image, workingDirectory)
        const next = state.isUnknown
          ? unknown(state)
          : yield* failing(state.image, layered(evaluation, node, state, made))
        return { ...next, image: withConfig(next.image, { workingDirectory }) }
      }
      case "Run": {
        if (state.isUnknown || states.some(({ isUnknown }) => isUnknown)) return unknown(state)
        const seen: Seen = new Map(shown.map((from, k) => [from, states[k]!]))
        return yield* failing(
          state.image,
          layered(evaluation, node, state, running.run(evaluation, node, state.image, seen)),
          seen
        )
      }
    }
  })

/** The state that a step takes files of. */
const evaluateFor = (evaluation: Evaluation, step: Step, from: Node) =>
  from._tag === "From"
    ? Effect.mapError(evaluate(evaluation, from), inPlace(step))
    : evaluate(evaluation, from)

/** The state after a step, which is evaluated once. */
export const evaluate = (evaluation: Evaluation, node: Node): Effect.Effect<State, BerthError, Berth> =>
  Effect.suspend(() => {
    const { known } = evaluation
    const found = known.get(node)
    if (found !== undefined) return found
    return Effect.flatMap(Effect.cached(after(evaluation, node)), (effect) => {
      // A branch that was evaluated meanwhile has it already.
      const first = known.get(node) ?? effect
      known.set(node, first)
      return first
    })
  })
