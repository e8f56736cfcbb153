/** The bodies of `Reference`: the grammar of image names. */
import * as Either from "effect/Either"
import { hasProperty } from "effect/Predicate"
import { type ImageError, InvalidData } from "../../BerthError.ts"
import type * as Reference from "../../Reference.ts"
import * as digests from "../util/digest.ts"
import { prints } from "../util/prints.ts"
import { quote } from "../util/text.ts"

export const TypeId: Reference.TypeId = Symbol.for("berth/Reference") as Reference.TypeId

export const isReference = (u: unknown): u is Reference.Reference => hasProperty(u, TypeId)

type Fields = Pick<Reference.Reference, "registry" | "repository" | "tag" | "digest">

/** The repository of a reference, without tag and digest. */
export type Repository = Pick<Reference.Reference, "registry" | "repository">

export const print = ({ digest, registry, repository, tag }: Fields): string =>
  `${registry}/${repository}${tag === undefined ? "" : `:${tag}`}${digest === undefined ? "" : `@${digest}`}`

const Proto = {
  ...prints<Reference.Reference>({
    id: "berth/Reference",
    json: (self) => ({ reference: print(self) }),
    line: print,
    text: print
  }),
  [TypeId]: TypeId
}

const make = (fields: Fields): Reference.Reference => Object.assign(Object.create(Proto), fields)

/** The reference to a digest in a repository. */
export const atDigest = (
  { registry, repository }: Repository,
  digest: Reference.Digest
): Reference.Reference => make({ registry, repository, tag: undefined, digest })

/** The reference to a tag that `parseTag` has accepted, or that Berth has made. */
export const atTag = ({ registry, repository }: Repository, tag: string): Reference.Reference =>
  make({ registry, repository, tag, digest: undefined })

const label = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
const registryPattern = new RegExp(`^(?:${label}(?:\\.${label})*|\\[[0-9A-Fa-f:]{2,45}\\])(?::[0-9]{1,5})?$`)
const componentPattern = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/
const REPOSITORY_CHARACTERS_MAX = 255
const REFERENCE_CHARACTERS_MAX = 1024

/** The reason for which a part of a name is refused: the expected form, and the error that found the mistake. */
interface Refusal {
  readonly expected: string
  readonly cause?: ImageError
}

const expect = (expected: string): Either.Either<never, Refusal> => Either.left({ expected })

/** Whether the first part of a name is a registry, and not part of the repository. */
const namesRegistry = (first: string): boolean => first === "localhost" || /[.:A-Z[]/.test(first)

/** A host, or host:port, as references have it. */
export const parseRegistry = (input: string): Either.Either<string, Refusal> => {
  const port = /:([0-9]+)$/.exec(input)?.[1]
  return input.length <= REFERENCE_CHARACTERS_MAX &&
    namesRegistry(input) &&
    registryPattern.test(input) &&
    (port === undefined || (Number(port) >= 1 && Number(port) <= 65535))
    ? Either.right(input === "index.docker.io" ? "docker.io" : input)
    : expect("a host name or address, and a port between 1 and 65535, before the first slash")
}

/** Names separated by slashes, as in a repository. */
export const isPath = (input: string): boolean =>
  input.length <= REPOSITORY_CHARACTERS_MAX &&
  input.split("/").every((component) => componentPattern.test(component))

const parseRepository = (registry: string, input: string): Either.Either<string, Refusal> => {
  if (/[A-Z]/.test(input)) return expect("a repository name in lower case")
  if (registry === "docker.io" && digests.isHex(input))
    return expect("a name: 64 hexadecimal digits are an image id, which no registry knows")
  const repository = registry === "docker.io" && !input.includes("/") ? `library/${input}` : input
  if (repository.length > REPOSITORY_CHARACTERS_MAX)
    return expect(`a repository name of at most ${REPOSITORY_CHARACTERS_MAX} characters`)
  return isPath(input) ? Either.right(repository) : expect("[host[:port]/]path[:tag][@digest]")
}

export const isTag = (input: string): boolean => tagPattern.test(input)

const parseTag = (input: string): Either.Either<string, Refusal> =>
  isTag(input)
    ? Either.right(input)
    : expect("one tag after the colon: up to 128 letters, digits, _, . and -, not starting with . or -")

const parseDigest = (input: string): Either.Either<Reference.Digest, Refusal> =>
  Either.mapLeft(
    digests.parse(input),
    (cause): Refusal => ({
      expected: "one digest after @: sha256: and 64, or sha512: and 128, lower-case hexadecimal digits",
      cause
    })
  )

/** Splits a text at the first of these characters; the second half is undefined without one. */
const cut = (input: string, character: string): readonly [before: string, after: string | undefined] => {
  const at = input.indexOf(character)
  return at === -1 ? [input, undefined] : [input.slice(0, at), input.slice(at + 1)]
}

const refused = (format: string, input: string) => (refusal: Refusal) =>
  new InvalidData({ format, value: quote(input), ...refusal })

export const parse = (input: string): Either.Either<Reference.Reference, InvalidData> =>
  Either.gen(function* () {
    if (input.length > REFERENCE_CHARACTERS_MAX)
      return yield* expect(`at most ${REFERENCE_CHARACTERS_MAX} characters`)
    const [name, digestPart] = cut(input, "@")
    const digest = digestPart === undefined ? undefined : yield* parseDigest(digestPart)
    const [first, others] = cut(name, "/")
    const isWhole = others !== undefined && namesRegistry(first)
    const registry = isWhole ? yield* parseRegistry(first) : "docker.io"
    const [path, tagPart] = cut(isWhole ? others : name, ":")
    const tag = tagPart === undefined ? undefined : yield* parseTag(tagPart)
    const repository = yield* parseRepository(registry, path)
    return make({ registry, repository, tag: tag ?? (digest === undefined ? "latest" : undefined), digest })
  }).pipe(Either.mapLeft(refused("reference", input)))

/** A repository of a registry that `parseRegistry` has accepted. */
export const inRegistry = (registry: string, repository: string): Either.Either<Repository, InvalidData> =>
  Either.mapBoth(parseRepository(registry, repository), {
    onLeft: () => refused("repository", repository)({ expected: "the path of a repository" }),
    onRight: (parsed) => ({ registry, repository: parsed })
  })

/** The reference to a tag or a digest in a repository. */
export const inRepository = (
  repository: Repository,
  tagOrDigest: string
): Either.Either<Reference.Reference, InvalidData> =>
  (tagOrDigest.includes(":")
    ? Either.map(parseDigest(tagOrDigest), (digest) => atDigest(repository, digest))
    : Either.map(parseTag(tagOrDigest), (tag) => atTag(repository, tag))
  ).pipe(Either.mapLeft(refused("tag or digest", tagOrDigest)))
