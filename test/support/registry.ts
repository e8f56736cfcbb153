/** Starts a real docker-registry on a loopback port that the kernel chooses. */
import { type ChildProcess, spawn } from "node:child_process"
import { createSign } from "node:crypto"
import * as fs from "node:fs"
import * as http from "node:http"
import * as https from "node:https"
import type { AddressInfo } from "node:net"
import { after, before } from "node:test"
import { makeTemporaryFolder, remove, sh, whyNoImages } from "./images.ts"

const program = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"].find((file) =>
  fs.existsSync(file)
)

/** Why no registry can be started here, or false. */
export const whyNoServer: string | false =
  program === undefined ? "no docker-registry on this machine" : false

/** The same, with images that tools have made for it. */
export const whyNoRegistry: string | false = whyNoImages || whyNoServer

/** Hides the credentials of the user who runs the tests from the tests of one `describe`. */
export const withoutDockerConfig = (): void => {
  const earlier = process.env.DOCKER_CONFIG
  let folder = ""
  before(() => {
    folder = makeTemporaryFolder()
    process.env.DOCKER_CONFIG = folder
  })
  after(() => {
    if (earlier === undefined) delete process.env.DOCKER_CONFIG
    else process.env.DOCKER_CONFIG = earlier
    remove(folder)
  })
}

/** `jane:secret`, bcrypt. */
export const htpasswd = "jane:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"

export interface RunningRegistry {
  /** `127.0.0.1:40123` */
  readonly host: string
  /** The folder with the pushed images. */
  readonly data: string
  /** Its answers so far, one line for each request. */
  readonly log: () => string
  readonly stop: () => Promise<void>
}

export interface RegistryOptions {
  /** Whether manifests can be deleted. Default: `true`. */
  readonly deletes?: boolean
  /** The lines of an htpasswd file with bcrypt; with them, every request needs a user. */
  readonly htpasswd?: string
  /** The `auth.token` section: the server of tokens, and the certificate that signs them. */
  readonly token?: {
    readonly realm: string
    readonly service: string
    readonly issuer: string
    readonly certificate: string
  }
  /** The `http.tls` section: its certificate, and the authority of its clients' certificates. */
  readonly tls?: { readonly certificate: string; readonly key: string; readonly clientCa?: string }
  /** The `proxy` section: the registry that it caches. */
  readonly proxyOf?: string
}

const tlsSection = (folder: string, { certificate, clientCa, key }: NonNullable<RegistryOptions["tls"]>) => {
  fs.writeFileSync(`${folder}/tls.crt`, certificate)
  fs.writeFileSync(`${folder}/tls.key`, key)
  fs.writeFileSync(`${folder}/clients.crt`, clientCa ?? "")
  const clients = clientCa === undefined ? "" : `, clientcas: ['${folder}/clients.crt']`
  return `, tls: { certificate: '${folder}/tls.crt', key: '${folder}/tls.key'${clients} }`
}

export const startRegistry = async (options: RegistryOptions = {}): Promise<RunningRegistry> => {
  const folder = makeTemporaryFolder()
  const data = `${folder}/data`
  const lines = [
    "version: 0.1",
    "log: { level: info, formatter: text }",
    `storage: { filesystem: { rootdirectory: ${data} }, delete: { enabled: ${options.deletes ?? true} } }`,
    `http: { addr: '127.0.0.1:0'${options.tls === undefined ? "" : tlsSection(folder, options.tls)} }`
  ]
  if (options.proxyOf !== undefined) {
    lines.push(`proxy: { remoteurl: '${options.proxyOf}' }`)
  }
  if (options.htpasswd !== undefined) {
    fs.writeFileSync(`${folder}/htpasswd`, options.htpasswd)
    lines.push(`auth: { htpasswd: { realm: test, path: ${folder}/htpasswd } }`)
  }
  if (options.token !== undefined) {
    const { certificate, issuer, realm, service } = options.token
    fs.writeFileSync(`${folder}/token.pem`, certificate)
    const fields = `realm: '${realm}', service: '${service}', issuer: '${issuer}'`
    lines.push(`auth: { token: { ${fields}, rootcertbundle: ${folder}/token.pem } }`)
  }
  fs.writeFileSync(`${folder}/config.yml`, `${lines.join("\n")}\n`)
  const child = spawn(program!, ["serve", `${folder}/config.yml`], { stdio: ["ignore", "pipe", "pipe"] })
  let text = ""
  const port = await new Promise<string>((resolve, reject) => {
    const onData = (chunk: unknown) => {
      text += String(chunk)
      const match = /listening on 127\.0\.0\.1:(\d+)/.exec(text)
      if (match !== null) {
        resolve(match[1]!)
      }
    }
    child.stdout!.on("data", onData)
    child.stderr!.on("data", onData)
    child.on("exit", () => reject(new Error(`docker-registry has ended: ${text}`)))
  })
  return {
    host: `127.0.0.1:${port}`,
    data,
    log: () => text,
    stop: async () => {
      await end(child)
      remove(folder)
    }
  }
}

const end = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    if (child.exitCode !== null) {
      resolve()
      return
    }
    child.on("exit", () => resolve())
    child.kill("SIGKILL")
  })

export interface Front {
  readonly host: string
  /** `GET /v2/...`, in the order in which they came. */
  readonly requests: ReadonlyArray<string>
  /** The Authorization headers, likewise; empty where there was none. */
  readonly authorizations: ReadonlyArray<string>
  readonly stop: () => Promise<void>
}

/** A server in front of a registry, as a proxy or a bad network is: it answers a request itself or passes it on. */
export const startFront = async (
  target: string | undefined,
  handle: (
    request: http.IncomingMessage,
    response: http.ServerResponse,
    /** Passes the request on, and breaks the connection after so many bytes of the body. */
    pass: (limit?: number) => void
  ) => void,
  address = "127.0.0.1",
  tls?: https.ServerOptions
): Promise<Front> => {
  const requests: Array<string> = []
  const authorizations: Array<string> = []
  const onRequest = (request: http.IncomingMessage, response: http.ServerResponse) => {
    requests.push(`${request.method} ${request.url}`)
    authorizations.push(request.headers.authorization ?? "")
    handle(request, response, (limit = Number.POSITIVE_INFINITY) => {
      const [hostname, port] = target!.split(":")
      const { headers, method, url } = request
      const onward = http.request({ hostname, port, method, path: url, headers, agent: false }, (answer) => {
        response.writeHead(answer.statusCode!, answer.headers)
        let left = limit
        answer.on("data", (chunk: Uint8Array) => {
          if (left <= 0) return
          response.write(chunk.subarray(0, Math.min(left, chunk.length)))
          left -= chunk.length
          if (left <= 0) {
            // The bytes that were written have to leave first.
            setTimeout(() => response.socket?.destroy(), 50)
          }
        })
        answer.on("end", () => left > 0 && response.end())
      })
      onward.on("error", () => response.socket?.destroy())
      request.pipe(onward)
    })
  }
  const server = tls === undefined ? http.createServer(onRequest) : https.createServer(tls, onRequest)
  await new Promise<void>((resolve) => server.listen(0, address, resolve))
  return {
    host: `${address}:${(server.address() as AddressInfo).port}`,
    requests,
    authorizations,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      })
  }
}

/** A key and a certificate for it, by openssl(1). */
export const makeCertificate = (): { readonly key: string; readonly certificate: string } => {
  const folder = makeTemporaryFolder()
  try {
    const [key, certificate] = [`${folder}/key.pem`, `${folder}/cert.pem`]
    const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    sh(
      "openssl",
      "req",
      "-x509",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-days",
      "2",
      ...subject,
      "-keyout",
      key,
      "-out",
      certificate
    )
    return { key: fs.readFileSync(key, "utf8"), certificate: fs.readFileSync(certificate, "utf8") }
  } finally {
    remove(folder)
  }
}

/** A token as docker-registry takes it. */
export const signToken = (
  key: string,
  certificate: string,
  claims: {
    readonly issuer: string
    readonly service: string
    readonly repository: string
    /** `repository:team/app:pull,push`, in place of pulling from `repository`. */
    readonly scopes?: ReadonlyArray<string>
  }
): string => {
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url")
  const der = certificate.replaceAll(/-----[^-]+-----|\s/g, "")
  const now = Math.floor(Date.now() / 1000)
  const access = (claims.scopes ?? [`repository:${claims.repository}:pull`]).map((scope) => {
    const [type, name, actions] = scope.split(":")
    return { type, name, actions: actions!.split(",") }
  })
  const header = { typ: "JWT", alg: "RS256", x5c: [der] }
  const payload = {
    iss: claims.issuer,
    aud: claims.service,
    sub: "somebody",
    exp: now + 300,
    nbf: now - 10,
    iat: now,
    jti: String(now),
    access
  }
  const signed = `${encode(header)}.${encode(payload)}`
  return `${signed}.${createSign("RSA-SHA256").update(signed).sign(key, "base64url")}`
}
