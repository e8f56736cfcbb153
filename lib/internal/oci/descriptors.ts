/** Descriptors of the documents that Berth writes. */
import type { Digest } from "../../Reference.ts"
import type { Compression } from "../store/tarIndex.ts"
import * as digests from "../util/digest.ts"
import * as Oci from "./documents.ts"
import type { Resolved } from "./layout.ts"

export const of = (mediaType: string, bytes: Uint8Array): Oci.Descriptor & { readonly digest: Digest } => ({
  mediaType,
  digest: digests.ofBytes(bytes),
  size: bytes.length
})

const layerMediaType = "application/vnd.oci.image.layer.v1.tar"

export const ofLayer = (compression: Compression, digest: Digest, size: number): Oci.Descriptor => ({
  mediaType: compression === "none" ? layerMediaType : `${layerMediaType}+${compression}`,
  digest,
  size
})

/** A manifest as an entry of a layout: of one platform, with all its blobs in the layout. */
export const ofResolved = ({ config, descriptor }: Resolved): Oci.Descriptor => {
  const { architecture, os, variant } = config
  const { digest, mediaType, size } = descriptor
  const platform = { architecture, os, ...(variant === undefined ? {} : { variant }) }
  return { mediaType, digest, size, platform }
}

export const manifestOf = (
  config: Oci.Descriptor,
  layers: ReadonlyArray<Oci.Descriptor>,
  annotations?: Readonly<Record<string, string>>
): Uint8Array =>
  new TextEncoder().encode(
    JSON.stringify({ schemaVersion: 2, mediaType: Oci.mediaTypes.manifest, config, layers, annotations })
  )
