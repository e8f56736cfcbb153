/** podman, with all its state in a folder of the test. */
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
  /** The output of a container of the image. On a hybrid cgroup tree, crun runs where version 2 is hidden. */
  const run = (image: string, ...command: ReadonlyArray<string>): string =>
    sh(
      ...(["unshare", "--mount", "sh", "-c"] as const),
      'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman "$@"',
      "podman",
      ...folders,
      ...["run", "--rm", "--runtime=crun", "--cgroups=disabled", "--network=none"],
      // podman's default limits are higher than a process without CAP_SYS_RESOURCE may set.
      ...["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"],
      image,
      ...command
    )
  return { podman, run }
}
