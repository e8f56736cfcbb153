// `npm run packages [-- TARGET ...]`: writes what is published to npm into the folder `packages`. The package berth is JavaScript alone.
// A package @berth/TARGET is the native part for one kind of machine, such as linux-x64-gnu; npm installs the one that fits. It is built
// against a folder of Debian's packages for that kind of machine, which stays in packages/sysroots: remove it to take newer ones.
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import { build } from "./build.mjs"

const root = fileURLToPath(new URL("..", import.meta.url))
const packages = `${root}packages`
const own = JSON.parse(fs.readFileSync(`${root}package.json`, "utf8"))

/** Node's name of a processor → Debian's and the compiler's, and what builds ISA-L's assembler files. */
const processors = {
  x64: { debian: "amd64", compiler: "x86_64-linux-gnu", assembler: () => ["AS=nasm", "host_cpu=x86_64"] },
  arm64: {
    debian: "arm64",
    compiler: "aarch64-linux-gnu",
    assembler: (sysroot) => [
      `AS=aarch64-linux-gnu-gcc --sysroot=${sysroot} -D__ASSEMBLY__`,
      "host_cpu=aarch64",
      "arch=aarch64"
    ]
  }
}

/** These are static, and the same for both C libraries. */
const programs = [
  "berth-supervisor",
  "berth-unpack",
  "berth-proxy",
  "berth-names",
  "berth-copy",
  "berth-pack"
]

/** The Debian packages whose code is in the native part. Their licenses ask for their text. */
const libraries = [
  "libarchive-dev",
  "libzstd-dev",
  "liblzma-dev",
  "libbz2-dev",
  "libssl-dev",
  "libseccomp-dev",
  "libisal-dev",
  "libc6-dev"
]

const all = Object.keys(processors).flatMap((cpu) => [`linux-${cpu}-gnu`, `linux-${cpu}-musl`])

const stop = (message) => {
  console.error(`packages: ${message}`)
  process.exit(1)
}

const run = (command, args, cwd = root) => {
  const { error, status, stderr, stdout } = spawnSync(command, args, { cwd, encoding: "utf8" })
  if (status !== 0) stop(`${command} ${args.join(" ")} failed: ${error?.message ?? `${stdout}${stderr}`}`)
  return stdout.trim()
}

const checkTools = (cpus) => {
  const tools = { mmdebstrap: "mmdebstrap", make: "make" }
  if (cpus.includes("x64")) tools.nasm = "nasm"
  for (const cpu of cpus) {
    const { compiler } = processors[cpu]
    tools[`${compiler}-gcc`] = cpu === process.arch ? "gcc" : `gcc-${compiler.replace("_", "-")}`
  }
  const folders = process.env.PATH.split(":")
  const missing = Object.keys(tools).filter(
    (tool) => !folders.some((folder) => fs.existsSync(`${folder}/${tool}`))
  )
  if (missing.length === 0) return
  const install = `apt-get install --no-install-recommends ${missing.map((tool) => tools[tool]).join(" ")}`
  stop(`${missing.join(", ")} cannot be found. Install Debian's packages, and run it again: ${install}`)
}

/** ISA-L as a static library, which Debian lacks, built of Debian's source. */
const makeIsal = (cpu, sysroot) => {
  const folder = `${sysroot}/isal`
  fs.mkdirSync(folder)
  const source = fs.readdirSync(sysroot).find((name) => name.includes(".orig.tar."))
  run("tar", ["-xf", `${sysroot}/${source}`, "-C", folder, "--strip-components=1"])
  const { assembler, compiler } = processors[cpu]
  const options = ["--jobs=2", "--silent", "--file=Makefile.unx", "units=igzip crc"]
  const tools = [`CC=${compiler}-gcc --sysroot=${sysroot}`, `AR=${compiler}-ar`, ...assembler(sysroot)]
  run("make", [...options, ...tools, "lib"], folder)
}

/** The folder of the headers and libraries of one kind of machine. */
const sysrootOf = (cpu) => {
  const folder = `${packages}/sysroots/${cpu}`
  if (fs.existsSync(folder)) return folder
  fs.mkdirSync(`${packages}/sysroots`, { recursive: true })
  // An interrupted run leaves no half of a sysroot under its name.
  const made = fs.mkdtempSync(`${packages}/sysroots/making-${cpu}-`)
  const release =
    /^VERSION_CODENAME=(\w+)$/m.exec(fs.readFileSync("/etc/os-release", "utf8"))?.[1] ?? "stable"
  const fetchIsal = [
    'cd "$1"',
    "sed -i 's/^deb /deb-src /' etc/apt/sources.list",
    'export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"',
    "apt-get -qq update",
    "apt-get -qq -o APT::Sandbox::User=root source --download-only libisal"
  ].join(" && ")
  run("mmdebstrap", [
    ...["--quiet", "--variant=extract", `--architectures=${processors[cpu].debian}`],
    ...[`--include=${[...libraries, "musl-dev"].join(",")}`, `--extract-hook=${fetchIsal}`, release, made]
  ])
  makeIsal(cpu, made)
  fs.renameSync(made, folder)
  return folder
}

/** What replaces glibc by musl in the command line of a shared library. Debian's musl-gcc does so only for this machine's processor. */
const muslOptions = (cpu, sysroot) => {
  const { compiler } = processors[cpu]
  const name = compiler.replace("gnu", "musl")
  const system = [`${sysroot}/usr/include/${name}`, run(`${compiler}-gcc`, ["-print-file-name=include"])]
  const kernel = [`${sysroot}/usr/include`, `${sysroot}/usr/include/${compiler}`]
  return {
    flags: [
      ...["-nostdinc", "-nostdlib", ...system.flatMap((folder) => ["-isystem", folder])],
      ...kernel.flatMap((folder) => ["-idirafter", folder])
    ],
    libraries: [`-L${sysroot}/lib/${name}`, "-l:libc.so", "-lgcc"]
  }
}

const buildNative = async (cpu) => {
  const sysroot = sysrootOf(cpu)
  const cc = `${processors[cpu].compiler}-gcc`
  const flags = [`--sysroot=${sysroot}`, "-s"]
  const musl = muslOptions(cpu, sysroot)
  const addon = { cc, names: ["berth.node"] }
  const isal = `${sysroot}/isal/bin/isa-l.a`
  await build({ cc, names: programs, out: `${sysroot}/programs`, flags, isal })
  await build({ ...addon, out: `${sysroot}/gnu`, flags })
  await build({
    ...addon,
    out: `${sysroot}/musl`,
    flags: [...flags, ...musl.flags],
    libraries: musl.libraries
  })
}

/** Makes the folder of a package and its tarball. */
const write = (folder, manifest, fill) => {
  fs.rmSync(folder, { recursive: true, force: true })
  fs.mkdirSync(folder, { recursive: true })
  fs.copyFileSync(`${root}LICENSE`, `${folder}/LICENSE`)
  fill(folder)
  fs.writeFileSync(`${folder}/package.json`, `${JSON.stringify(manifest, undefined, 2)}\n`)
  const [{ filename, size, unpackedSize }] = JSON.parse(
    run("npm", ["pack", "--json", "--pack-destination", packages], folder)
  )
  const kilobytes = (bytes) => `${Math.ceil(bytes / 1000)} kB`
  console.log(`packages/${filename}: ${kilobytes(size)}, unpacked ${kilobytes(unpackedSize)}`)
}

const { license, version } = own

const writeNative = (target) => {
  const [, cpu, libc] = target.split("-")
  const sysroot = sysrootOf(cpu)
  const manifest = {
    name: `@berth/${target}`,
    version,
    description: `The native part of berth for Linux on ${cpu} with ${libc === "gnu" ? "glibc 2.34 or later" : "musl"}.`,
    license,
    os: ["linux"],
    cpu: [cpu],
    libc: [libc === "gnu" ? "glibc" : "musl"],
    files: ["berth.node", ...programs, "licenses"],
    preferUnplugged: true
  }
  write(`${packages}/${target}`, manifest, (folder) => {
    fs.copyFileSync(`${sysroot}/${libc}/berth.node`, `${folder}/berth.node`)
    for (const name of programs) fs.copyFileSync(`${sysroot}/programs/${name}`, `${folder}/${name}`)
    fs.mkdirSync(`${folder}/licenses`)
    for (const name of libraries)
      fs.copyFileSync(`${sysroot}/usr/share/doc/${name}/copyright`, `${folder}/licenses/${name}`)
  })
}

const writeMain = () => {
  const { devDependencies: _, scripts: __, ...kept } = own
  const files = own.files.filter((name) => !name.startsWith("native/build"))
  const optionalDependencies = Object.fromEntries(all.map((target) => [`@berth/${target}`, version]))
  write(`${packages}/berth`, { ...kept, files, optionalDependencies }, (folder) => {
    for (const name of [...files, "README.md"])
      fs.cpSync(`${root}${name}`, `${folder}/${name}`, { recursive: true })
  })
}

const asked = process.argv.length > 2 ? process.argv.slice(2) : all
const unknown = asked.find((target) => !all.includes(target))
if (unknown !== undefined) stop(`${unknown} is no target. The targets are ${all.join(", ")}.`)
const cpus = Object.keys(processors).filter((cpu) => asked.some((target) => target.includes(`-${cpu}-`)))
checkTools(cpus)
for (const cpu of cpus) await buildNative(cpu)
asked.forEach(writeNative)
writeMain()
