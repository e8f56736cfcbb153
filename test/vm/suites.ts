/** The tests that run in a machine of another processor, in `bare`. */
export const foreign: ReadonlyArray<string> = ["container/Seccomp", "unpack/UnpackLinks"].map(
  (name) => `test/${name}.test.ts`
)

/** The tests that run in the virtual machine, by mode. */
export type Mode = "bare" | "systemd" | "user"

export const modes: ReadonlyArray<Mode> = ["bare", "systemd", "user"]

export const suites: Readonly<Record<Mode, ReadonlyArray<string>>> = {
  bare: [
    "cgroup/CgroupLimits",
    "cgroup/CgroupEvents",
    "container/Pause",
    "container/AppArmor",
    "container/Container",
    "hostile/OtherCalls",
    "network/Impair"
  ].map((name) => `test/${name}.test.ts`),
  systemd: ["cgroup/Cgroup", "cgroup/Systemd"].map((name) => `test/${name}.test.ts`),
  user: ["cgroup/Cgroup", "cgroup/Systemd", "container/Rootless"].map((name) => `test/${name}.test.ts`)
}
