/** Credentials for a registry, as stored by docker and podman: in files, and in credential helpers. */
import { execFile } from "node:child_process"
import * as os from "node:os"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { RegistryError } from "../../BerthError.ts"
import { readBounded } from "../disk/files.ts"

/** The stored credentials for a registry. */
export type Identity =
  | { readonly _tag: "Anonymous" }
  | { readonly _tag: "Basic"; readonly username: string; readonly password: Redacted.Redacted<string> }
  | { readonly _tag: "IdentityToken"; readonly token: Redacted.Redacted<string> }

export const anonymous: Identity = { _tag: "Anonymous" }

const AuthFile = Schema.parseJson(
  Schema.Struct({
    auths: Schema.optionalWith(
      Schema.Record({
        key: Schema.String,
        value: Schema.Struct({
          auth: Schema.optional(Schema.String),
          username: Schema.optional(Schema.String),
          password: Schema.optional(Schema.String),
          identitytoken: Schema.optional(Schema.String)
        })
      }),
      { nullable: true, default: () => ({}) }
    ),
    credHelpers: Schema.optionalWith(Schema.Record({ key: Schema.String, value: Schema.String }), {
      nullable: true,
      default: () => ({})
    }),
    credsStore: Schema.optionalWith(Schema.String, { nullable: true })
  })
)

type AuthFile = typeof AuthFile.Type

const AUTH_FILE_BYTES_MAX = 1024 * 1024

/** As in containers-auth.json(5): the first file that knows the registry is used. */
const authFiles = (): ReadonlyArray<string> => {
  const { DOCKER_CONFIG, REGISTRY_AUTH_FILE, XDG_CONFIG_HOME, XDG_RUNTIME_DIR } = process.env
  if (REGISTRY_AUTH_FILE) return [REGISTRY_AUTH_FILE] // podman and skopeo, too, only read this file
  const runtime = XDG_RUNTIME_DIR ? `${XDG_RUNTIME_DIR}/containers` : `/run/containers/${process.getuid!()}`
  return [
    `${runtime}/auth.json`,
    `${XDG_CONFIG_HOME || `${os.homedir()}/.config`}/containers/auth.json`,
    `${DOCKER_CONFIG || `${os.homedir()}/.docker`}/config.json`
  ]
}

/** An unreadable file causes a warning, and the next file is read. */
const readAuthFile = (berth: Berth, path: string): Effect.Effect<Option.Option<AuthFile>> =>
  Effect.gen(function* () {
    const bytes = yield* readBounded(berth.fileSystem, path, path, AUTH_FILE_BYTES_MAX)
    if (Option.isNone(bytes)) return Option.none()
    const file = yield* Schema.decodeUnknown(AuthFile)(new TextDecoder().decode(bytes.value)).pipe(
      // The parse error would print the contents of the file.
      Effect.mapError(() => ({
        message: `${path} is not a file of credentials as docker and podman write it`
      }))
    )
    return Option.some(file)
  }).pipe(
    Effect.catchAll((error) =>
      Effect.zipRight(
        Effect.logWarning(`berth: a file of credentials was ignored: ${error.message}`),
        Effect.succeedNone
      )
    )
  )

const hubServer = "https://index.docker.io/v1/"

/** `https://index.docker.io/v1/` is a key, too; `registry.example.com/team` is only for that path. */
const hostOfKey = (key: string): string => {
  const stripped = key.replace(/^https?:\/\//, "")
  const host = stripped === key ? key : stripped.split("/")[0]!
  return /^(index\.docker\.io|registry-1\.docker\.io)$/.test(host) ? "docker.io" : host
}

/** `quay.io/ns/repo`, `quay.io/ns`, `quay.io`. */
const keysOf = (host: string, repository: string): ReadonlyArray<string> => {
  const parts = repository === "" ? [host] : [host, ...repository.split("/")]
  return parts.map((_, i) => parts.slice(0, parts.length - i).join("/"))
}

type Entry = AuthFile["auths"][string]

const toIdentity = (entry: Entry): Identity => {
  if (entry.identitytoken) return { _tag: "IdentityToken", token: Redacted.make(entry.identitytoken) }
  const decoded = entry.auth ? Buffer.from(entry.auth, "base64").toString("utf8").replace(/\0+$/, "") : ""
  const colon = decoded.indexOf(":")
  const username = colon === -1 ? entry.username : decoded.slice(0, colon)
  const password = colon === -1 ? entry.password : decoded.slice(colon + 1)
  return username && password !== undefined
    ? { _tag: "Basic", username, password: Redacted.make(password) }
    : anonymous
}

const fromAuths = (auths: AuthFile["auths"], host: string, repository: string): Identity => {
  const exact = keysOf(host, repository).flatMap((key) => (Object.hasOwn(auths, key) ? [auths[key]!] : []))
  const others = Object.entries(auths).flatMap(([key, entry]) => (hostOfKey(key) === host ? [entry] : []))
  // If a helper has the password, docker leaves an empty entry.
  return [...exact, ...others].map(toIdentity).find(({ _tag }) => _tag !== "Anonymous") ?? anonymous
}

const HelperAnswer = Schema.parseJson(Schema.Struct({ Username: Schema.String, Secret: Schema.String }))

const HELPER_ANSWER_BYTES_MAX = 256 * 1024
const helperTimeout = Duration.seconds(30)

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs `docker-credential-NAME get` with the server as its input. Fails with a description of the problem. */
export const runHelper = (
  program: string,
  server: string,
  timeout: Duration.Duration = helperTimeout
): Effect.Effect<Ended, string> =>
  Effect.async<Ended, string>((resume) => {
    const options = { maxBuffer: HELPER_ANSWER_BYTES_MAX, killSignal: "SIGKILL" } as const
    const child = execFile(program, ["get"], options, (error, stdout, stderr) => {
      const code = error === null ? 0 : (error.code ?? null)
      if (typeof code !== "string") return resume(Effect.succeed({ code, stdout, stderr }))
      const why =
        code === "ENOENT"
          ? "is not in PATH"
          : code === "ERR_CHILD_PROCESS_STDIO_MAXBUFFER"
            ? `writes more than ${HELPER_ANSWER_BYTES_MAX} bytes`
            : `cannot be started: ${error!.message}`
      resume(Effect.fail(why))
    })
    child.stdin?.on("error", () => {}) // it may end without reading
    child.stdin?.end(server)
    return Effect.sync(() => {
      child.kill("SIGKILL")
      // Its child processes may hold the other ends.
      child.stdout?.destroy()
      child.stderr?.destroy()
    })
  }).pipe(
    Effect.timeoutFail({
      duration: timeout,
      onTimeout: () => `gives no answer within ${Duration.format(timeout)}`
    })
  )

const askHelper = (name: string, server: string): Effect.Effect<Identity, string> =>
  Effect.gen(function* () {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/.test(name))
      return yield* Effect.fail("is not the name of a credential helper")
    const { code, stderr, stdout } = yield* runHelper(`docker-credential-${name}`, server)
    if (code !== 0) {
      // Helpers write their errors to stdout.
      const said = `${stdout} ${stderr}`
        .replaceAll(/[^\x20-\x7e]+/g, " ")
        .trim()
        .slice(0, 300)
      return /credentials not found/i.test(said)
        ? anonymous
        : yield* Effect.fail(`fails${code === null ? "" : ` with exit code ${code}`}: ${said}`)
    }
    const { Secret, Username } = yield* Schema.decodeUnknown(HelperAnswer)(stdout).pipe(
      // The parse error would print the secret.
      Effect.mapError(() => "answers without a Username and a Secret in JSON")
    )
    return Secret === ""
      ? anonymous
      : Username === "<token>"
        ? ({ _tag: "IdentityToken", token: Redacted.make(Secret) } as const)
        : ({ _tag: "Basic", username: Username, password: Redacted.make(Secret) } as const)
  })

/**
 * The stored credentials for this repository, the most specific first. Within a file, the helper for the registry comes
 * before the helper for all registries, and that before the file's own entries. Fails with the problem of a helper.
 */
export const lookup = (
  berth: Berth,
  host: string,
  repository: string,
  error: { readonly registry: string; readonly subject: string }
): Effect.Effect<Identity, RegistryError> =>
  Effect.gen(function* () {
    for (const path of authFiles()) {
      const file = yield* readAuthFile(berth, path)
      if (Option.isNone(file)) continue
      const { auths, credHelpers, credsStore } = file.value
      const own = Object.entries(credHelpers).find(([key]) => hostOfKey(key) === host)
      const [server, helper] = own ?? [host === "docker.io" ? hubServer : host, credsStore]
      const kept = helper
        ? yield* Effect.mapError(
            askHelper(helper, server),
            (why) =>
              new RegistryError({
                ...error,
                reason: "Unauthorized",
                status: 0,
                detail: `the credential helper ${JSON.stringify(`docker-credential-${helper.slice(0, 100)}`)}, which ${path} names, ${why}`
              })
          )
        : anonymous
      const identity = kept._tag === "Anonymous" ? fromAuths(auths, host, repository) : kept
      if (identity._tag !== "Anonymous") return identity
    }
    return anonymous
  })
