/** In a process of its own, as the others are, and as the package is installed: pulls once, and prints what moved. */
import { open } from "berth/promise"

const [, , folder, reference] = process.argv
const moved = new Map()
const berth = await open({ folder })
await berth.images.pull(reference, { progress: ({ bytes, digest }) => moved.set(digest, bytes) })
await berth[Symbol.asyncDispose]()
console.log([...moved.values()].reduce((sum, bytes) => sum + bytes, 0))
