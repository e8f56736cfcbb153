/** Authentication at a registry: anonymous, basic, or by a token of a token service. */
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type { HttpClientResponse } from "@effect/platform/HttpClientResponse"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { Berth } from "../../Berth.ts"
import { RegistryError } from "../../BerthError.ts"
import type { Credentials } from "../../Registry.ts"
import { type Client, execute, Failure, readBody } from "./client.ts"
import { type Identity, lookup } from "./credentials.ts"
import { isLoopback } from "./proxy.ts"

/** The state of authentication at one registry. */
export interface Auth {
  /** The identity, for errors: `nobody in particular`, `the user jane`. */
  readonly description: string
  /** The Authorization header to send at once, if a challenge for this scope has been answered before. */
  readonly current: (scope: string) => string | undefined
  /** The Authorization header that answers a 401. Fails if there is no better one than the refused one. */
  readonly answer: (refusal: {
    readonly challenge: string | undefined
    readonly scope: string
    readonly subject: string
    readonly refused: string | undefined
  }) => Effect.Effect<string, Failure>
}

export interface Challenge {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

const CHALLENGE_CHARACTERS_MAX = 8192

/** Parses WWW-Authenticate: `Bearer realm="https://auth.docker.io/token",service="registry.docker.io", Basic ...`. */
export const parseChallenges = (header: string): ReadonlyArray<Challenge> => {
  const challenges: Array<{ scheme: string; parameters: Map<string, string> }> = []
  const item =
    /[\s,]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:[ \t]*=[ \t]*(?:"((?:[^"\\]|\\[\s\S])*)"|([^\s,"]*)))?(?=[\s,]|$)/y
  // A longer header is not parsed: its beginning could end in the middle of a value.
  const text = header.length > CHALLENGE_CHARACTERS_MAX ? "" : header
  for (let match = item.exec(text); match !== null; match = item.exec(text)) {
    const [, name, quoted, plain] = match
    if (quoted === undefined && plain === undefined) {
      challenges.push({ scheme: name!.toLowerCase(), parameters: new Map() })
    } else {
      const value = quoted?.replaceAll(/\\([\s\S])/g, "$1") ?? plain!
      challenges.at(-1)?.parameters.set(name!.toLowerCase(), value)
    }
  }
  return challenges
}

const Token = Schema.parseJson(
  Schema.Struct({
    token: Schema.optionalWith(Schema.String, { nullable: true }),
    access_token: Schema.optionalWith(Schema.String, { nullable: true })
  })
)

const TOKEN_ANSWER_BYTES_MAX = 256 * 1024

/** `team/app`, of `repository:team/app:pull`. */
const repositoryOf = (scope: string): string => /^repository:([^:\s]+):/.exec(scope)?.[1] ?? ""

export const make = (
  berth: Berth,
  host: string,
  client: Pick<Client, "http" | "name" | "origin">,
  credentials: Credentials | undefined
): Effect.Effect<Auth> =>
  Effect.gen(function* () {
    const { name } = client
    const identities = new Map<string, Identity>()
    if (credentials !== undefined) {
      const { password, username } = credentials
      const redacted = Redacted.isRedacted(password) ? password : Redacted.make(password)
      identities.set("", { _tag: "Basic", username, password: redacted })
    }
    /** Stored credentials may be for some repositories only. */
    const ownerOf = (scope: string) => (credentials === undefined ? repositoryOf(scope) : "")
    const identityFor = (repository: string, subject: string): Effect.Effect<Identity, Failure> =>
      Effect.suspend(() => {
        const known = identities.get(repository)
        return known !== undefined
          ? Effect.succeed(known)
          : lookup(berth, host, repository, { registry: name, subject }).pipe(
              Effect.tap((found) => identities.set(repository, found)),
              Effect.mapError((error) => new Failure(error, false))
            )
      })
    const semaphore = yield* Effect.makeSemaphore(1)
    const answers = new Map<string, Redacted.Redacted<string>>()
    let description = credentials === undefined ? "an anonymous user" : `the user ${credentials.username}`

    const current = (scope: string) => Option.getOrUndefined(Option.map(find(scope), Redacted.value))
    const find = (scope: string) =>
      Option.fromNullable(answers.get(`basic ${ownerOf(scope)}`) ?? answers.get(scope))

    const unauthorized = (subject: string, detail: string, status = 401) =>
      new Failure(
        new RegistryError({ reason: "Unauthorized", registry: name, subject, status, detail }),
        false
      )

    const askToken = (
      challenge: Challenge,
      identity: Identity,
      scope: string,
      subject: string
    ): Effect.Effect<string, Failure> =>
      Effect.gen(function* () {
        const realm = challenge.parameters.get("realm") ?? ""
        const url = URL.canParse(realm) ? new URL(realm) : undefined
        const plain =
          url?.protocol === "http:" && (client.origin.startsWith("http:") || isLoopback(url.hostname))
        if (url === undefined || !(url.protocol === "https:" || plain)) {
          const shown = JSON.stringify(realm.slice(0, 200))
          return yield* Effect.fail(
            unauthorized(subject, `the registry names a token service at ${shown}, which is not https`)
          )
        }
        const service = challenge.parameters.get("service")
        const response = yield* execute(client, subject, tokenRequest(url, identity, service, scope))
        const refuse = (why: string) => {
          const { status } = response
          const refused = status === 400 || status === 401 || status === 403
          const detail = `the token service ${url.host} ${why} for ${description}`
          return Effect.fail(
            new Failure(
              new RegistryError({
                reason: refused ? "Unauthorized" : "Protocol",
                registry: name,
                subject,
                status,
                detail
              }),
              status === 429 || status >= 500
            )
          )
        }
        if (response.status !== 200) return yield* refuse("gives no token")
        const token = yield* readToken(name, subject, response)
        return Option.isNone(token) ? yield* refuse("answers without a token") : token.value
      }).pipe(Effect.scoped)

    const answer: Auth["answer"] = ({ challenge, refused, scope, subject }) =>
      Effect.gen(function* () {
        const known = current(scope)
        if (known !== undefined && known !== refused) return known // another fiber has just done this
        if (challenge === undefined) {
          const detail =
            "the registry wants credentials, but does not name a scheme (no WWW-Authenticate header)"
          return yield* Effect.fail(unauthorized(subject, detail))
        }
        const challenges = parseChallenges(challenge)
        if (refused !== undefined && credentials === undefined) {
          identities.delete(ownerOf(scope)) // a helper may return new credentials
        }
        const identity = yield* identityFor(ownerOf(scope), subject)
        if (identity._tag !== "Anonymous") {
          description = identity._tag === "Basic" ? `the user ${identity.username}` : "an identity token"
        }
        const bearer = challenges.find(({ scheme }) => scheme === "bearer")
        if (bearer !== undefined) {
          const wanted = scope === "" ? (bearer.parameters.get("scope") ?? "") : scope
          const header = `Bearer ${yield* askToken(bearer, identity, wanted, subject)}`
          answers.set(scope, Redacted.make(header))
          return header
        }
        if (!challenges.some(({ scheme }) => scheme === "basic")) {
          const kinds = challenges.map(({ scheme }) => scheme).join(", ") || "none"
          return yield* Effect.fail(
            unauthorized(
              subject,
              `the registry wants an authentication scheme that Berth does not support: ${kinds}`
            )
          )
        }
        if (identity._tag !== "Basic") {
          const detail = `the registry wants a user and a password: give credentials, or run docker login ${host}`
          return yield* Effect.fail(unauthorized(subject, detail))
        }
        const header = basic(identity)
        if (header === refused)
          return yield* Effect.fail(unauthorized(subject, `the registry refuses ${description}`))
        answers.set(`basic ${ownerOf(scope)}`, Redacted.make(header))
        return header
      }).pipe(semaphore.withPermits(1))

    return {
      get description() {
        return description
      },
      current,
      answer
    }
  })

const basic = (identity: Extract<Identity, { _tag: "Basic" }>): string =>
  `Basic ${Buffer.from(`${identity.username}:${Redacted.value(identity.password)}`, "utf8").toString("base64")}`

const tokenRequest = (
  url: URL,
  identity: Identity,
  service: string | undefined,
  scope: string
): HttpClientRequest.HttpClientRequest => {
  const fields: Array<[string, string]> = []
  if (service !== undefined) {
    fields.push(["service", service])
  }
  if (scope !== "") {
    fields.push(["scope", scope])
  }
  const headers = { "user-agent": "berth", "accept-encoding": "identity" }
  if (identity._tag === "IdentityToken") {
    const form: ReadonlyArray<readonly [string, string]> = [
      ...fields,
      ["grant_type", "refresh_token"],
      ["client_id", "berth"],
      ["refresh_token", Redacted.value(identity.token)]
    ]
    return HttpClientRequest.post(url.href, { headers }).pipe(HttpClientRequest.bodyUrlParams(form))
  }
  const target = new URL(url)
  for (const [key, value] of fields) {
    // Token services take each scope in a parameter of its own; only in a form are all scopes one text.
    for (const one of key === "scope" ? value.split(" ") : [value]) {
      target.searchParams.append(key, one)
    }
  }
  if (identity._tag === "Anonymous") return HttpClientRequest.get(target.href, { headers })
  target.searchParams.append("account", identity.username)
  return HttpClientRequest.get(target.href, { headers: { ...headers, authorization: basic(identity) } })
}

const readToken = (
  name: string,
  subject: string,
  response: HttpClientResponse
): Effect.Effect<Option.Option<string>, Failure> =>
  Effect.map(
    readBody(name, subject, response, TOKEN_ANSWER_BYTES_MAX),
    Option.flatMap((bytes) =>
      Schema.decodeUnknownOption(Token)(new TextDecoder().decode(bytes)).pipe(
        Option.flatMapNullable(({ access_token, token }) => token || access_token || undefined),
        // It becomes part of a header.
        Option.filter((token) => /^[\x21-\x7e]+$/.test(token))
      )
    )
  )
