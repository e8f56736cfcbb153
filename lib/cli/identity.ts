/** Who a runner or a client of a fleet is, by files. */
import * as fs from "node:fs"
import * as Redacted from "effect/Redacted"
import type * as Fleet from "../fleet.ts"
import { invalid } from "./given.ts"

export interface IdentityOptions {
  readonly tokenFile: string | undefined
  readonly tlsCertificate: string | undefined
  readonly tlsKey: string | undefined
  readonly tlsAuthority: string | undefined
}

const read = (option: string, path: string): string => {
  try {
    return fs.readFileSync(path, "utf8")
  } catch (error) {
    return invalid(option, path, `a file that can be read: ${error instanceof Error ? error.message : error}`)
  }
}

/** Editors and echo(1) end a file with a line break, which is no part of the secret. */
export const secretIn = (option: string, path: string): Redacted.Redacted<string> => {
  const secret = read(option, path).trim()
  return Redacted.make(secret === "" ? invalid(option, path, "a file that is not empty") : secret)
}

export const identityOf = ({
  tlsAuthority,
  tlsCertificate,
  tlsKey,
  tokenFile
}: IdentityOptions): Fleet.Identity => {
  if ((tlsCertificate === undefined) !== (tlsKey === undefined))
    invalid("--tls-certificate", tlsCertificate ?? "", "--tls-certificate and --tls-key together")
  const hasTls = tlsCertificate !== undefined || tlsAuthority !== undefined
  return {
    token: tokenFile === undefined ? undefined : secretIn("--token-file", tokenFile),
    tls: hasTls
      ? {
          certificate: tlsCertificate === undefined ? undefined : read("--tls-certificate", tlsCertificate),
          key: tlsKey === undefined ? undefined : Redacted.make(read("--tls-key", tlsKey)),
          authority: tlsAuthority === undefined ? undefined : read("--tls-authority", tlsAuthority)
        }
      : undefined
  }
}
