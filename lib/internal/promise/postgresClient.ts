/** The client that a migration gets: it loads the program's own `pg` and connects when it is first used. */
import { createRequire } from "node:module"
import { Unsupported } from "../../BerthError.ts"
import type { Postgres } from "../../fixtures.ts"
import type { Client } from "../../promiseFixtures.ts"

interface PgClient extends Client {
  readonly connect: () => Promise<unknown>
  readonly end: () => Promise<unknown>
  readonly on: (event: "error", listener: () => void) => unknown
}

interface Pg {
  readonly Client: new (connection: Postgres["connection"]) => PgClient
}

/** Not a literal, so that no bundler and no type checker looks for the package. */
const name: string = "pg"

const load = async (): Promise<Pg> => {
  try {
    const { default: loaded } = await import(name)
    return loaded
  } catch {
    try {
      // Berth may be linked into a project from elsewhere.
      return createRequire(`${process.cwd()}/`)(name)
    } catch (cause) {
      throw new Unsupported({
        feature: "the client of a migration",
        why: "the package pg cannot be loaded",
        hint: "npm install --save-dev pg, or migrate with another client by `server.url`: migrate: (_, { url }) => ...",
        cause
      })
    }
  }
}

const connect = async (connection: Postgres["connection"]): Promise<PgClient> => {
  const { Client } = await load()
  const client = new Client(connection)
  // A connection that breaks fails the query that waits; between two queries, the next one.
  client.on("error", () => {})
  await client.connect()
  return client
}

/** Connects for the first query. */
export const lazyClient = (
  connection: Postgres["connection"]
): Client & { readonly end: () => Promise<void> } => {
  let connected: Promise<PgClient> | undefined
  return {
    query: async (text, values) => {
      connected ??= connect(connection)
      return (await connected).query(text, values)
    },
    end: async () => {
      const client = await connected?.catch(() => undefined)
      await client?.end()
    }
  }
}
