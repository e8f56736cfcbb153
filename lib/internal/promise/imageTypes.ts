/** The functions of images in `berth/promise`, as types. */
import type * as Build from "../../Build.ts"
import type * as Image from "../../Image.ts"
import type { Limits } from "../../ImageLayer.ts"
import type { Progress } from "../../Progress.ts"
import type { CallOptions } from "../../promise.ts"
import type * as Store from "../../Store.ts"

/**
 * A pull or a push that runs. Awaited, it gives its result; iterated, it gives the steps of each layer, and leaving the loop
 * early stops it. On a terminal it draws bars, unless it is iterated or the option `progress` says otherwise.
 *
 * @since 0.1.0
 * @category models
 * @example
 * const pulling = images.pull("alpine:3")
 * for await (const { digest, phase } of pulling) console.log(digest, phase)
 * const image = await pulling
 */
export interface Transfer<A> extends Promise<A>, AsyncIterable<Progress> {}

/**
 * Images in the store, in registries and in files. The functions are those of the same names in `Image` and `Store`, and take a
 * signal. `get` pulls an image that the store lacks, `pull` always asks the registry, `fromStore` never does.
 *
 * @since 0.1.0
 * @category models
 */
export interface Images {
  readonly get: (name: string, options?: Image.GetOptions & CallOptions) => Transfer<Image.Image>
  readonly pull: (reference: string, options?: Image.PullOptions & CallOptions) => Transfer<Image.Image>
  readonly fromStore: (
    name: string,
    options?: Image.NamedOptions & Limits & CallOptions
  ) => Promise<Image.Image>
  /** Gives the descriptor of the manifest. */
  readonly push: (
    image: Image.Image | string,
    reference: string,
    options?: Image.PushOptions & CallOptions
  ) => Transfer<Store.Descriptor>
  /** Loads an archive from its path, or from its bytes. */
  readonly load: (
    archive: string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
    options?: Image.LoadOptions & CallOptions
  ) => Promise<readonly [Image.Image, ...Array<Image.Image>]>
  readonly save: (
    image: Image.Image | string,
    path: string,
    options: Image.SaveOptions & CallOptions
  ) => Promise<void>
  /** Builds the image of a Dockerfile: see `Build.dockerfile`. */
  readonly build: (options: Build.DockerfileOptions & CallOptions) => Promise<Image.Image>
  /** Builds a Dockerfile, and writes the result to the host: see `Build.export`. */
  readonly export: (options: Build.DockerfileOptions & Build.ExportOptions & CallOptions) => Promise<void>
  /** Tells which steps of a Dockerfile would run, and why: see `Build.explain`. */
  readonly explain: (
    options: Build.DockerfileOptions & CallOptions
  ) => Promise<ReadonlyArray<Build.Explanation>>
  readonly import: (path: string, options?: Image.ImportOptions & CallOptions) => Promise<Image.Image>
  readonly list: (options?: CallOptions) => Promise<ReadonlyArray<Image.NamedImage>>
  readonly inspect: (name: string, options?: Image.NamedOptions & CallOptions) => Promise<Image.Inspected>
  readonly history: (
    name: string,
    options?: Image.NamedOptions & CallOptions
  ) => Promise<ReadonlyArray<Image.HistoryEntry>>
  readonly tag: (name: string, newName: string, options?: CallOptions) => Promise<void>
  readonly remove: (name: string, options?: CallOptions) => Promise<void>
  readonly gc: (
    options?: {
      readonly dryRun?: boolean | undefined
      readonly keep?: number | string | undefined
    } & CallOptions
  ) => Promise<Store.Collected>
}
