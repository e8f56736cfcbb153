/** The commands, with their options and examples. What a command does loads when it runs. */
import * as Command from "@effect/cli/Command"
import * as Effect from "effect/Effect"
import type { Invocation } from "./invocation.ts"
import {
  choice,
  configOf,
  flag,
  number,
  optionalWord,
  type Parts,
  text,
  texts,
  type Values,
  word,
  words
} from "./options.ts"

/** What every command is told besides its own options. */
export interface Common {
  readonly json: boolean
  readonly debug: boolean
  readonly folder: string | undefined
}

/** What a command does, and its exit code; without one it is 0. */
type Body<Options> = (options: Options, invocation: Invocation) => Promise<number | void>

/** Calls a command. */
export type Call = (common: Common, body: (invocation: Invocation) => Promise<number | void>) => Promise<void>

/** A command, to be run and to be explained. */
export interface Entry {
  readonly name: string
  /** What follows its name and options. */
  readonly operands: string
  readonly summary: string
  readonly parts: Parts
  readonly examples: ReadonlyArray<string>
  readonly make: (call: Call) => Command.Command<string, never, never, unknown>
}

export const common = {
  json: flag("json", "Prints JSON: one document, or one in each line while something runs."),
  debug: flag("debug", "Prints a failure with its cause and its stack."),
  folder: text({
    name: "folder",
    value: "PATH",
    help: "Berth's folder, with images, layers, volumes and state. Default: /var/lib/berth for root, else $XDG_DATA_HOME/berth."
  })
} as const

const command = <const All extends Parts>(entry: {
  readonly name: string
  readonly operands?: string
  readonly summary: string
  readonly parts: All
  readonly examples: ReadonlyArray<string>
  readonly load: () => Promise<Body<Values<All>>>
}): Entry => {
  const { load, name, parts, summary } = entry
  const operands = Object.values(parts).filter(({ usage }) => !usage.startsWith("-"))
  return {
    operands: operands.map(({ usage }) => usage).join(" "),
    ...entry,
    make: (call) =>
      Command.make(name, configOf({ ...parts, ...common }), (parsed) => {
        const { debug, folder, json, ...options } = parsed as Common & Values<All>
        return Effect.promise(() =>
          call({ debug, folder, json }, async (invocation) => (await load())(options as never, invocation))
        )
      }).pipe(Command.withDescription(summary)) as never
  }
}

const platform = text({
  name: "platform",
  value: "OS/ARCHITECTURE",
  help: "Which image of several is meant. Default: this machine's."
})

const named = word("NAME", "The name of an image.")

const running = {
  image: word(
    "IMAGE",
    "The name of an image in the store or in a registry; host, which is this machine's own root; the absolute path of a folder that is a root; or oci:PATH, an OCI layout."
  ),
  interactive: flag("i, interactive", "Passes the input of berth on."),
  tty: flag("t, tty", "Gives the container a terminal, and passes the input on."),
  env: texts({
    name: "e, env",
    value: "KEY=VALUE",
    help: "Sets a variable. KEY alone has the value that it has here."
  }),
  volume: texts({
    name: "v, volume",
    value: "[SOURCE:]TARGET[:ro]",
    help: "Mounts a file or folder of this machine, if SOURCE begins with / or ., or the volume of that name, which is made if it is missing. A volume without SOURCE ends with the container."
  }),
  workdir: text({ name: "w, workdir", value: "PATH", help: "The folder in which the command runs." }),
  user: text({
    name: "u, user",
    value: "USER[:GROUP]",
    help: "The user, by names of the image or by numbers."
  }),
  hostname: text({ name: "hostname", value: "NAME", help: "Default: the container's id." }),
  entrypoint: text({
    name: "entrypoint",
    value: "PROGRAM",
    help: "Replaces the image's entrypoint; '' removes it."
  }),
  network: choice(
    "network",
    ["none", "host", "outbound"],
    "A loopback alone, this machine's own network, or one that reaches other machines by TCP and by name."
  ),
  allow: texts({
    name: "allow",
    value: "NAME[:PORT]",
    help: "A network that reaches this name, such as *.example.org:443, address or range, and no other. Can be repeated."
  }),
  publish: texts({
    name: "p, publish",
    value: "[[ADDRESS:]PORT:]PORT[/udp]",
    help: "Has a port of this machine lead to one of the container. Without ADDRESS it is a port of localhost, without the first PORT any free one."
  }),
  memory: text({ name: "m, memory", value: "BYTES", help: "The limit of memory: 512m, 1GiB." }),
  cpus: number({
    name: "cpus",
    value: "NUMBER",
    help: "The limit of processor time: 1.5 is one and a half CPUs."
  }),
  pids: number({ name: "pids", value: "NUMBER", help: "The limit of processes." }),
  readOnly: flag("read-only", "Makes the container's root read-only."),
  init: flag(
    "init",
    "Runs a small init as process 1, so that signals end a command that does not handle them."
  ),
  userns: flag("userns", "Gives the container a user namespace with ids that no other one has. Needs root."),
  platform,
  pull: choice("pull", ["missing", "always", "never"], "When the registry is asked for the image.")
} as const

/** Who a runner or a client of a fleet is. */
const identity = {
  tokenFile: text({
    name: "token-file",
    value: "FILE",
    help: "The file of the token that the runners and the clients of a fleet share."
  }),
  tlsCertificate: text({
    name: "tls-certificate",
    value: "FILE",
    help: "The certificate of this side, for tls://, in the PEM format."
  }),
  tlsKey: text({ name: "tls-key", value: "FILE", help: "The key of the certificate." }),
  tlsAuthority: text({
    name: "tls-authority",
    value: "FILE",
    help: "The authority that the certificate of the other side has to be from. A runner with one needs no token."
  })
} as const

const store = () => import("./store.ts")

export const commands: readonly [Entry, ...ReadonlyArray<Entry>] = [
  command({
    name: "run",
    operands: "IMAGE [-- COMMAND...]",
    summary: "Runs a command in a new container, which is gone when the command ends.",
    parts: running,
    examples: [
      "berth run host -- ls -l /tmp",
      "berth run -it debian:12 -- bash",
      "echo hello | berth run -i --memory 256m --cpus 0.5 host -- cat",
      "berth run -v .:/work -w /work --network outbound node:22 -- npm test"
    ],
    load: async () => (await import("./run.ts")).run
  }),
  command({
    name: "demo",
    summary: "Shows what Berth does, on this machine's own root.",
    parts: {},
    examples: ["berth demo"],
    load: async () => (await import("./demo.ts")).demo
  }),
  command({
    name: "doctor",
    summary: "Tells what Berth can use on this machine, and how to add what is missing.",
    parts: {},
    examples: ["berth doctor", "berth doctor --json"],
    load: async () => (await import("./doctor.ts")).doctor
  }),
  command({
    name: "build",
    summary: "Builds the image of a Dockerfile.",
    parts: {
      context: word(
        "CONTEXT",
        "The folder whose files COPY and ADD take, or the address of a git repository: https://HOST/PATH.git#REF:FOLDER."
      ),
      tag: text({
        name: "t, tag",
        value: "NAME",
        help: "The image's name in the store. Default: none, and the steps are kept for the next build."
      }),
      file: text({
        name: "f, file",
        value: "PATH",
        help: "The Dockerfile, relative to CONTEXT. Default: Dockerfile."
      }),
      target: text({ name: "target", value: "STAGE", help: "The stage to build. Default: the last one." }),
      buildArg: texts({
        name: "build-arg",
        value: "KEY=VALUE",
        help: "The value of an ARG. KEY alone has the value that it has here."
      }),
      buildContext: texts({
        name: "build-context",
        value: "NAME=PLACE",
        help: "What FROM and COPY --from find by a name: a folder, the address of a git repository, docker-image://NAME, or oci-layout://FOLDER."
      }),
      secret: texts({
        name: "secret",
        value: "id=NAME,src=FILE",
        help: "A secret for RUN --mount=type=secret, from a file, or with env=VARIABLE from the environment."
      }),
      ssh: texts({
        name: "ssh",
        value: "ID[=SOCKET]",
        help: "An SSH agent for RUN --mount=type=ssh. Without SOCKET, that of SSH_AUTH_SOCK."
      }),
      allow: texts({
        name: "allow",
        value: "RIGHT",
        help: "Lets steps ask for a right: network.host or security.insecure."
      }),
      network: choice(
        "network",
        ["none", "host"],
        "What the steps reach: nothing, or what this machine reaches."
      ),
      noCache: flag("no-cache", "Runs all steps, also those that have been made before."),
      provenance: flag("provenance", "The image's manifest says what it was made of, in annotations."),
      cacheFrom: texts({
        name: "cache-from",
        value: "PLACE",
        help: "Takes layers that the store lacks from there: the name of an image in a registry, or a path that begins with / or a dot."
      }),
      cacheTo: text({
        name: "cache-to",
        value: "PLACE",
        help: "Writes the layers of all steps there, for --cache-from on another machine."
      }),
      platform,
      compression: choice(
        "compression",
        ["gzip", "zstd"],
        "How new layers of an image with a name are compressed."
      ),
      output: text({
        name: "o, output",
        value: "PATH",
        help: "Writes the result to this file or folder, in place of an image in the store."
      }),
      format: choice(
        "format",
        ["folder", "tar", "oci-archive", "oci-layout", "docker-archive"],
        "What --output writes: files, an archive of them, or the image."
      ),
      path: text({
        name: "path",
        value: "PATH",
        help: "The file or folder of the result that --output writes. Default: all files, /."
      }),
      explain: flag("explain", "Says which steps would run, and why, and runs none of them.")
    },
    examples: [
      "berth build --tag team/app:1 .",
      "berth build --network host --build-arg VERSION=2 --tag app .",
      "berth build --output dist --path /app/dist/. ."
    ],
    load: async () => (await import("./build.ts")).build
  }),
  command({
    name: "images",
    summary: "Lists the images of the store.",
    parts: {},
    examples: ["berth images"],
    load: async () => (await store()).images
  }),
  command({
    name: "pull",
    summary: "Gets an image from its registry.",
    parts: { name: named, platform },
    examples: ["berth pull alpine:3", "berth pull --platform linux/arm64 127.0.0.1:5000/team/app:1"],
    load: async () => (await store()).pull
  }),
  command({
    name: "push",
    summary: "Sends an image to the registry of its name, or of another one.",
    parts: { name: named, to: optionalWord("REFERENCE", "The name in the registry. Default: NAME.") },
    examples: ["berth push alpine:3 127.0.0.1:5000/team/alpine:3"],
    load: async () => (await store()).push
  }),
  command({
    name: "load",
    summary: "Puts the images of an archive into the store.",
    parts: {
      archive: optionalWord("FILE", "An archive of docker save, podman save or skopeo. Default: the input."),
      tag: text({
        name: "tag",
        value: "NAME",
        help: "The one image of the archive that is meant. Default: all."
      })
    },
    examples: ["berth load alpine.tar", "docker save alpine:3 | berth load"],
    load: async () => (await store()).load
  }),
  command({
    name: "save",
    summary: "Writes an image to a file or a folder.",
    parts: {
      name: named,
      path: word("PATH", "The file or folder to write."),
      format: choice(
        "format",
        ["docker-archive", "oci-archive", "oci-layout"],
        "A tar that docker load and podman load read, or an OCI layout as a tar or a folder."
      ),
      platform
    },
    examples: ["berth save alpine:3 alpine.tar"],
    load: async () => (await store()).save
  }),
  command({
    name: "inspect",
    summary: "Shows the parts of an image of the store.",
    parts: { name: named, platform },
    examples: ["berth inspect alpine:3", "berth inspect alpine:3 --json"],
    load: async () => (await store()).inspect
  }),
  command({
    name: "tag",
    summary: "Gives an image of the store another name.",
    parts: {
      name: named,
      newName: word("NEW-NAME", "The name that it gets; an image that has it loses it.")
    },
    examples: ["berth tag alpine:3 127.0.0.1:5000/team/alpine:3"],
    load: async () => (await store()).tag
  }),
  command({
    name: "rm",
    summary: "Removes names of images; berth gc then frees their space.",
    parts: { names: words("NAME", "The name of an image.") },
    examples: ["berth rm alpine:3 debian:12", "berth gc"],
    load: async () => (await store()).rm
  }),
  command({
    name: "gc",
    summary: "Removes the blobs and layers that no name reaches and no container uses.",
    parts: {
      dryRun: flag("dry-run", "Only tells what would be removed."),
      keep: text({
        name: "keep",
        value: "SIZE",
        help: "The size that layers of builds and fixtures, and caches of builds, may have together, as 10GiB. Default: no limit."
      })
    },
    examples: ["berth gc --dry-run", "berth gc --keep 10GiB"],
    load: async () => (await store()).gc
  }),
  command({
    name: "volumes",
    summary: "Lists the volumes that have a name, or removes some.",
    parts: {
      remove: texts({ name: "remove", value: "NAME", help: "Removes this volume, with all its files." })
    },
    examples: ["berth volumes", "berth volumes --remove data"],
    load: async () => (await store()).volumes
  }),
  command({
    name: "runner",
    summary: "Runs containers for the programs of a fleet, until a signal ends it.",
    parts: {
      listen: text({
        name: "listen",
        value: "ADDRESS",
        help: "Where clients reach it: tcp://HOST:PORT, tls://HOST:PORT or unix:/PATH."
      }),
      ...identity,
      name: text({ name: "name", value: "NAME", help: "Default: the hostname." }),
      label: texts({
        name: "label",
        value: "KEY=VALUE",
        help: "What programs can choose the runner by. Can be repeated."
      }),
      memory: text({
        name: "memory",
        value: "BYTES",
        help: "The memory that its containers get together, by their limits: 8GiB. Default: all of the machine's."
      }),
      cpus: number({
        name: "cpus",
        value: "NUMBER",
        help: "The CPUs that its containers get together. Default: all of the machine's."
      }),
      databaseFile: text({
        name: "database-file",
        value: "FILE",
        help: "The file with the address of a Postgres in which programs find the runner: postgres://USER:PASSWORD@HOST:PORT/NAME."
      }),
      lease: text({
        name: "lease",
        value: "TIME",
        help: "How long what a program has here stays when nothing is heard of the program. Default: 10s."
      }),
      allowImage: texts({
        name: "allow-image",
        value: "PREFIX",
        help: "Allows the images of this registry or path, registry.example.com/team/, and no others. Can be repeated. Default: all."
      }),
      allowPush: texts({
        name: "allow-push",
        value: "PREFIX",
        help: "Lets programs send images of their containers to this registry or path. Can be repeated."
      }),
      allowHostImage: flag(
        "allow-host-image",
        "Allows the image host: the files of this machine, which containers then read."
      ),
      allowBind: texts({
        name: "allow-bind",
        value: "FOLDER",
        help: "Lets containers bind this folder, as a whole. Can be repeated."
      }),
      allowHostNamespaces: flag(
        "allow-host-namespaces",
        "Lets containers use this machine's own network and other namespaces."
      ),
      allowPrivileges: flag(
        "allow-privileges",
        "Lets containers have more rights than by default: capabilities, seccomp profiles, devices."
      ),
      maxMemory: text({
        name: "max-memory",
        value: "BYTES",
        help: "The largest memory limit of a container, and that of one without."
      }),
      maxCpus: number({
        name: "max-cpus",
        value: "NUMBER",
        help: "The largest CPU limit of a container, and that of one without."
      }),
      maxPids: number({
        name: "max-pids",
        value: "NUMBER",
        help: "The largest limit of processes, and that of a container without."
      }),
      maxDisk: text({
        name: "max-disk",
        value: "BYTES",
        help: "The largest writable layer of a container, and that of one that asks for none. Needs root and mkfs.ext4."
      })
    },
    examples: [
      "berth runner --listen tcp://0.0.0.0:7411 --token-file token --max-memory 2GiB",
      "berth runner --listen tls://0.0.0.0:7411 --tls-certificate crt --tls-key key --tls-authority ca"
    ],
    load: async () => (await import("./runner.ts")).runner
  }),
  command({
    name: "fleet",
    summary: "Lists the runners of a fleet, with their room and their containers.",
    parts: {
      runner: texts({
        name: "runner",
        value: "ADDRESS",
        help: "The address of a runner, as its --listen has it. Can be repeated."
      }),
      databaseFile: text({
        name: "database-file",
        value: "FILE",
        help: "The file with the address of the Postgres in which the runners are, as their --database-file has it."
      }),
      ...identity,
      watch: flag("watch", "Goes on and shows each change, until a signal ends it.")
    },
    examples: [
      "berth fleet --runner tcp://10.0.0.5:7411 --token-file token",
      "berth fleet --watch --database-file database --token-file token"
    ],
    load: async () => (await import("./fleet.ts")).fleet
  })
]

/** The program's command line, of which `call` runs the commands. */
export const makeRoot = (call: Call): Command.Command<"berth", never, never, unknown> => {
  const [first, ...others] = commands
  return Command.make("berth").pipe(
    Command.withSubcommands([first.make(call), ...others.map(({ make }) => make(call))])
  ) as never
}
