/** podman, with everything that it keeps in a folder of the test's. */
import { spawnSync } from "node:child_process"
import { sh } from "./images.ts"

const isThere = (program: string): boolean => spawnSync(program, ["--version"]).status === 0

export const whyNoPodman: string | false =
  isThere("podman") && isThere("crun") ? false : "no podman, or no crun, on this machine"

export const podmanIn = (folder: string) => {
  const folders = [
    ...["--storage-driver", "vfs", "--root", `${folder}/podman`],
    ...["--runroot", `${folder}/run`, "--tmpdir", `${folder}/tmp`]
  ]
  const podman = (...args: ReadonlyArray<string>): string => sh("podman", ...folders, ...args)
  /** What a container of the image writes. On a hybrid tree crun runs where it does not see version 2's. */
  const run = (image: string, ...command: ReadonlyArray<string>): string =>
    sh(
      ...(["unshare", "--mount", "sh", "-c"] as const),
      'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman "$@"',
      "podman",
      ...folders,
      ...["run", "--rm", "--runtime=crun", "--cgroups=disabled", "--network=none"],
      // podman's own are higher than what a process without CAP_SYS_RESOURCE may have.
      ...["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"],
      image,
      ...command
    )
  return { podman, run }
}
