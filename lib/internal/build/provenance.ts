/** What a named image of a build says of its making, in annotations of its manifest (OCI Image Specification, annotations.md). */
import { createHash } from "node:crypto"
import type { State, StateStep } from "./evaluate.ts"

/** The limit of a step's inputs that are told one by one; with more, the files of a copy are told as one. A manifest has 4 MB. */
const INPUTS_MAX = 200

const shown = ({ history, inputs = {} }: StateStep) => {
  const all = Object.entries(inputs)
  const isFile = ([name]: readonly [string, string]) => name.startsWith("the file ")
  const files = all.length > INPUTS_MAX ? all.filter(isFile) : []
  const digest = createHash("sha256").update(JSON.stringify(files.toSorted())).digest("base64").slice(0, 22)
  const one = files.length === 0 ? [] : [[`the ${files.length} files`, digest] as const]
  return {
    step: history.created_by,
    inputs: Object.fromEntries([
      ...(files.length === 0 ? all : all.filter((input) => !isFile(input))),
      ...one
    ])
  }
}

export const annotationsOf = ({ base, steps }: State): Readonly<Record<string, string>> => ({
  ...(base.digest === undefined
    ? {}
    : {
        "org.opencontainers.image.base.name": base.reference,
        "org.opencontainers.image.base.digest": base.digest
      }),
  "vnd.berth.build.steps": JSON.stringify(steps.map(shown))
})
