/** Stands for tsx in the machine, where test/vm/bundle.ts has put JavaScript beside each program in TypeScript. */
import { register } from "node:module"
import { isMainThread } from "node:worker_threads"

export const resolve = (specifier, context, next) => next(specifier.replace(/\.ts$/, ".js"), context)

if (isMainThread) register(import.meta.url)
