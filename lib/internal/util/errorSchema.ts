/** The schemas of errors. Most programs never ask for one, so each is made when it is first used. */
import * as Schema from "effect/Schema"
import type { Description, Kinds } from "./errorClass.ts"

const kinds: Kinds = {
  string: Schema.String,
  integer: Schema.Int,
  number: Schema.Number,
  strings: Schema.Array(Schema.String),
  "string?": Schema.optional(Schema.String),
  "strings?": Schema.optional(Schema.Array(Schema.String)),
  "string | undefined": Schema.UndefinedOr(Schema.String),
  "integer | undefined": Schema.UndefinedOr(Schema.Int),
  "defect?": Schema.optional(Schema.Defect)
}

const schemaOf = (tag: string, all: Description): Schema.Schema.AnyNoContext =>
  Schema.TaggedError<Error>(`berth/BerthError/${tag}`)(
    tag,
    Object.fromEntries(
      Object.entries(all).map(([name, kind]) => [
        name,
        typeof kind === "string" ? kinds[kind] : Schema.Literal(...kind)
      ])
    )
  )

/** What a class of Schema has besides the class itself. */
const properties: ReadonlyArray<PropertyKey> = [
  Schema.TypeId,
  "annotations",
  "ast",
  "extend",
  "fields",
  "identifier",
  "make",
  "pipe",
  "transformOrFail",
  "transformOrFailFrom"
]

/** Lets the class of an error be used as its schema too. */
export const giveSchema = (error: object, tag: string, all: Description): void => {
  let made: Schema.Schema.AnyNoContext | undefined
  const schema = (): Schema.Schema.AnyNoContext => {
    made ??= schemaOf(tag, all)
    return made
  }
  Object.defineProperty(error, "_tag", { value: tag })
  // The class that extends this one is the one that is decoded to.
  for (const name of properties)
    Object.defineProperty(error, name, {
      get(this: object) {
        return Reflect.get(schema(), name, this)
      }
    })
}
