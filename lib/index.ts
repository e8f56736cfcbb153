/**
 * @since 0.1.0
 */
export * as Berth from "./Berth.ts"
export * as BerthError from "./BerthError.ts"
export * as Cgroup from "./Cgroup.ts"
export * as Container from "./Container.ts"
export * as Image from "./Image.ts"
export * as ImageLayer from "./ImageLayer.ts"
export * as Mount from "./Mount.ts"
export * as Namespace from "./Namespace.ts"
export * as Plan from "./Plan.ts"
export * as Progress from "./Progress.ts"
export * as Reference from "./Reference.ts"
export * as Registry from "./Registry.ts"
export * as RootFs from "./RootFs.ts"
export * as Security from "./Security.ts"
export * as Store from "./Store.ts"
export * as WaitFor from "./WaitFor.ts"
