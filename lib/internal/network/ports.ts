/** Ports in Docker's spelling: `[[ADDRESS:][HOST]:]CONTAINER[/PROTOCOL]`, each of the two a port or a range of them. */
import type { Publishable, PublishOptions, PublishPathOptions } from "../../Connection.ts"
import { invalid } from "../util/validate.ts"

const SHAPE =
  /^(?:(?<address>\[[^\]]+\]|[^:[\]]+):(?<free>\d*(?:-\d+)?):|(?<host>\d+(?:-\d+)?):)?(?<container>\d+(?:-\d+)?)(?:\/(?<protocol>tcp|udp))?$/

/** The ports of `80` or `80-82`. */
const rangeOf = (option: string, text: string, range: string): ReadonlyArray<number> => {
  const [first, last = first] = range.split("-").map(Number) as [number, number?]
  if (first < 1 || last > 65535) invalid(option, text, "ports from 1 to 65535")
  if (last < first) invalid(option, text, `a range that ends after its beginning, unlike ${range}`)
  return Array.from({ length: last - first + 1 }, (_, k) => first + k)
}

const parseText = (option: string, text: string): ReadonlyArray<PublishOptions> => {
  const parts = SHAPE.exec(text)?.groups
  if (parts === undefined)
    return invalid(
      option,
      text,
      'a port as in Docker: "80", "8080:80", "127.0.0.1:8080:80/udp", "8000-8002:80-82"'
    )
  const { address, protocol } = parts
  const inside = rangeOf(option, text, parts.container!)
  const host = parts.host ?? parts.free ?? ""
  const outside = host === "" ? undefined : rangeOf(option, text, host)
  if (outside !== undefined && outside.length !== inside.length)
    invalid(option, text, "as many ports of the host as of the container")
  return inside.map((container, k) => ({
    container,
    ...(outside === undefined ? {} : { host: outside[k]! }),
    ...(address === undefined ? {} : { hostname: address.replace(/^\[(.*)\]$/, "$1") }),
    ...(protocol === undefined ? {} : { protocol: protocol as "tcp" | "udp" })
  }))
}

/** The typed form of what `ports` takes, one for each port; throws. */
export const parsePorts = (
  option: string,
  given: Publishable
): ReadonlyArray<PublishOptions | PublishPathOptions> =>
  typeof given === "number"
    ? [{ container: given }]
    : typeof given === "string"
      ? parseText(option, given)
      : [given]

/** The same for what `Container.publish` takes, which is one port; throws. */
export const parseOnePort = (given: Publishable): PublishOptions | PublishPathOptions => {
  const [one, another] = parsePorts("port", given)
  if (another !== undefined) invalid("port", given, "one port; a range is for the option `ports` of a start")
  return one!
}
