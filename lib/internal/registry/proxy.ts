/**
 * The proxies of the environment: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or lower case. The
 * fetch of Deno and Bun uses them, Node's does not.
 */
import type { Agent, ClientRequest } from "node:http"
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

/** The proxy of the environment for a URL, undefined if there is none; a registry on this machine needs none. */
export const proxyFor = (url: URL): string => (isLoopback(url.hostname) ? "" : getProxyForUrl(url.href))

/** A proxy's answer to a refused tunnel, which must never look like the registry's own answer. */
export class ProxyRefusal extends Error {
  constructor(proxy: string, status: number, options?: ErrorOptions) {
    const { host } = new URL(proxy)
    const hint = status === 407 ? ": put a user and a password that it accepts into its URL" : ""
    super(`the proxy ${host} refuses a tunnel with status ${status}${hint}`, options)
  }
}

/**
 * An agent for node:https that opens a tunnel through the proxy for each connection. The authorities also apply to a
 * proxy that speaks TLS itself.
 */
export const makeAgent = async (proxy: string, ca: ReadonlyArray<string>): Promise<Agent> => {
  // Loaded on first use, because few programs are behind a proxy.
  const { HttpsProxyAgent } = await import("https-proxy-agent")
  return new HttpsProxyAgent(proxy, { keepAlive: true, ca: [...ca] }) as unknown as Agent
}

/** Fails a request if the proxy refuses its tunnel; otherwise the proxy's answer would look like the registry's. */
export const refuseAnswersOf = (
  proxy: string,
  request: ClientRequest,
  fail: (cause: unknown) => void
): void => {
  request.on("proxyConnect", ({ statusCode }: { readonly statusCode: number }) => {
    if (statusCode !== 200) {
      const refusal = new ProxyRefusal(proxy, statusCode)
      fail(refusal)
      request.destroy(refusal)
    }
  })
}

// The environment's proxies belong to the process. A map by address: connections to a proxy stay open, like those of
// fetch, and do not keep a program alive.
const agents = new Map<string, ProxyAgent>()

const throughProxy = async (
  proxy: string,
  ...[input, init]: Parameters<typeof globalThis.fetch>
): Promise<Response> => {
  // Loaded on first use: Node's fetch has its own copy, which it does not export.
  const undici = (await import("undici")).default
  const agent = agents.get(proxy) ?? new undici.ProxyAgent(proxy)
  agents.set(proxy, agent)
  const settings = { ...init, dispatcher: agent } as Parameters<typeof undici.fetch>[1]
  try {
    return (await undici.fetch(input as URL, settings)) as unknown as Response
  } catch (error) {
    const { cause } = ((error as Error).cause ?? {}) as { readonly cause?: { readonly message?: unknown } }
    const status = /^Proxy response \((\d+)\)/.exec(String(cause?.message))?.[1]
    throw status === undefined ? error : new ProxyRefusal(proxy, Number(status), { cause: error })
  }
}

/** Node's fetch, through the proxy of the environment for the URL. */
export const fetch: typeof globalThis.fetch = (input, init) => {
  const proxy = isNode ? proxyFor(new URL(input instanceof Request ? input.url : input)) : ""
  return proxy === "" ? globalThis.fetch(input, init) : throughProxy(proxy, input, init)
}
