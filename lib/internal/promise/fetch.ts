/** `fetch` of a box and of a network. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as http from "../network/fetch.ts"
import type { Shared } from "./runtime.ts"

/** Requests by one fetcher, which `make` makes for the first and the scope closes; `subject` is what has the server, for errors. */
export const fetchIn = (
  shared: Shared,
  scope: Scope.Scope,
  subject: string,
  make: Effect.Effect<http.Fetch, never, Scope.Scope>
): ((url: string | URL, init?: RequestInit) => Promise<Response>) => {
  let fetcher: Promise<http.Fetch> | undefined
  return async (url, init = {}) => {
    fetcher ??= shared.run(Scope.extend(make, scope))
    const request = await fetcher
    return shared.run(Effect.flatMap(http.parseUrl(url), (to) => http.fetchBy(subject, request, to, init)))
  }
}
