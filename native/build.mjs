// Builds the native part with plain `cc`, and only what changed: a target is made again when the command
// line or the contents of its sources, or of any header here, differ from those that made it.
import { execFileSync, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const here = fileURLToPath(new URL(".", import.meta.url))
const headers = fileURLToPath(new URL("../node_modules/node-api-headers/include", import.meta.url))

const cflags = [
  "-std=gnu17",
  "-D_GNU_SOURCE",
  "-O2",
  "-g",
  "-Wall",
  "-Wextra",
  "-Werror",
  "-fstack-protector-strong"
]
const sanitizers = ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

/**
 * What is built: name → sources, flags, and copies of shared libraries beside it (name of the copy → library). Under the sanitizers,
 * `static` targets become dynamic, as AddressSanitizer needs it; the addon has UndefinedBehaviorSanitizer alone, as AddressSanitizer would
 * have to be in the runtime first.
 */
const targets = {
  "berth.node": {
    sources: [
      "addon/addon.c",
      "addon/addon_as_root.c",
      "addon/as_root.c",
      "addon/environment.c",
      "addon/fprintf.c",
      "addon/loop.c",
      "addon/packet.c",
      "addon/process.c",
      "common/descriptor.c",
      "addon/seccomp.c",
      "addon/socket.c"
    ],
    flags: ["-fPIC", "-shared", "-fvisibility=hidden", `-I${headers}`],
    libraries: ["-Wl,--exclude-libs,ALL", "-l:libseccomp.a", "-lpthread", "-ldl"]
  },
  "berth-supervisor": {
    sources: [
      "supervisor/supervisor.c",
      "supervisor/connection.c",
      "supervisor/lease.c",
      "common/descriptor.c",
      "supervisor/unit.c",
      "supervisor/child.c",
      "supervisor/mount.c",
      "supervisor/netlink.c",
      "supervisor/network.c",
      "supervisor/nodes.c",
      "supervisor/init.c",
      "supervisor/terminal.c",
      "supervisor/overlay.c",
      "supervisor/volume.c",
      "supervisor/pid_namespace.c",
      "supervisor/privilege.c",
      "supervisor/cgroup.c",
      "common/remove.c",
      "supervisor/plan.c",
      "supervisor/program.c"
    ],
    static: true
  },
  "berth-unpack": {
    sources: [
      "unpack/unpack.c",
      "unpack/source.c",
      "unpack/path.c",
      "unpack/tree.c",
      "common/ring.c",
      "common/confine.c",
      "common/remove.c"
    ],
    flags: ["-ffunction-sections", "-Wl,--gc-sections"],
    libraries: [
      ..."-l:libarchive.a -l:libzstd.a -l:liblzma.a -l:libbz2.a -l:libcrypto.a".split(" "),
      "-lpthread"
    ]
  },
  "berth-pack": {
    sources: ["pack/pack.c", "pack/member.c", "pack/sink.c", "common/ring.c", "common/confine.c"],
    flags: ["-ffunction-sections", "-Wl,--gc-sections"],
    libraries: ["-l:libzstd.a", "-l:libcrypto.a", "-lpthread"]
  },
  "berth-copy": { sources: ["copy/copy.c", "common/confine.c"], static: true },
  "berth-proxy": {
    sources: [
      "proxy/proxy.c",
      "proxy/outbound.c",
      "proxy/pair.c",
      "proxy/toxic.c",
      "proxy/timer.c",
      "proxy/datagram.c",
      "proxy/target.c",
      "proxy/sockets.c",
      "common/descriptor.c"
    ],
    static: true
  },
  "berth-names": {
    sources: [
      "names/names.c",
      "names/allowed.c",
      "names/server.c",
      "names/forward.c",
      "names/message.c",
      "names/table.c",
      "common/descriptor.c"
    ],
    static: true
  },
  "plan-dump": { sources: ["fuzz/plan_dump.c", "supervisor/plan.c"] }
}

/** What the sanitized supervisor executes inside of containers, where AddressSanitizer's libraries are missing. */
const INSIDE = "berth-supervisor-inside"

const isPlain = (name) => name.endsWith(".node") || name === INSIDE

/** These link ISA-L. */
const compressing = ["berth-unpack", "berth-pack"]

/** Debian has no static ISA-L: unless `isal` is one, a program finds a copy of the shared library beside itself. */
const withIsal = (target, isal) =>
  isal === undefined
    ? {
        ...target,
        flags: [...target.flags, "-Wl,-rpath,$ORIGIN"],
        libraries: [...target.libraries, "-lisal"],
        shared: { "libisal.so.2": "libisal.so.2" }
      }
    : { ...target, libraries: [...target.libraries, isal], static: true }

const plan = (name, target, { flags, libraries, out, sanitize }) => [
  ...cflags,
  ...(sanitize
    ? [...sanitizers, `-fsanitize=${isPlain(name) ? "" : "address,"}undefined`, `-DINSIDE="${out}/${INSIDE}"`]
    : ["-D_FORTIFY_SOURCE=2"]),
  ...(target.flags ?? []),
  ...(target.static && (!sanitize || name === INSIDE) ? ["-static"] : []),
  ...flags,
  "-o",
  `${out}/${name}`,
  ...target.sources.map((source) => `${here}${source}`),
  ...(target.libraries ?? []),
  ...libraries
]

const compile = (cc, args) =>
  new Promise((resolve, reject) => {
    const child = spawn(cc, args, { stdio: ["ignore", "inherit", "inherit"] })
    child.on("error", (cause) =>
      reject(new Error(`build: cannot run the C compiler "${cc}": ${cause.message}`))
    )
    child.on("exit", (code) =>
      code === 0 ? resolve() : reject(new Error(`build: ${cc} ended with ${code}`))
    )
  })

/**
 * Builds the targets that are named, by default all of them, into the folder `out`; ends the process if one fails.
 *
 * @param {{ sanitize?: boolean, cc?: string, out?: string, names?: string[], flags?: string[], libraries?: string[], isal?: string }} options
 */
export const build = async ({
  sanitize = false,
  cc = process.env.CC ?? "cc",
  out = `${here}build${sanitize ? "/sanitize" : ""}`,
  names = Object.keys(targets),
  flags = [],
  libraries = [],
  isal
} = {}) => {
  mkdirSync(out, { recursive: true })
  const headerContents = readdirSync(here, { recursive: true })
    .filter((file) => file.endsWith(".h") && !file.startsWith("build/"))
    .sort()
    .map((file) => readFileSync(`${here}${file}`))
  const jobs = [...names, ...(sanitize ? [INSIDE] : [])].map(async (name) => {
    const own = targets[name === INSIDE ? "berth-supervisor" : name]
    const target = compressing.includes(name) ? withIsal(own, isal) : own
    const args = plan(name, target, { flags, libraries, out, sanitize })
    const hash = createHash("sha256").update(JSON.stringify([cc, args]))
    for (const content of [...headerContents, ...target.sources.map((s) => readFileSync(`${here}${s}`))])
      hash.update(content)
    const digest = hash.digest("hex")
    const stamp = `${out}/.${name}.sha256`
    const shared = target.shared ?? {}
    const isThere = [name, ...Object.keys(shared)].every((file) => existsSync(`${out}/${file}`))
    if (isThere && existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return
    await compile(cc, args)
    for (const [copy, library] of Object.entries(shared)) {
      const path = execFileSync(cc, [`-print-file-name=${library}`], { encoding: "utf8" }).trim()
      copyFileSync(path, `${out}/${copy}`)
    }
    writeFileSync(stamp, digest)
  })
  const failed = (await Promise.allSettled(jobs)).find((result) => result.status === "rejected")
  if (failed) {
    console.error(failed.reason.message)
    process.exit(1)
  }
}
