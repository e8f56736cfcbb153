/** The virtual machine's kernel and root filesystem, made of Debian's packages and cached. */
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import { checkout } from "./checkout.ts"

const here = `${checkout}/test/vm`
const cache = `${process.env.XDG_CACHE_HOME ?? `${os.homedir()}/.cache`}/berth-vm`

/** The processor of the machine, by Node's name: this machine's kind, or another, of whose root nothing can be executed here. */
export type Processor = "x64" | "arm64"

const kernels: Readonly<Record<Processor, string>> = {
  x64: "linux-image-cloud-amd64",
  arm64: "linux-image-cloud-arm64"
}

/** The packages that the tests and the native part need, besides Debian's essential ones. */
const PACKAGES = [
  ...["systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "kmod", "iproute2", "procps"],
  ...["uidmap", "apparmor", "busybox-static", "zstd", "docker-registry"],
  ...["libarchive13", "libseccomp2", "libisal2", "libzstd1", "libssl3", "libstdc++6"]
]

/** The packages of a root that is only unpacked. Its native part is that of npm's packages, which needs no library. */
const UNPACKED = [
  ...["bash", "busybox-static", "coreutils", "dash", "findutils", "grep", "hostname", "iproute2", "kmod"],
  ...["libc-bin", "libstdc++6", "mount", "passwd", "procps", "sed", "tar", "util-linux", "zstd"]
]

const say = (line: string): void => console.log(`vm: ${line}`)

const run = (command: string, args: ReadonlyArray<string>): void => {
  const { status, error } = spawnSync(command, args, { stdio: ["ignore", "inherit", "inherit"] })
  if (status !== 0)
    throw new Error(
      `${command} ended with ${error?.message ?? status}: it is part of making the machine's disks`
    )
}

const read = (path: string): string => fs.readFileSync(path, "utf8")

const codename = (): string => /^VERSION_CODENAME=(\w+)$/m.exec(read("/etc/os-release"))?.[1] ?? "stable"

/** The kernel's version in apt's lists of this machine; a newer version makes a new root. */
const kernelVersion = (kernel: string): string =>
  spawnSync("apt-cache", ["policy", kernel], { encoding: "utf8" }).stdout?.match(/Candidate: (.*)/)?.[1] ?? ""

const WEEK_MILLIS = 7 * 24 * 60 * 60 * 1000

const forgetOld = (): void => {
  for (const name of fs.readdirSync(cache)) {
    const used = fs.statSync(`${cache}/${name}`, { throwIfNoEntry: false })?.mtimeMs ?? Date.now()
    if (used < Date.now() - WEEK_MILLIS) fs.rmSync(`${cache}/${name}`, { recursive: true, force: true })
  }
}

/** The cached folder for these inputs, filled by `make` unless an earlier run has done so. */
const cached = (name: string, inputs: ReadonlyArray<string>, make: (folder: string) => void): string => {
  const key = createHash("sha256").update(JSON.stringify(inputs)).digest("hex").slice(0, 16)
  const folder = `${cache}/${name}-${key}`
  if (!fs.existsSync(folder)) {
    fs.mkdirSync(cache, { recursive: true })
    forgetOld()
    const start = Date.now()
    const made = fs.mkdtempSync(`${cache}/making-${name}-`)
    try {
      make(made)
      // Another run may have made the folder meanwhile.
      if (!fs.existsSync(folder)) fs.renameSync(made, folder)
    } finally {
      fs.rmSync(made, { recursive: true, force: true })
    }
    say(`made ${folder} in ${Math.round((Date.now() - start) / 1000)} s`)
  }
  const now = new Date()
  fs.utimesSync(folder, now, now)
  return folder
}

/** Makes a file system of a folder without a mount. It has no journal, as it is used once. */
const makeDisk = (from: string, disk: string, size: string): void => {
  run("truncate", ["--size", size, disk])
  run("mke2fs", ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "nodiscard", "-d", from, disk])
}

/** Puts npm's Node for another processor into a root. */
const addNode = (processor: Processor, to: string): void => {
  const folder = `${to}/node`
  const name = `node-linux-${processor}`
  const [major] = process.versions.node.split(".")
  run("npm", ["install", "--silent", "--no-save", "--force", "--prefix", folder, `${name}@${major}`])
  fs.renameSync(`${folder}/node_modules/${name}/bin/node`, `${to}/usr/bin/node`)
  fs.rmSync(folder, { recursive: true })
}

/** What mmdebstrap is told, besides the release and the folder. `hook` makes the rest of the root. */
const options = (processor: Processor, hook: string): ReadonlyArray<string> =>
  processor === process.arch
    ? [
        ...["--variant=essential", `--include=${PACKAGES.join(",")}`, "--dpkgopt=force-unsafe-io"],
        `--customize-hook=${hook} ${process.execPath}`
      ]
    : [
        ...["--variant=extract", `--architectures=${processor}`, `--include=${UNPACKED.join(",")}`],
        `--extract-hook=${hook} ""`
      ]

/** The folder with `vmlinuz` and `root.img`. */
export const root = (processor: Processor): string => {
  const kernel = kernels[processor]
  const packages = processor === process.arch ? PACKAGES : UNPACKED
  const scripts = [read(`${here}/customize`), read(`${here}/guest/init`)]
  return cached(
    processor === process.arch ? "root" : `root-${processor}`,
    [kernel, kernelVersion(kernel), codename(), process.version, ...packages, ...scripts],
    (folder) => {
      say(`making the root from ${codename()}'s packages`)
      const tree = fs.mkdtempSync(`${os.tmpdir()}/berth-vm-root-`)
      try {
        // path-exclude= would make mmdebstrap start a Python filter for each package.
        const hook = `${here}/customize "$1" ${kernel} ${folder}`
        run("mmdebstrap", ["--quiet", ...options(processor, hook), codename(), `${tree}/root`])
        if (processor !== process.arch) addNode(processor, `${tree}/root`)
        makeDisk(`${tree}/root`, `${folder}/root.img`, "4G")
      } finally {
        // The removal is slow, and nothing waits for it.
        fs.promises
          .rm(tree, { recursive: true, force: true })
          .catch((error) => say(`${tree} was not removed: ${error}`))
      }
    }
  )
}
