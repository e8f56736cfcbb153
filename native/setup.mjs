// The one set-up step in front of `npm run demo` and `npm test`. It does nothing when nothing is missing:
// npm's packages, the system libraries that the native part is built against, and the native build itself.
// Plain JavaScript on purpose: it runs before there is anything but Node and a C compiler.
import { spawnSync } from "node:child_process"
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Debian package → a header that it ships, which is how its presence is known without asking dpkg. */
const libraries = {
  "libarchive-dev": "archive.h",
  "libseccomp-dev": "seccomp.h",
  "libisal-dev": "isa-l/igzip_lib.h",
  "libzstd-dev": "zstd.h",
  "liblzma-dev": "lzma.h",
  "libbz2-dev": "bzlib.h",
  "libssl-dev": "openssl/evp.h"
}

const run = (command, args) => {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ["ignore", "inherit", "inherit"] })
  if (status !== 0) {
    console.error(`setup: ${command} ${args.join(" ")} failed${error ? `: ${error.message}` : ""}`)
    process.exit(1)
  }
}

const installPackages = () => {
  const lock = JSON.parse(readFileSync(`${root}/package-lock.json`, "utf8"))
  const missing = Object.entries(lock.packages).some(
    ([path, entry]) => path !== "" && !entry.optional && !existsSync(`${root}/${path}`)
  )
  if (missing) run("npm", ["ci"])
}

const installLibraries = () => {
  const prefixes = ["/usr/include", "/usr/local/include"]
  const missing = Object.entries(libraries)
    .filter(([, header]) => !prefixes.some((prefix) => existsSync(`${prefix}/${header}`)))
    .map(([name]) => name)
  if (missing.length === 0) return
  const install = `apt-get install --yes --no-install-recommends ${missing.join(" ")}`
  if (!existsSync("/usr/bin/apt-get")) {
    console.error(
      `setup: these libraries are missing: ${missing.join(" ")} (Debian's names). Install them and run again.`
    )
    process.exit(1)
  }
  if (process.getuid() !== 0) {
    console.error(
      `setup: system libraries are missing. Run this, then the same command again:\n\n  sudo ${install}\n`
    )
    process.exit(1)
  }
  run("apt-get", ["update"])
  run("apt-get", install.split(" ").slice(1))
}

/** The package for npm contains code of these libraries, whose licenses ask for their text. */
const copyLicenses = () => {
  const folder = `${root}/native/build/licenses`
  mkdirSync(folder, { recursive: true })
  for (const name of Object.keys(libraries)) {
    const license = `/usr/share/doc/${name}/copyright`
    if (existsSync(license)) copyFileSync(license, `${folder}/${name}`)
  }
}

if (process.platform !== "linux") {
  console.error(`setup: the native part is for Linux, this is ${process.platform}: nothing was built.`)
  process.exit(0)
}
installPackages()
installLibraries()
copyLicenses()
const { build } = await import("./build.mjs")
await build({ sanitize: process.argv.includes("--sanitize") })
