/** An authority and what it signs, made by openssl(1). */
import * as fs from "node:fs"
import { makeTemporaryFolder, remove, sh } from "./images.ts"

export interface Certified {
  readonly certificate: string
  readonly key: string
}

export interface Authority extends Certified {
  /** A certificate for a server on this machine or with this name, or for a client. */
  readonly issue: (name: string) => Certified
}

/** Elliptic keys, since they are made at once. */
const request = (folder: string, name: string): ReadonlyArray<string> => [
  ...["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", `/CN=${name}`],
  ...["-keyout", `${folder}/key`]
]

export const makeAuthority = (): Authority => {
  const folder = makeTemporaryFolder()
  try {
    const read = (name: string) => fs.readFileSync(`${folder}/${name}`, "utf8")
    sh("openssl", ...request(folder, "test authority"), "-x509", "-days", "2", "-out", `${folder}/ca`)
    const [certificate, key] = [read("ca"), read("key")]
    return { certificate, key, issue: (name) => issue(certificate, key, name) }
  } finally {
    remove(folder)
  }
}

const issue = (certificate: string, key: string, name: string): Certified => {
  const folder = makeTemporaryFolder()
  try {
    fs.writeFileSync(`${folder}/ca`, certificate)
    fs.writeFileSync(`${folder}/ca-key`, key)
    fs.writeFileSync(
      `${folder}/extensions`,
      `basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,DNS:${name},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n`
    )
    sh("openssl", ...request(folder, name), "-out", `${folder}/request`)
    const signing = ["-CA", `${folder}/ca`, "-CAkey", `${folder}/ca-key`, "-set_serial", String(Date.now())]
    const extensions = ["-extfile", `${folder}/extensions`, "-out", `${folder}/certificate`]
    sh("openssl", "x509", "-req", "-in", `${folder}/request`, "-days", "2", ...signing, ...extensions)
    return {
      certificate: fs.readFileSync(`${folder}/certificate`, "utf8"),
      key: fs.readFileSync(`${folder}/key`, "utf8")
    }
  } finally {
    remove(folder)
  }
}
