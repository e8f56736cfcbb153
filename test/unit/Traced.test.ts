import assert from "node:assert/strict"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import {
  type Berth,
  Cgroup,
  Container,
  Image,
  ImageLayer,
  Namespace,
  type Reference,
  Registry,
  RootFs,
  Security,
  Store
} from "../../lib/index.ts"
import { suite } from "../support/effect.ts"

interface Told {
  readonly name: string
  readonly parent: string | undefined
  readonly attributes: Map<string, unknown>
  exit: Exit.Exit<unknown, unknown> | undefined
}

/** A tracer that keeps each span with its end. */
const recorder = (): { readonly spans: ReadonlyArray<Told>; readonly tracer: Tracer.Tracer } => {
  const spans: Array<Told> = []
  const tracer = Tracer.make({
    span: (name, parent, context, links, startTime, kind) => {
      const attributes = new Map<string, unknown>()
      const above = Option.getOrUndefined(parent)
      const told: Told = {
        name,
        parent: above?._tag === "Span" ? above.name : undefined,
        attributes,
        exit: undefined
      }
      spans.push(told)
      return {
        _tag: "Span",
        name,
        spanId: String(spans.length),
        traceId: "trace",
        parent,
        context,
        status: { _tag: "Started", startTime },
        attributes,
        links,
        sampled: true,
        kind,
        end: (_time, exit) => {
          told.exit = exit
        },
        attribute: (key, value) => attributes.set(key, value),
        event: () => {},
        addLinks: () => {}
      }
    },
    context: (f) => f()
  })
  return { spans, tracer }
}

suite("tracing", (effect) => {
  effect(
    "a tracer gets a span of a start, with container and image, and one of an exec below the caller's span",
    function* () {
      const { spans, tracer } = recorder()
      const id = yield* Effect.gen(function* () {
        const box = yield* Container.start(yield* Image.host, { command: ["sleep", "infinity"] })
        yield* Container.exec(box, ["true"])
        return box.id
      }).pipe(Effect.withSpan("caller"), Effect.withTracer(tracer))
      const told = (name: string) => spans.find((span) => span.name === name)
      for (const name of ["berth.Container.start", "berth.Container.exec"]) {
        assert.equal(told(name)?.parent, "caller")
        assert.equal(told(name)?.attributes.get("container.id"), id)
      }
      assert.equal(told("berth.Container.start")?.attributes.get("container.image.name"), "host")
    }
  )

  effect("a failed call ends the span of its public function with the failure", function* () {
    const host = yield* Image.host
    const box = yield* Container.start(host, { command: ["sleep", "infinity"] })
    const ended = yield* Container.start(host, { command: ["true"] })
    yield* ended.exit
    const gone = yield* Effect.scoped(Cgroup.make({}))
    const registry = yield* Registry.connect("127.0.0.1:1")
    const absent = `sha256:${"0".repeat(64)}` as Reference.Digest
    const broken = { mediaType: "text/plain", digest: "none", size: 1 }
    const bytes = new TextEncoder().encode("no archive ".repeat(100))
    const command = ["/absent"]
    const calls: Readonly<Record<string, Effect.Effect<unknown, unknown, Berth.Berth>>> = {
      "Container.start": Effect.scoped(Container.start(host, { command })),
      "Container.run": Container.run(host, { command }),
      "Container.exec": Container.exec(box, command),
      "Container.execStream": Effect.scoped(Container.execStream(box, command)),
      "Container.signal": Container.signal(box, "SIGNONE"),
      "Container.stats": Container.stats(box),
      "Container.top": Container.top(ended),
      "Container.pause": Container.pause(ended),
      "Container.cgroup": Container.cgroup(ended),
      "Container.commit": Container.commit(box),
      "Container.copyIn": Container.copyIn(box, "/absent", "/"),
      "Container.copyOut": Container.copyOut(box, "/absent", "/tmp/absent/absent"),
      "Container.tarOut": Stream.runDrain(Container.tarOut(box, "/absent")),
      "Container.tarIn": Stream.run(Stream.make(bytes), Container.tarIn(box, "/tmp")),
      "Cgroup.make": Effect.scoped(Cgroup.make({ memory: "12 parsecs" })),
      "Cgroup.update": Cgroup.update(gone, {}),
      "Cgroup.stats": Cgroup.stats(gone),
      "Cgroup.processes": Cgroup.processes(gone),
      "Cgroup.memoryEvents": Stream.runDrain(Cgroup.memoryEvents(gone)),
      "Image.fromRootfs": Image.fromRootfs("/absent"),
      "Image.fromLayout": Image.fromLayout("/absent"),
      "Image.fromStore": Image.fromStore("absent"),
      "Image.inspect": Image.inspect("absent"),
      "Image.history": Image.history("absent"),
      "Image.tag": Image.tag("absent", "a"),
      "Image.remove": Image.remove("absent"),
      "Image.load": Image.load("/absent"),
      "Image.import": Image.import("/absent"),
      "Image.save": Image.save("absent", "/tmp/absent", { format: "oci-archive" }),
      "Image.get": Image.get("absent", { pull: "never" }),
      "Image.pull": Image.pull("UPPER/case"),
      "Image.push": Image.push("absent", "127.0.0.1:1/a"),
      "ImageLayer.diff": Stream.runDrain(ImageLayer.diff({ upper: "/absent" })),
      "Namespace.make": Effect.scoped(Namespace.make(["planet" as never])),
      "Registry.connect": Registry.connect("a/b"),
      "Registry.fromRegistriesConf": Registry.fromRegistriesConf("a", "/absent"),
      "Registry.resolve": Registry.resolve(registry, "../a", "1"),
      "Registry.manifest": Registry.manifest(registry, "a", broken),
      "Registry.blob": Stream.runDrain(Registry.blob(registry, "a", broken)),
      "Registry.referrers": Registry.referrers(registry, "a", "none"),
      "Registry.putManifest": Registry.putManifest(registry, "../a", "1", bytes),
      "Registry.deleteManifest": Registry.deleteManifest(registry, "../a", "1"),
      "RootFs.overlay": Effect.scoped(RootFs.overlay(host, { upper: "disk" })),
      "Security.appArmor": Effect.scoped(Security.appArmor("profile x { nonsense }")),
      "Store.read": Store.read(absent),
      "Store.resolve": Store.resolve("absent")
    }
    for (const [name, call] of Object.entries(calls)) {
      const { spans, tracer } = recorder()
      const exit = yield* Effect.exit(Effect.withTracer(call, tracer))
      assert.ok(Exit.isFailure(exit) && Cause.isFailType(exit.cause), name)
      const outermost = spans.filter(({ parent }) => parent === undefined)
      assert.deepEqual(
        outermost.map((span) => span.name),
        [`berth.${name}`]
      )
      assert.ok(outermost[0]?.exit !== undefined && Exit.isFailure(outermost[0].exit), name)
      const [printed] = Cause.prettyErrors(exit.cause)
      const above = (span: Tracer.AnySpan | undefined): ReadonlyArray<string> =>
        span?._tag === "Span" ? [span.name, ...above(Option.getOrUndefined(span.parent))] : []
      assert.ok(above(printed?.span).includes(`berth.${name}`), `${name}: ${above(printed?.span)}`)
    }
  })
})
