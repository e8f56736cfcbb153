/** The corpus of Dockerfiles. */

import { add } from "./add.ts"
import type { Case } from "./case.ts"
import { config } from "./config.ts"
import { files } from "./files.ts"
import { run } from "./run.ts"
import { words } from "./words.ts"

export const corpus: ReadonlyArray<Case> = [...config, ...words, ...files, ...add, ...run]
