/** Which tests are run in the virtual machine, by mode. */
export type Mode = "bare" | "systemd" | "user"

export const modes: ReadonlyArray<Mode> = ["bare", "systemd", "user"]

export const suites: Readonly<Record<Mode, ReadonlyArray<string>>> = {
  bare: ["test/Container.test.ts", "test/Cgroup.test.ts"],
  systemd: ["test/Container.test.ts", "test/Cgroup.test.ts"],
  user: ["test/Berth.test.ts"]
}
