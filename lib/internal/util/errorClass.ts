/**
 * The classes of errors, each made from a description of its fields. A description is a constant of plain words, whose type
 * needs no inference: JSR publishes only types that it can write down without a type checker.
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import type * as Schema from "effect/Schema"
import type { BerthErrorTypeId } from "../../BerthError.ts"
import * as internal from "./errorProto.ts"
import { giveSchema } from "./errorSchema.ts"

/** The schemas of fields, by their words. */
export interface Kinds {
  readonly string: typeof Schema.String
  readonly integer: typeof Schema.Int
  readonly number: typeof Schema.Number
  readonly strings: Schema.Array$<typeof Schema.String>
  readonly "string?": Schema.optional<typeof Schema.String>
  readonly "strings?": Schema.optional<Schema.Array$<typeof Schema.String>>
  readonly "string | undefined": Schema.UndefinedOr<typeof Schema.String>
  readonly "integer | undefined": Schema.UndefinedOr<typeof Schema.Int>
  readonly "defect?": Schema.optional<typeof Schema.Defect>
}

type Words = readonly [string, ...ReadonlyArray<string>]

/** The kind of each field, or the list of its values. */
export type Description = Readonly<Record<string, keyof Kinds | Words>>

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
  readonly cause: Kinds["defect?"]
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

const make = (tag: string, all: Description, marks: object): never => {
  const made = Data.TaggedError(tag)
  Object.assign(made.prototype, internal.printing, marks)
  giveSchema(made, tag, all)
  return made as never
}

/** Makes the class of an error. */
export const error = (tag: string, all: Description): never =>
  make(tag, { ...all, cause: "defect?" }, { [internal.TypeId]: internal.TypeId })

/** Makes the class of a warning. */
export const warning = (tag: string, all: Description): never => make(tag, all, {})
