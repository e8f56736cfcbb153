/**
 * The classes of errors, each made from a description of its fields. A description is a constant of plain words, whose type
 * needs no inference: JSR publishes only types that it can write down without a type checker.
 */
import type * as Cause from "effect/Cause"
import * as Schema from "effect/Schema"
import type { BerthErrorTypeId } from "../../BerthError.ts"
import * as internal from "./errorProto.ts"

/** The schemas of fields, by their words. */
interface Kinds {
  readonly string: typeof Schema.String
  readonly integer: typeof Schema.Int
  readonly number: typeof Schema.Number
  readonly strings: Schema.Array$<typeof Schema.String>
  readonly "string?": Schema.optional<typeof Schema.String>
  readonly "strings?": Schema.optional<Schema.Array$<typeof Schema.String>>
  readonly "string | undefined": Schema.UndefinedOr<typeof Schema.String>
  readonly "integer | undefined": Schema.UndefinedOr<typeof Schema.Int>
}

const kinds: Kinds = {
  string: Schema.String,
  integer: Schema.Int,
  number: Schema.Number,
  strings: Schema.Array(Schema.String),
  "string?": Schema.optional(Schema.String),
  "strings?": Schema.optional(Schema.Array(Schema.String)),
  "string | undefined": Schema.UndefinedOr(Schema.String),
  "integer | undefined": Schema.UndefinedOr(Schema.Int)
}

type Words = readonly [string, ...ReadonlyArray<string>]

/** The kind of each field, or the list of its values. */
type Description = Readonly<Record<string, keyof Kinds | Words>>

type SchemasOf<All extends Description> = {
  readonly [Name in keyof All]: All[Name] extends keyof Kinds
    ? Kinds[All[Name]]
    : All[Name] extends Words
      ? Schema.Literal<All[Name]>
      : never
}

/** What every error has besides its own fields. */
type Common = {
  /** The error that caused this one, with its stack. */
  readonly cause: Schema.optional<typeof Schema.Defect>
}

type Checked<Fields> = Fields extends Schema.Struct.Fields ? Fields : never
type Tagged<Tag extends string, Fields> = Checked<{ readonly _tag: Schema.tag<Tag> } & Fields>

interface TaggedClass<Self, Tag extends string, Fields, Inherited>
  extends Schema.Class<
    Self,
    Tagged<Tag, Fields>,
    Schema.Struct.Encoded<Tagged<Tag, Fields>>,
    Schema.Struct.Context<Tagged<Tag, Fields>>,
    Schema.Struct.Constructor<Checked<Fields>>,
    {},
    Inherited
  > {
  readonly _tag: Tag
}

/** The class of an error of Berth. */
export type ErrorClass<Self, Tag extends string, All extends Description> = TaggedClass<
  Self,
  Tag,
  SchemasOf<All> & Common,
  Cause.YieldableError & { readonly [internal.TypeId]: BerthErrorTypeId }
>

/** The class of a tagged value that is only logged. */
export type WarningClass<Self, Tag extends string, All extends Description> = TaggedClass<
  Self,
  Tag,
  SchemasOf<All>,
  Cause.YieldableError
>

const schemasOf = (all: Description): Schema.Struct.Fields =>
  Object.fromEntries(
    Object.entries(all).map(([name, kind]) => [
      name,
      typeof kind === "string" ? kinds[kind] : Schema.Literal(...kind)
    ])
  )

const make = (tag: string, fields: Schema.Struct.Fields, marks: object): never => {
  const made = Schema.TaggedError<never>(`berth/BerthError/${tag}`)(tag, fields)
  Object.assign((made as unknown as { readonly prototype: object }).prototype, internal.printing, marks)
  return made as never
}

/** Makes the class of an error. */
export const error = (tag: string, all: Description): never =>
  make(
    tag,
    { ...schemasOf(all), cause: Schema.optional(Schema.Defect) },
    { [internal.TypeId]: internal.TypeId }
  )

/** Makes the class of a warning. */
export const warning = (tag: string, all: Description): never => make(tag, schemasOf(all), {})
