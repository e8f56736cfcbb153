/**
 * The proxies that the environment names: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case. Deno's
 * and Bun's fetch know them, Node's does not.
 */
import { getProxyForUrl } from "proxy-from-env"
import type { ProxyAgent } from "undici"

/** Whether bytes may go there without TLS: only on this machine. */
export const isLoopback = (hostname: string): boolean => {
  const octets = /^127\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(hostname)
  return (
    hostname === "localhost" ||
    hostname === "[::1]" ||
    (octets?.slice(1).every((octet) => Number(octet) <= 255) ?? false)
  )
}

const isNode = !("Deno" in globalThis || "Bun" in globalThis)

// By address: connections to a proxy are kept open, and keep no program from ending.
const agents = new Map<string, ProxyAgent>()

const throughProxy = async (
  proxy: string,
  ...[input, init]: Parameters<typeof globalThis.fetch>
): Promise<Response> => {
  // Loaded where it is needed: Node has an own one that fetch uses, and does not give away.
  const undici = await import("undici")
  const agent = agents.get(proxy) ?? new undici.ProxyAgent(proxy)
  agents.set(proxy, agent)
  const settings = { ...init, dispatcher: agent } as Parameters<typeof undici.fetch>[1]
  return (await undici.fetch(input as URL, settings)) as unknown as Response
}

/** Node's fetch, by way of the proxy that the environment names for the URL; a registry on this machine needs none. */
export const fetch: typeof globalThis.fetch = (input, init) => {
  const url = new URL(input instanceof Request ? input.url : input)
  const proxy = isNode && !isLoopback(url.hostname) ? getProxyForUrl(url.href) : ""
  return proxy === "" ? globalThis.fetch(input, init) : throughProxy(proxy, input, init)
}
