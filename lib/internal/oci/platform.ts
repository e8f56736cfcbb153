/** The platform of this machine, as images name it. */
import type * as Oci from "./documents.ts"

const architectures: Readonly<Record<string, string>> = {
  x64: "amd64",
  ia32: "386",
  arm64: "arm64",
  arm: "arm",
  ppc64: "ppc64le",
  s390x: "s390x",
  riscv64: "riscv64",
  loong64: "loong64",
  mipsel: "mipsle"
}

/** The platform of containers on this machine, without the variant of its processor. */
export const hostPlatform = (): Oci.Platform => ({
  os: "linux",
  architecture: architectures[process.arch] ?? process.arch,
  ...(process.arch === "arm" ? { variant: "v7" } : {})
})
