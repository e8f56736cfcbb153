/**
 * Images of real servers, made of this machine's Debian packages: apt-get downloads a server's package with all that it
 * depends on, and their files, unpacked, are the image's only layer. No maintainer script runs, so it needs no root.
 *
 * An image is an OCI layout in the temporary folder, where it stays as a cache: the same versions of the packages make
 * the same image, which the next test program finds. One that was not used for a week is removed.
 */
import { execFile, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as os from "node:os"
import { promisify } from "node:util"
import * as FileSystem from "@effect/platform/FileSystem"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as Effect from "effect/Effect"
import type { Berth } from "../../lib/Berth.ts"
import type { BerthError } from "../../lib/BerthError.ts"
import * as Image from "../../lib/Image.ts"
import { withFileLock } from "../../lib/internal/disk/fileLock.ts"
import { writeImage, writeIndex } from "./images.ts"

const execute = promisify(execFile)

interface Server {
  readonly packages: ReadonlyArray<string>
  readonly user: string
  readonly port: number
  readonly env: Readonly<Record<string, string>>
  /** Folders that the server's user can make files in. */
  readonly folders: ReadonlyArray<string>
  /** Contents of files by their path. */
  readonly files?: Readonly<Record<string, string>>
  /** What `/usr/local/bin/serve` runs: it prepares the data where there are none, and becomes the server. */
  readonly script: string
}

const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/** The servers. Their passwords are those of the environment of a container, as of the official images. */
const servers = {
  postgres: {
    packages: ["postgresql-15", "tzdata"],
    user: "postgres",
    port: 5432,
    env: {
      PATH: `${path}:/usr/lib/postgresql/15/bin`,
      PGDATA: "/var/lib/postgresql/data",
      LANG: "C.UTF-8",
      POSTGRES_PASSWORD: "postgres"
    },
    folders: ["var/lib/postgresql", "var/run/postgresql"],
    script: `if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username=postgres --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 --no-sync
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec postgres -c "listen_addresses=*" "$@"`
  },
  mariadb: {
    packages: ["mariadb-server-core", "mariadb-client-core"],
    user: "mysql",
    port: 3306,
    env: { PATH: path, MARIADB_ROOT_PASSWORD: "mariadb" },
    folders: ["var/lib/mysql", "run/mysqld"],
    script: `if [ ! -d /var/lib/mysql/mysql ]; then
  mariadb-install-db --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve --cross-bootstrap
  {
    echo "create user 'root'@'%' identified by '$MARIADB_ROOT_PASSWORD';"
    echo "grant all on *.* to 'root'@'%' with grant option;"
    echo "delete from mysql.global_priv where user = 'root' and host not in ('%', 'localhost');"
    echo "flush privileges;"
  } >/tmp/init.sql
  set -- --init-file=/tmp/init.sql "$@"
fi
exec mariadbd --bind-address=:: --skip-name-resolve --socket=/run/mysqld/mysqld.sock "$@"`
  },
  redis: {
    packages: ["redis-server"],
    user: "redis",
    port: 6379,
    env: { PATH: path },
    folders: ["data"],
    script: `exec redis-server --bind "*" "-::*" --protected-mode no --dir /data "$@"`
  },
  nginx: {
    packages: ["nginx-light"],
    user: "",
    port: 80,
    env: { PATH: path },
    folders: [],
    files: {
      "etc/nginx/conf.d/default.conf":
        "server { listen 80 default_server; listen [::]:80 default_server; root /var/www/html; }\n",
      "var/www/html/index.html": "<h1>Welcome to nginx</h1>\n"
    },
    script: `exec nginx -g "daemon off; error_log stderr notice;" "$@"`
  },
  rabbitmq: {
    packages: ["rabbitmq-server"],
    user: "rabbitmq",
    port: 5672,
    env: { PATH: `/usr/lib/rabbitmq/bin:${path}`, HOME: "/var/lib/rabbitmq", RABBITMQ_LOGS: "-" },
    folders: ["var/lib/rabbitmq", "var/lib/rabbitmq/mnesia", "var/log/rabbitmq"],
    // A user `guest` who can log in from everywhere.
    files: { "etc/rabbitmq/rabbitmq.conf": "loopback_users.guest = false\n" },
    script: `exec rabbitmq-server "$@"`
  }
} satisfies Readonly<Record<string, Server>>

export type ServerName = keyof typeof servers

/** Packages that the servers' scripts need. Every Debian has them, so no package says that it depends on them. */
const essential = "dash bash coreutils sed grep mawk findutils hostname procps libc-bin".split(" ")

/** Packages that only maintainer scripts need, or features that no test uses. They are most of the bytes. */
const unneeded = /^(perl|lib.*perl|python|libpython|libllvm|libz3|locales|libc-l10n|usrmerge|dpkg_)/

const users = ["postgres", "mysql", "redis", "www-data", "rabbitmq"]
const FIRST_ID = 901

const common: Readonly<Record<string, string>> = {
  "etc/passwd": [
    "root:x:0:0:root:/root:/bin/sh",
    ...users.map((name, k) => `${name}:x:${FIRST_ID + k}:${FIRST_ID + k}::/nonexistent:/bin/sh`),
    "nobody:x:65534:65534::/nonexistent:/bin/false",
    ""
  ].join("\n"),
  "etc/group": [
    "root:x:0:",
    ...users.map((name, k) => `${name}:x:${FIRST_ID + k}:`),
    "nogroup:x:65534:",
    ""
  ].join("\n"),
  "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"
}

/** Unpacks all packages of `$1` into `$2`, whose `/bin`, `/lib` and `/sbin` are those of `/usr`, as in every Debian. */
const unpack = `set -e
mkdir -p "$2/tmp" "$2/root" "$2/run" "$2/var"
for name in bin sbin lib lib64; do mkdir -p "$2/usr/$name"; ln -s "usr/$name" "$2/$name"; done
ln -s ../run "$2/var/run"
for package in "$1"/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$2" --keep-directory-symlink --no-same-owner \
    --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale --exclude=./usr/share/lintian
done
ln -s mawk "$2/usr/bin/awk"`

const aptOptions = (folder: string): ReadonlyArray<string> =>
  [
    "Dir::State::status=/dev/null",
    `Dir::Cache=${folder}`,
    "APT::Sandbox::User=root",
    "APT::Install-Recommends=false",
    "Debug::NoLocking=true"
  ].flatMap((option) => ["-o", option])

/** Downloads and unpacks a server's packages below `scratch`, and writes a layout to `layout`. */
const make = async (server: Server, scratch: string, layout: string): Promise<void> => {
  const [cache, root] = [`${scratch}/cache`, `${scratch}/root`]
  fs.mkdirSync(`${cache}/archives/partial`, { recursive: true })
  const wanted = [...essential, ...server.packages]
  await execute("apt-get", ["-q", "-y", ...aptOptions(cache), "--download-only", "install", ...wanted])
  for (const name of fs.readdirSync(`${cache}/archives`))
    if (unneeded.test(name)) fs.rmSync(`${cache}/archives/${name}`)
  await execute("sh", ["-c", unpack, "sh", `${cache}/archives`, root])
  const script = `#!/bin/sh\nset -e\n${server.script}\n`
  for (const [file, content] of Object.entries({
    ...common,
    ...server.files,
    "usr/local/bin/serve": script
  })) {
    fs.mkdirSync(`${root}/${file.slice(0, file.lastIndexOf("/"))}`, { recursive: true })
    fs.writeFileSync(`${root}/${file}`, content)
  }
  fs.chmodSync(`${root}/usr/local/bin/serve`, 0o755)
  for (const folder of ["tmp", ...server.folders]) {
    fs.mkdirSync(`${root}/${folder}`, { recursive: true })
    fs.chmodSync(`${root}/${folder}`, 0o1777)
  }
  const tar = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]
  await execute("tar", [...tar, "-cf", `${scratch}/layer.tar`, "-C", root, "."])
  const config = {
    Entrypoint: ["/usr/local/bin/serve"],
    Env: Object.entries(server.env).map(([name, value]) => `${name}=${value}`),
    User: server.user,
    ExposedPorts: { [`${server.port}/tcp`]: {} },
    WorkingDir: "/"
  }
  const manifest = writeImage(layout, [{ tar: fs.readFileSync(`${scratch}/layer.tar`), as: "zstd" }], {
    config: { config }
  })
  writeIndex(layout, [manifest])
}

/** Where the images are. Each user has a folder, so that no other one can change them. */
const folder = `${os.tmpdir()}/berth-test-servers-${process.getuid?.()}`

const WEEK_MILLIS = 7 * 24 * 60 * 60 * 1000

const forgetOld = (): void => {
  for (const name of fs.readdirSync(folder)) {
    const used = fs.statSync(`${folder}/${name}`, { throwIfNoEntry: false })?.mtimeMs ?? Date.now()
    if (used < Date.now() - WEEK_MILLIS) fs.rmSync(`${folder}/${name}`, { recursive: true, force: true })
  }
}

const cached = (name: ServerName, versions: string) =>
  Effect.gen(function* () {
    const server = servers[name]
    const inputs = JSON.stringify([versions, essential, common, unpack, unneeded.source, server])
    const key = createHash("sha256").update(inputs).digest("hex").slice(0, 16)
    const layout = `${folder}/${name}-${key}`
    const fill = Effect.promise(async () => {
      if (fs.existsSync(layout)) return
      forgetOld()
      const scratch = fs.mkdtempSync(`${folder}/making-`)
      try {
        await make(server, scratch, `${scratch}/layout`)
        fs.renameSync(`${scratch}/layout`, layout)
      } finally {
        fs.rmSync(scratch, { recursive: true, force: true })
      }
    })
    yield* withFileLock(yield* FileSystem.FileSystem, `${folder}/${name}.lock`, () => fill)
    const now = new Date()
    fs.utimesSync(layout, now, now)
    return layout
  })

export interface Service {
  /** Why there is no image, or false: the `skip` of a test. */
  readonly missing: string | false
  /** The image, unpacked into this Berth. */
  readonly image: Effect.Effect<Image.Image, BerthError, Berth>
}

const absent = (reason: string): Service => ({
  missing: reason,
  image: Effect.die(new Error(`there is no image: ${reason}`))
})

/**
 * The image of a server; the first use makes it, which takes some seconds and the network. A test file awaits it before its suites,
 * as a runner has to know by then what is skipped.
 */
export const service = async (name: ServerName): Promise<Service> => {
  const { packages } = servers[name]
  for (const tool of ["apt-get", "dpkg-deb", "zstd"])
    if (process.platform !== "linux" || !fs.existsSync(`/usr/bin/${tool}`))
      return absent(`no ${tool} on this machine`)
  fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
  // An image of Debian keeps no cache of its lists, and making one takes a second each time.
  const lists = ["-o", `Dir::Cache::pkgcache=${folder}/pkgcache.bin`]
  const policy = spawnSync("apt-cache", [...lists, "policy", ...packages], { encoding: "utf8" }).stdout
  const versions = policy.match(/Candidate: .*\d.*/g) ?? []
  if (versions.length !== packages.length)
    return absent(`apt-get knows no ${packages.join(" or no ")}: apt-get update`)
  try {
    const layout = await Effect.runPromise(
      Effect.provide(cached(name, versions.join()), NodeFileSystem.layer)
    )
    return { missing: false, image: Image.fromLayout(layout) }
  } catch (error) {
    if (!/Command failed: apt-get/.test(String(error))) throw error
    return absent(`no packages of ${name}: ${String(error).slice(0, 500)}`)
  }
}
