/** A service of a compose file as a service of `Fixture.group`. */
import * as net from "node:net"
import * as Schedule from "effect/Schedule"
import type { Limits } from "../../Cgroup.ts"
import type { PublishOptions } from "../../Connection.ts"
import type { ExitStatus, StopOptions } from "../../Container.ts"
import type { Condition, ImageService, ImageSource, ServiceMount } from "../../Fixture.ts"
import { type Capability, capabilities, type Rlimits, resolveRlimits } from "../../Security.ts"
import type { Healthcheck } from "../../WaitFor.ts"
import { parseName } from "../network/network.ts"
import { parsePorts } from "../network/ports.ts"
import { nearest } from "../util/didYouMean.ts"
import { signalNumber } from "../util/signals.ts"
import { readBuild } from "./build.ts"
import { type MountContext, readMounts, readTmpfs } from "./mounts.ts"
import { fail, keyOf, type MapNode, type Node, type Place } from "./tree.ts"
import { type Changeable, get, mapping, only, readKeys, setter, unsupported, type Values } from "./values.ts"

/** What a service reads of its file, besides its own keys. */
export interface ServiceContext {
  readonly values: Values
  readonly mounts: MountContext
  /** The value of a variable of the environment. */
  readonly lookup: (name: string) => string | undefined
  /** The variables of the files of `env_file`. */
  readonly envFile: (node: Node, isRequired: boolean, isRaw: boolean) => ReadonlyMap<string, string>
  /** Throws for a network that the file does not declare. */
  readonly useNetwork: (name: string, at: Place) => void
  /** Whether a service is in the file, and whether its profiles are active; throws if it is not in the file. */
  readonly hasService: (name: string, at: Place) => boolean
  /** The image of another service, whatever its profiles are; throws if that one needs the image of this one. */
  readonly imageOf: (name: string, at: Place) => ImageSource
}

/** A service, and the place of each of its dependencies. */
export interface ReadService {
  readonly service: ImageService
  readonly dependencies: ReadonlyMap<string, Node>
}

/** Docker's: a delay of 100 ms that doubles up to a minute, and begins anew after a container that ran for ten seconds. */
export const always: Schedule.Schedule<unknown, ExitStatus> = Schedule.exponential("100 millis").pipe(
  Schedule.union(Schedule.spaced("1 minute")),
  Schedule.resetAfter("10 seconds")
)

const failures = Schedule.whileInput(always, ({ exitCode }: ExitStatus) => exitCode !== 0)

const restartOf = (node: Node, text: string): ImageService["restart"] => {
  const [, most] = /^on-failure(?::(\d+))?$/.exec(text) ?? []
  if (text === "no") return undefined
  if (text === "always" || text === "unless-stopped") return always
  if (text === "on-failure") return failures
  if (most !== undefined) return Schedule.intersect(failures, Schedule.recurs(Number(most)))
  return fail(
    node.at,
    "Invalid",
    `expected "no", always, unless-stopped, on-failure or on-failure:5, found ${JSON.stringify(text)}`
  )
}

const CONDITIONS: Readonly<Record<string, Condition>> = {
  service_started: "started",
  service_healthy: "healthy",
  service_completed_successfully: "completed"
}

const readDependencies = (
  node: Node,
  { hasService, values }: ServiceContext,
  add: (name: string, condition: Condition, node: Node) => void
): void => {
  if (node.kind === "list") {
    for (const item of node.items) {
      const name = values.text(item)
      if (!hasService(name, item.at)) fail(item.at, "Invalid", inactive(name))
      add(name, "started", item)
    }
    return
  }
  for (const [name, value] of mapping(node).entries) {
    let condition: Condition = "started"
    let isRequired = true
    if (value.kind !== "scalar" || value.value !== null)
      readKeys(mapping(value), {
        condition: (given) => {
          condition = CONDITIONS[values.choice(given, Object.keys(CONDITIONS))]!
        },
        required: (given) => {
          isRequired = values.boolean(given)
        },
        // It is about restarts by an operation of Compose, of which there are none here.
        restart: (given) => void values.boolean(given)
      })
    const isActive = hasService(name, keyOf(value))
    if (isActive) add(name, condition, value)
    else if (isRequired) fail(keyOf(value), "Invalid", inactive(name))
  }
}

const inactive = (name: string): string =>
  `the service ${name} has none of the active profiles: name one of its profiles in the option profiles`

const readHealthcheck = (given: Node, values: Values): Healthcheck | "none" => {
  const node = mapping(given)
  let isDisabled = false
  const check: Changeable<Healthcheck> = { test: [] }
  const millis = (key: "interval" | "timeout" | "startPeriod" | "startInterval") => (value: Node) => {
    check[key] = values.duration(value)
  }
  readKeys(node, {
    test: (value) => {
      check.test = value.kind === "list" ? values.texts(value) : ["CMD-SHELL", values.text(value)]
      const [kind, ...rest] = check.test
      const isRight =
        kind === "CMD"
          ? rest.length > 0
          : kind === "CMD-SHELL"
            ? rest.length === 1
            : kind === "NONE" && rest.length === 0
      if (!isRight)
        fail(
          value.at,
          "Invalid",
          'expected a command as text, ["CMD", ...], ["CMD-SHELL", command] or ["NONE"]'
        )
    },
    interval: millis("interval"),
    timeout: millis("timeout"),
    start_period: millis("startPeriod"),
    start_interval: millis("startInterval"),
    retries: (value) => {
      check.retries = values.integer(value)
    },
    disable: (value) => {
      isDisabled = values.boolean(value)
    }
  })
  if (isDisabled || check.test[0] === "NONE") return "none"
  if (check.test.length === 0)
    fail(
      node.at,
      "Unsupported",
      "a health check has to have its test here: the one of the image is not combined with it"
    )
  return check
}

const readPort = (item: Node, values: Values): ReadonlyArray<PublishOptions> => {
  const parse = (node: Node, text: string) =>
    values.at(node, () => parsePorts("ports", text)) as ReadonlyArray<PublishOptions>
  if (item.kind !== "map") return parse(item, values.word(item))
  let target = ""
  let published = ""
  let hostname = ""
  let protocol = ""
  readKeys(item, {
    target: (value) => {
      target = String(values.integer(value, "a port"))
    },
    published: (value) => {
      published = `${values.word(value)}:`
    },
    host_ip: (value) => {
      const text = values.text(value)
      hostname = net.isIPv6(text) ? `[${text}]:` : `${text}:`
    },
    protocol: (value) => {
      protocol = `/${values.choice(value, ["tcp", "udp"])}`
    },
    mode: (value) => void values.choice(value, ["host", "ingress"]),
    name: (value) => void values.text(value),
    app_protocol: (value) => void values.text(value)
  })
  if (target === "") fail(item.at, "Invalid", "a port has to have a target: the port in the container")
  return parse(
    item,
    `${hostname}${hostname !== "" && published === "" ? ":" : published}${target}${protocol}`
  )
}

/** `NAME=ADDRESS`, `NAME:ADDRESS`, or a mapping of names to one or several addresses. */
const readHosts = (node: Node, values: Values): ReadonlyArray<string> => {
  const host = (at: Node, name: string, address: string): string => {
    const bare = address.replace(/^\[(.*)\]$/, "$1")
    if (bare === "host-gateway")
      unsupported(at.at, "Network.expose has containers reach a port of this machine by a name")
    if (net.isIP(bare) === 0)
      fail(at.at, "Invalid", `expected NAME=ADDRESS with an IP address, found ${JSON.stringify(address)}`)
    return `${name}:${net.isIPv6(bare) ? `[${bare}]` : bare}`
  }
  if (node.kind === "map")
    return [...node.entries].flatMap(([name, value]) =>
      values.oneOrMore(value).map((item) => host(item, name, values.text(item)))
    )
  return values.list(node).map((item) => {
    const text = values.text(item)
    const end = text.search(/[=:]/)
    if (end <= 0) fail(item.at, "Invalid", `expected NAME=ADDRESS, found ${JSON.stringify(text)}`)
    return host(item, text.slice(0, end), text.slice(end + 1))
  })
}

const readCapabilities = (node: Node, values: Values): ReadonlyArray<Capability | "ALL"> =>
  values.list(node).map((item) => {
    const name = values.text(item).toUpperCase().replace(/^CAP_/, "")
    return name === "ALL" || (capabilities as ReadonlyArray<string>).includes(name)
      ? (name as Capability | "ALL")
      : fail(
          item.at,
          "Invalid",
          `there is no capability ${name}: did you mean ${nearest(name, capabilities)}?`
        )
  })

const readUlimits = (given: Node, values: Values): Rlimits => {
  const limit = (node: Node): number =>
    values.word(node) === "-1" || values.word(node) === "unlimited"
      ? Number.POSITIVE_INFINITY
      : values.integer(node)
  const limits: Record<string, { readonly soft: number; readonly hard: number }> = {}
  for (const [name, value] of mapping(given).entries) {
    let soft: number | undefined
    let hard: number | undefined
    if (value.kind === "map")
      readKeys(value, {
        soft: (node) => {
          soft = limit(node)
        },
        hard: (node) => {
          hard = limit(node)
        }
      })
    else soft = hard = limit(value)
    if (soft === undefined || hard === undefined)
      return fail(value.at, "Invalid", "expected a number, or soft and hard")
    const one = { soft, hard }
    values.at(value, () => resolveRlimits({ [name]: one } as Rlimits))
    limits[name] = one
  }
  return limits as Rlimits
}

const readNetworks = (
  node: Node,
  context: ServiceContext
): Record<string, { aliases?: ReadonlyArray<string> }> => {
  const { useNetwork, values } = context
  const networks = new Map<string, { aliases?: ReadonlyArray<string> }>()
  if (node.kind === "list")
    for (const item of node.items) {
      const name = values.text(item)
      useNetwork(name, item.at)
      networks.set(name, {})
    }
  else
    for (const [name, value] of mapping(node).entries) {
      useNetwork(name, keyOf(value))
      const options: { aliases?: ReadonlyArray<string> } = {}
      if (value.kind !== "scalar" || value.value !== null)
        readKeys(
          mapping(value),
          {
            aliases: (list) => {
              options.aliases = values.texts(list)
              list.kind === "list" &&
                list.items.forEach((item, k) =>
                  values.at(item, () => parseName("aliases", options.aliases![k]!))
                )
            }
          },
          [
            "ipv4_address",
            "ipv6_address",
            "link_local_ips",
            "mac_address",
            "interface_name",
            "driver_opts",
            "priority",
            "gw_priority"
          ]
        )
      networks.set(name, options)
    }
  return Object.fromEntries(networks)
}

/** The keys that Berth does not have, each with a hint or without. */
const UNSUPPORTED: Readonly<Record<string, string | undefined>> = {
  extends: "repeat the other service, or use an anchor and <<",
  links: "services find each other by their names; depends_on and aliases of networks say the rest",
  secrets: "mount a file",
  configs: "mount a file",
  scale: "a service has one container",
  ...Object.fromEntries(
    "annotations attach blkio_config cgroup cgroup_parent cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpuset credential_spec develop device_cgroup_rules devices dns_opt domainname external_links gpus group_add ipc isolation label_file logging mac_address mem_reservation mem_swappiness memswap_limit models oom_kill_disable oom_score_adj pid platform post_start pre_stop privileged provider runtime security_opt storage_opt use_api_socket userns_mode uts volumes_from"
      .split(" ")
      .map((key) => [key, undefined])
  )
}

export const readImage = (node: MapNode, context: ServiceContext): ImageSource => {
  const [named, build] = [get(node, "image"), get(node, "build")]
  const tag = named === undefined ? undefined : context.values.text(named)
  if (build !== undefined) return readBuild(build, context, tag)
  return tag ?? fail(node.at, "Invalid", "a service has to have an image, or a build")
}

export const readService = (name: string, node: MapNode, context: ServiceContext): ReadService => {
  const { values } = context
  const service: Changeable<Partial<ImageService>> = {}
  const dependencies = new Map<string, Node>()
  const dependsOn = new Map<string, Condition>()
  const mounts: Array<ServiceMount> = []
  const fromFiles = new Map<string, string>()
  const environment = new Map<string, string | undefined>()
  const limits: Changeable<Limits> = {}
  const caps: { add?: ReadonlyArray<Capability | "ALL">; drop?: ReadonlyArray<Capability | "ALL"> } = {}
  const stop: Changeable<StopOptions> = {}
  let containerName: string | undefined

  /** A limit, which can be given in two places. */
  const limit =
    <Key extends "memory" | "cpus" | "pids">(key: Key, read: (value: Node) => Limits[Key]) =>
    (value: Node) => {
      if (limits[key] !== undefined) fail(value.at, "Invalid", "this limit is given twice")
      const given = read(value)
      if (given !== 0) limits[key] = given
    }
  const memory = limit("memory", (value) => values.bytes(value))
  const cpus = limit("cpus", (value) => values.number(value))
  const pids = limit("pids", (value) => (values.word(value) === "-1" ? "max" : values.integer(value)))
  const set = setter<Partial<ImageService>>(service)

  readKeys(
    node,
    {
      // `readImage` reads them.
      image: () => {},
      build: () => {},
      pull_policy: set("pull", (value) => {
        const policy = values.text(value)
        if (policy === "missing" || policy === "if_not_present") return "missing"
        return policy === "always" || policy === "never" ? policy : only(value.at, "always, missing or never")
      }),
      command: set("command", (value) => values.command(value)),
      entrypoint: set("entrypoint", (value) => values.command(value)),
      environment: (value) => {
        for (const [key, given] of values.pairs(value)) environment.set(key, given ?? context.lookup(key))
      },
      env_file: (value) => {
        for (const item of values.oneOrMore(value)) {
          let path = item
          let isRequired = true
          let isRaw = false
          if (item.kind === "map") {
            path = get(item, "path") ?? fail(item.at, "Invalid", "a file has to have a path")
            readKeys(item, {
              path: () => {},
              required: (given) => {
                isRequired = values.boolean(given)
              },
              format: (given) => {
                isRaw = values.choice(given, ["raw"]) === "raw"
              }
            })
          }
          for (const [key, given] of context.envFile(path, isRequired, isRaw)) fromFiles.set(key, given)
        }
      },
      ports: set("ports", (value) => values.list(value).flatMap((item) => readPort(item, values))),
      // Services of a network reach all ports of each other.
      expose: (value) => {
        for (const item of values.list(value)) values.at(item, () => parsePorts("expose", values.word(item)))
      },
      volumes: (value) => mounts.push(...readMounts(value, context.mounts)),
      tmpfs: (value) => mounts.push(...readTmpfs(value, context.mounts)),
      depends_on: (value) =>
        readDependencies(value, context, (on, condition, at) => {
          dependsOn.set(on, condition)
          dependencies.set(on, at)
        }),
      healthcheck: set("healthcheck", (value) => readHealthcheck(value, values)),
      networks: set("networks", (value) => readNetworks(value, context)),
      network_mode: (value) => {
        if (values.text(value) !== "none") only(value.at, "none")
        if (get(node, "networks") !== undefined) fail(value.at, "Invalid", "it excludes networks")
        service.networks = {}
      },
      // Read before all others.
      profiles: () => {},
      working_dir: set("cwd", (value) => values.text(value)),
      user: set("user", (value) => values.text(value)),
      hostname: set("hostname", (value) => values.text(value)),
      container_name: (value) => {
        containerName = values.at(value, () => parseName("container_name", values.text(value)))
      },
      extra_hosts: set("extraHosts", (value) => readHosts(value, values)),
      dns: set("dns", (value) => values.oneOrMore(value).map((item) => values.text(item))),
      dns_search: set("dnsSearch", (value) => values.oneOrMore(value).map((item) => values.text(item))),
      // They say something about the service to other tools.
      labels: (value) => void values.pairs(value),
      cap_add: (value) => {
        caps.add = readCapabilities(value, values)
      },
      cap_drop: (value) => {
        caps.drop = readCapabilities(value, values)
      },
      read_only: set("readOnly", (value) => values.boolean(value)),
      ulimits: set("rlimits", (value) => readUlimits(value, values)),
      shm_size: set("shmSize", (value) => values.bytes(value)),
      mem_limit: memory,
      cpus,
      pids_limit: pids,
      deploy: (value) => readDeploy(mapping(value), values, { memory, cpus, pids }),
      stop_signal: (value) => {
        const signal = values.text(value)
        stop.signal =
          signalNumber(signal) === undefined
            ? fail(value.at, "Invalid", `there is no signal ${signal}`)
            : signal
      },
      stop_grace_period: (value) => {
        stop.grace = values.duration(value)
      },
      restart: set("restart", (value) => restartOf(value, values.text(value, 'text, such as "no"'))),
      init: set("init", (value) => values.boolean(value)),
      tty: set("terminal", (value) => values.boolean(value)),
      stdin_open: (value) => {
        if (values.boolean(value)) service.stdin = "pipe"
      },
      sysctls: set("sysctls", (value) =>
        Object.fromEntries(
          values
            .pairs(value)
            .map(([key, given, at]) => [key, given ?? fail(at.at, "Invalid", "expected NAME=VALUE")])
        )
      )
    },
    UNSUPPORTED
  )

  const image = readImage(node, context)
  const env = [...new Map<string, string | undefined>([...fromFiles, ...environment])].filter(
    (pair): pair is [string, string] => pair[1] !== undefined
  )
  if (containerName !== undefined && containerName !== name) {
    const own = containerName
    const on = Object.entries(service.networks ?? { default: {} })
    service.networks = Object.fromEntries(
      on.map(([key, { aliases = [] }]) => [key, { aliases: [own, ...aliases] }])
    )
  }
  return {
    dependencies,
    service: {
      ...service,
      image,
      // Another entrypoint leaves nothing of the image's command, as in Docker.
      ...(service.entrypoint !== undefined && service.command === undefined ? { command: [] } : {}),
      ...(env.length > 0 ? { env: Object.fromEntries(env) } : {}),
      ...(mounts.length > 0 ? { mounts } : {}),
      ...(dependsOn.size > 0 ? { dependsOn: Object.fromEntries(dependsOn) } : {}),
      ...(Object.keys(limits).length > 0 ? { limits } : {}),
      ...(Object.keys(caps).length > 0 ? { capabilities: caps } : {}),
      stop
    }
  }
}

const readDeploy = (
  node: MapNode,
  values: Values,
  limits: Readonly<Record<"memory" | "cpus" | "pids", (value: Node) => void>>
): void =>
  readKeys(
    node,
    {
      mode: (value) => {
        if (values.text(value) !== "replicated") unsupported(value.at, "a service has one container")
      },
      replicas: (value) => {
        if (values.integer(value) !== 1) unsupported(value.at, "a service has one container")
      },
      labels: (value) => void values.pairs(value),
      resources: (value) =>
        readKeys(mapping(value), { limits: (given) => readKeys(mapping(given), limits) }, ["reservations"])
    },
    ["endpoint_mode", "job_mode", "placement", "restart_policy", "rollback_config", "update_config"]
  )
