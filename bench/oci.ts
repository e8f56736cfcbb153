/** The same container for OCI runtimes (runtime-spec, config.json), and the programs that run it. */
import * as fs from "node:fs"
import { Security } from "berth"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Contender, findProgram, type LineProgram, lineProgram, timed, Unmeasured } from "./support.ts"

const capabilities = Security.defaultCapabilities.map((name) => `CAP_${name}`)

const mount = (type: string, destination: string, options: ReadonlyArray<string>) => ({
  type,
  destination,
  source: type,
  options
})

/** As Berth's own plan for the same options has it: namespaces, mounts, masks, capabilities, limits. */
const config = (rootfs: string, cgroup: string) => ({
  ociVersion: "1.0.2",
  process: {
    terminal: false,
    user: { uid: 0, gid: 0, umask: 0o022 },
    args: ["true"],
    env: ["HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    cwd: "/",
    capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
    noNewPrivileges: true
  },
  root: { path: rootfs, readonly: false },
  hostname: "0123456789ab",
  mounts: [
    mount("proc", "/proc", ["nosuid", "nodev", "noexec"]),
    mount("tmpfs", "/dev", ["nosuid", "mode=0755", "size=65536k"]),
    mount("devpts", "/dev/pts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    mount("tmpfs", "/dev/shm", ["nosuid", "nodev", "noexec", "mode=1777", "size=67108864"]),
    mount("mqueue", "/dev/mqueue", ["nosuid", "nodev", "noexec"]),
    mount("sysfs", "/sys", ["nosuid", "nodev", "noexec", "ro"])
  ],
  linux: {
    cgroupsPath: cgroup,
    resources: {
      memory: { limit: 64 * 1024 * 1024 },
      pids: { limit: 64 },
      cpu: { quota: 50000, period: 100000 }
    },
    namespaces: ["pid", "network", "ipc", "uts", "mount", "cgroup"].map((type) => ({ type })),
    maskedPaths: Security.defaultMaskedPaths,
    readonlyPaths: Security.defaultReadonlyPaths
  }
})

// A shell of its own, in a mount namespace of its own: what it mounts is gone with it. The root is an overlay of the
// host's with its writable layer in memory, as Berth's is, made once: a runtime gets its root ready. Version 2 of
// cgroups at `unified` next to version 1 is more than crun takes.
const prepare = `
  folder=$1
  umount /sys/fs/cgroup/unified 2>/dev/null
  mkdir "$folder/memory" "$folder/rootfs" &&
  mount -t tmpfs tmpfs "$folder/memory" &&
  mkdir "$folder/memory/upper" "$folder/memory/work" &&
  mount -t overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" overlay "$folder/rootfs" &&
  echo ready
`

// The shell's fork is cheaper than Node's, which is to the runtime's advantage.
const runtimeLoop = `${prepare}
  while read -r id; do
    if "$2" --root "$folder/state" run --bundle "$folder" "$id" </dev/null >/dev/null 2>"$folder/errors"
    then echo ok
    else tr '\\n' ' ' <"$folder/errors"; echo; "$2" --root "$folder/state" delete --force "$id" >/dev/null 2>&1
    fi
  done
`

// A container that stays, for commands to be executed in.
const execLoop = `${prepare}
  sed -i 's/"args":\\["true"\\]/"args":["sleep","infinity"]/' "$folder/config.json"
  "$2" --root "$folder/state" run --detach --bundle "$folder" "$3" </dev/null >/dev/null 2>"$folder/errors" ||
    { tr '\n' ' ' <"$folder/errors"; echo; exit 1; }
  trap '"$2" --root "$folder/state" delete --force "$3"' EXIT
  echo running
  while read -r line; do
    if "$2" --root "$folder/state" exec "$3" true </dev/null >/dev/null 2>"$folder/errors"
    then echo ok
    else tr '\n' ' ' <"$folder/errors"; echo
    fi
  done
`

const bubblewrapLoop = `${prepare}
  while read -r id; do
    if "$2" --unshare-all --die-with-parent --new-session --hostname 0123456789ab --bind "$folder/rootfs" / \
      --proc /proc --dev /dev --tmpfs /dev/shm --mqueue /dev/mqueue true </dev/null >/dev/null 2>"$folder/errors"
    then echo ok
    else tr '\\n' ' ' <"$folder/errors"; echo
    fi
  done
`

/** A shell that runs a loop with the bundle's folder, the program and a name as its arguments. */
const inBundle = (
  name: string,
  loop: string,
  temporary: string
): Effect.Effect<{ readonly shell: LineProgram }, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    const program = findProgram(name)
    if (program === undefined) return yield* new Unmeasured({ message: "not installed" })
    const folder = `${temporary}/${name}`
    const id = `berth-bench-${process.pid}-${name}`
    fs.mkdirSync(folder)
    fs.writeFileSync(`${folder}/config.json`, JSON.stringify(config(`${folder}/rootfs`, `/${id}`)))
    const shell = yield* lineProgram("unshare", [
      ...["--mount", "--propagation", "slave", "sh", "-c", loop, "sh"],
      ...[folder, program, id]
    ])
    yield* shell.ask("")
    return { shell }
  })

const contender = (
  name: string,
  label: string,
  loop: string,
  temporary: string
): Effect.Effect<Contender, Unmeasured, Scope.Scope> =>
  Effect.map(inBundle(name, loop, temporary), ({ shell }) => {
    let id = 0
    const run = Effect.flatMap(
      Effect.suspend(() => shell.ask(`berth-bench-${process.pid}-${++id}`)),
      (answer) => (answer === "ok" ? Effect.void : new Unmeasured({ message: answer }))
    )
    return { name: label, run: timed(run) }
  })

/** `crun run` or `runc run` of the bundle. */
export const runtime = (name: "crun" | "runc", temporary: string) =>
  contender(name, `${name} run`, runtimeLoop, temporary)

/** `crun exec` or `runc exec` of `true`. */
export const runtimeExec = (
  name: "crun" | "runc",
  temporary: string
): Effect.Effect<Contender, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    const { shell } = yield* inBundle(name, execLoop, temporary)
    const state = yield* shell.ask("")
    if (state !== "running") return yield* new Unmeasured({ message: state })
    const run = Effect.flatMap(shell.ask("go"), (answer) =>
      answer === "ok" ? Effect.void : new Unmeasured({ message: answer })
    )
    return { name: `${name} exec`, run: timed(run) }
  })

/** Not the same container (no cgroup, no limits, no masks), but what many use in place of one. */
export const bubblewrap = (temporary: string) => contender("bwrap", "bwrap", bubblewrapLoop, temporary)
