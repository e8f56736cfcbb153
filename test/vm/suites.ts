/** Which tests are run in the virtual machine, by mode. */
export type Mode = "bare" | "systemd" | "user"

export const modes: ReadonlyArray<Mode> = ["bare", "systemd", "user"]

export const suites: Readonly<Record<Mode, ReadonlyArray<string>>> = {
  bare: ["CgroupLimits", "CgroupEvents", "Pause", "AppArmor", "Container", "hostile/OtherCalls"].map(
    (name) => `test/${name}.test.ts`
  ),
  systemd: ["Cgroup", "Systemd"].map((name) => `test/${name}.test.ts`),
  user: ["Cgroup", "Systemd", "Rootless"].map((name) => `test/${name}.test.ts`)
}
