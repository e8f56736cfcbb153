/** The part of the doctor that looks at files and programs. All of it is synchronous and cannot fail. */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import type { Check } from "../../Doctor.ts"
import type { Kind } from "../../Namespace.ts"
import type { Tree } from "../cgroup/tree.ts"
import { options as pastaOptions } from "../network/pasta.ts"
import { isEnabled } from "../security/appArmorProfiles.ts"
import { AT_FDCWD, native, O_PATH } from "../system/addon.ts"
import { nativeFix, programPath, whyNotLoaded } from "../system/nativePart.ts"

/** Whether this is not root, as far as the runtime tells: Deno throws without --allow-sys. */
export const isRootless = (): boolean => {
  try {
    return process.geteuid?.() !== 0
  } catch {
    return true
  }
}

/** The contents of a file, without white space around them; undefined if it cannot be read. */
const read = (path: string): string | undefined => {
  try {
    return fs.readFileSync(path, "utf8").trim()
  } catch {
    return undefined
  }
}

const sysctl = (name: string): string | undefined => read(`/proc/sys/${name.replaceAll(".", "/")}`)

export const isWritable = (folder: string): boolean => {
  try {
    fs.accessSync(folder, fs.constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** The kernel configuration's name for a kind of namespace. */
export const kernelName = (kind: Kind): string =>
  kind === "mount" ? "NAMESPACES" : kind === "network" ? "NET_NS" : `${kind.toUpperCase()}_NS`

// The sysctls that can block user namespaces, each with a value that blocks and a value that does not.
const obstacles: ReadonlyArray<readonly [name: string, blocking: string, open: string]> = [
  ["user.max_user_namespaces", "0", "15000"],
  ["kernel.unprivileged_userns_clone", "0", "1"],
  ["kernel.apparmor_restrict_unprivileged_userns", "1", "0"]
]

/** The commands that unblock user namespaces; undefined if no sysctl blocks them. */
export const userNamespaceLimits = (): string | undefined => {
  const blocking = obstacles.filter(([name, value]) => sysctl(name) === value)
  return blocking.length === 0
    ? undefined
    : blocking
        .map(
          ([name, , open]) =>
            `echo ${name}=${open} >> /etc/sysctl.d/99-berth.conf && sysctl -w ${name}=${open}`
        )
        .join("\n")
}

/** In a chroot no mount of /proc/self/mountinfo is at "/", unless the root of the chroot is itself a mount point. */
export const isInChroot = (): boolean =>
  !(read("/proc/self/mountinfo") ?? "/ / / / /").split("\n").some((line) => line.split(" ")[4] === "/")

export const noUserNamespaces = (): string =>
  isInChroot()
    ? "This is a chroot, and the kernel allows no user namespaces in a chroot: run the program as root, or enter the folder with systemd-nspawn or bwrap instead of chroot"
    : "No sysctl blocks them: in a container, allow them in its runtime (seccomp or AppArmor); else use a kernel with CONFIG_USER_NS=y"

export const userNamespaceDetail = (): string =>
  obstacles
    .flatMap(([name]) => {
      const value = sysctl(name)
      return value === undefined ? [] : [`${name}=${value}`]
    })
    .join(", ")

const OLDEST = [5, 12] as const

/** The system calls that every container needs are those of Linux 5.12 (README). */
export const kernel = (): Check => {
  const release = os.release()
  const [major, minor] = release.split(".").map(Number)
  const old = major! < OLDEST[0] || (major === OLDEST[0] && minor! < OLDEST[1])
  return {
    name: "kernel",
    required: true,
    status: old ? "missing" : "ok",
    detail: `Linux ${release}`,
    fix: old ? `Use Linux ${OLDEST.join(".")} or later` : undefined
  }
}

const part = (
  name: "addon" | "unpacker",
  file: string,
  failure: { readonly why: string; readonly hint: string } | undefined
): Check => ({
  name,
  required: name === "addon",
  status: failure === undefined ? "ok" : "missing",
  detail: failure?.why ?? file,
  fix: failure?.hint
})

export const addon = (): Check => {
  const file = programPath("berth.node")
  try {
    native()
    return part("addon", file, undefined)
  } catch (cause) {
    return part("addon", file, whyNotLoaded(cause))
  }
}

/** Without arguments the unpacker only reports that it has none, once its libraries are loaded. */
export const unpacker = (): Check => {
  const file = programPath("berth-unpack")
  const { error, stderr, stdout } = spawnSync(file, [], { encoding: "utf8", timeout: 5000 })
  if (stdout?.startsWith("error confine ")) return part("unpacker", file, undefined)
  const failed = error?.message ?? `${file} fails: ${stderr.trim().replaceAll("\n", "; ")}`
  return part("unpacker", file, {
    why: fs.existsSync(file) ? failed : `${file} is missing`,
    hint: nativeFix()
  })
}

/** The path of a program, searched as a shell does, and in folders of helpers that no PATH names. */
export const find = (name: string, further: ReadonlyArray<string> = []): string | undefined =>
  [...(process.env.PATH ?? "").split(":"), "/usr/sbin", "/sbin", ...further]
    .filter((folder) => folder !== "")
    .map((folder) => `${folder}/${name}`)
    .find((path) => {
      try {
        fs.accessSync(path, fs.constants.X_OK)
        return fs.statSync(path).isFile()
      } catch {
        return false
      }
    })

const program = (name: "pasta" | "netavark", folders: ReadonlyArray<string>, packages: string): Check => {
  const path = find(name, folders)
  const run =
    path === undefined ? undefined : spawnSync(path, ["--version"], { encoding: "utf8", timeout: 5000 })
  const works = run?.status === 0
  return {
    name,
    required: false,
    status: works ? "ok" : "missing",
    detail: works
      ? `${path}, ${run.stdout.split("\n")[0]}`
      : path === undefined
        ? "not installed"
        : `${path} --version fails: ${run?.error?.message ?? run?.stderr}`,
    fix: works ? undefined : `apt-get install ${packages}`
  }
}

const TUN = "/dev/net/tun"

const pasta = (): Check => {
  const check = program("pasta", [], "passt")
  if (check.status !== "ok") return check
  const { stderr, stdout } = spawnSync(find("pasta")!, ["--help"], { encoding: "utf8", timeout: 5000 })
  const lacking = pastaOptions.filter(
    (option) => option.startsWith("--") && !`${stdout}${stderr}`.includes(option)
  )
  if (lacking.length > 0)
    return {
      ...check,
      status: "missing",
      detail: `${check.detail}: too old, it has no ${lacking.join(", ")}`,
      fix: "apt-get install passt"
    }
  return isWritable(TUN)
    ? check
    : {
        ...check,
        status: "limited",
        detail: `${check.detail}: this user cannot open ${TUN}`,
        fix: `modprobe tun && chmod 0666 ${TUN}`
      }
}

/** Whether a program has privileges that its user lacks: by its mode, or by capabilities of the file. */
const isPrivileged = (path: string): boolean => {
  const { mode, uid } = fs.statSync(path)
  if ((mode & 0o4000) !== 0 && uid === 0) return true
  const fd = native().openIn(AT_FDCWD, path, O_PATH, 0, 0)
  if (fd < 0) return false
  const length = native().xattr(fd, "security.capability", new Uint8Array(64))
  native().close(fd)
  return length > 0
}

const RANGE = "100000-165535"

const rangesOfIds = (): Check => {
  const check = { name: "ranges of ids", required: false } as const
  if (!isRootless()) return { ...check, status: "ok", detail: "root has every id", fix: undefined }
  const { uid, username } = os.userInfo()
  const files = ["/etc/subuid", "/etc/subgid"]
  const lacking = files.filter(
    (file) =>
      !(read(file) ?? "").split("\n").some((line) => [username, String(uid)].includes(line.split(":")[0]!))
  )
  const helpers = ["newuidmap", "newgidmap"].map((name) => ({ name, path: find(name) }))
  const absent = helpers.filter(({ path }) => path === undefined).map(({ name }) => name)
  const weak = helpers.flatMap(({ path }) => (path !== undefined && !isPrivileged(path) ? [path] : []))
  const wrong = [
    ...lacking.map((file) => `${username} has no range in ${file}`),
    ...absent.map((name) => `no ${name}`),
    ...weak.map((path) => `${path} has neither the set-user-ID bit of root nor capabilities`)
  ]
  const fixes = [
    ...(lacking.length > 0 ? [`usermod --add-subuids ${RANGE} --add-subgids ${RANGE} ${username}`] : []),
    ...(absent.length > 0 ? ["apt-get install uidmap"] : []),
    ...weak.map((path) => `chmod u+s ${path}`)
  ]
  return wrong.length === 0
    ? { ...check, status: "ok", detail: "newuidmap, newgidmap and ranges for them", fix: undefined }
    : {
        ...check,
        status: "missing",
        detail: `${wrong.join("; ")}: containers have one id, root`,
        fix: fixes.join("\n")
      }
}

export const appArmor = (): Check => {
  const check = { name: "AppArmor", required: false } as const
  if (!isEnabled())
    return {
      ...check,
      status: "missing",
      detail: "disabled in this kernel; profiles cannot be used",
      fix: "Boot a kernel with CONFIG_SECURITY_APPARMOR=y with lsm=...,apparmor (or apparmor=1 security=apparmor)"
    }
  return find("apparmor_parser") === undefined
    ? {
        ...check,
        status: "limited",
        detail: "loaded profiles can be used; new ones cannot be loaded, because apparmor_parser is missing",
        fix: "apt-get install apparmor"
      }
    : { ...check, status: "ok", detail: "enabled", fix: undefined }
}

export const cgroupFix = (kind: Tree["kind"]): string =>
  !isRootless()
    ? kind === "none"
      ? "mount -t cgroup2 none /sys/fs/cgroup"
      : "Boot with version 2 (systemd.unified_cgroup_hierarchy=1), or mount the controllers: cgroups(7)"
    : fs.existsSync("/run/systemd/system")
      ? "mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' > /etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload\nthen log in again, or run the program by: systemd-run --user --scope -p Delegate=yes"
      : `As root, make a cgroup that is yours: mkdir /sys/fs/cgroup/berth && chown -R ${process.geteuid?.()} /sys/fs/cgroup/berth, enable the controllers in the cgroup.subtree_control above it, and move the program there`

export const others = (): ReadonlyArray<Check> => [
  rangesOfIds(),
  appArmor(),
  pasta(),
  program("netavark", ["/usr/lib/podman", "/usr/libexec/podman"], "netavark aardvark-dns")
]
