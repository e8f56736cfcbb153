/**
 * What a cgroup may use. `Cgroup` exports these types.
 *
 * @since 0.1.0
 */

/**
 * Bytes, as a number or as text with a unit: `"256MiB"`, `"1.5GB"`, `"64m"` (Docker's form, of 1024). `"max"` is no limit.
 *
 * @since 0.1.0
 * @category models
 */
export type Bytes = number | string

/**
 * @since 0.1.0
 * @category models
 */
export interface MemoryLimits {
  /** Past it, the kernel's OOM killer ends processes in the cgroup. Page cache counts. */
  readonly max?: Bytes | undefined
  /** Past it, processes are held up until memory has been reclaimed. Version 2. */
  readonly high?: Bytes | undefined
  /** Below it, nothing is reclaimed as long as it can be had elsewhere. Version 1 has a soft limit in its place. */
  readonly low?: Bytes | undefined
  /** Swap on top of `max`, which has to be given as well. Default: none where `max` is given. */
  readonly swap?: Bytes | undefined
  /** Whether the OOM killer ends all of the cgroup's processes instead of one. Version 2, Linux 4.19. */
  readonly oomGroup?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpuLimits {
  /** The share of CPU time where there is not enough for all, from 1 to 10000. Default 100. Not with `idle`. */
  readonly weight?: number | undefined
  /** The period of `cpus`, in microseconds, from 1000 to 1000000. Default 100000. */
  readonly periodMicros?: number | undefined
  /** How much unused time of earlier periods may be used on top, in microseconds, at most the quota. Linux 5.14. */
  readonly burstMicros?: number | undefined
  /** Whether it runs only when nothing else does (SCHED_IDLE). Linux 5.15. */
  readonly idle?: boolean | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface CpusetLimits {
  /** The CPUs to run on, as a list of numbers and ranges: `"0-3,6"`. */
  readonly cpus?: string | undefined
  /** The memory nodes to allocate on. Default: all that there are. */
  readonly mems?: string | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoDeviceLimits {
  /** A block device on the host, `/dev/vda`, or its numbers, `254:0`. A whole disk, not a partition. */
  readonly device: string
  /** Bytes a second. */
  readonly readBps?: Bytes | undefined
  readonly writeBps?: Bytes | undefined
  /** Operations a second; `"max"` is no limit. */
  readonly readIops?: number | "max" | undefined
  readonly writeIops?: number | "max" | undefined
  /** As `IoLimits.weight`, for this device. */
  readonly weight?: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoLimits {
  /**
   * The share of a disk's time where there is not enough for all, from 1 to 10000; on version 1 to 1000. Default 100.
   * Needs the BFQ scheduler, or on version 2 io.cost.
   */
  readonly weight?: number | undefined
  readonly devices?: ReadonlyArray<IoDeviceLimits> | undefined
}

/**
 * A device that may be used besides `null`, `zero`, `full`, `random`, `urandom`, `tty`, `ptmx` and terminals.
 *
 * @since 0.1.0
 * @category models
 */
export type DeviceRule =
  | {
      /** A device node on the host: `/dev/fuse`. */
      readonly path: string
      /** Some of `r`, `w` and `m`: to read, to write, to make a node. Default `rwm`. */
      readonly access?: string | undefined
    }
  | {
      readonly type: "char" | "block"
      /** Default: any. */
      readonly major?: number | undefined
      readonly minor?: number | undefined
      readonly access?: string | undefined
    }

/**
 * @since 0.1.0
 * @category models
 */
export interface RdmaLimits {
  readonly handles?: number | "max" | undefined
  readonly objects?: number | "max" | undefined
}

/**
 * What a cgroup may use. What is left out is not limited, or, in `Cgroup.update`, stays as it is.
 *
 * @since 0.1.0
 * @category models
 */
export interface Limits {
  /**
   * Memory, page cache included: bytes alone are `{ max }`. Swap is not given on top. Past it, the kernel's OOM killer
   * ends processes in the cgroup.
   */
  readonly memory?: Bytes | MemoryLimits | undefined
  /** CPUs, 0.01 or more: 0.5 is half of one CPU's time, in periods of 100 ms. `"max"` is no limit. */
  readonly cpus?: number | "max" | undefined
  readonly cpu?: CpuLimits | undefined
  readonly cpuset?: CpusetLimits | undefined
  /**
   * Processes and threads at one time; one more makes fork(2) fail with EAGAIN. May be fewer than there are: those stay.
   * `"max"` is no limit.
   */
  readonly pids?: number | "max" | undefined
  readonly io?: IoLimits | undefined
  /** Bytes of huge pages, by their size as the kernel writes it: `{ "2MB": "64MiB" }`. */
  readonly hugetlb?: Readonly<Record<string, Bytes>> | undefined
  /**
   * Which devices may be opened or made: Docker's list and these. `[]` is the list alone. Left out, all may be, as far as
   * the kernel lets the processes: a container's root and mounts are `nodev`, so it has the nodes of its `/dev` alone
   * anyway. That is why it is not the default: it would add 0.1 ms to a start on version 1 and 1 ms on version 2.
   */
  readonly devices?: ReadonlyArray<DeviceRule> | undefined
  /** By device, as in `/sys/class/infiniband`. */
  readonly rdma?: Readonly<Record<string, RdmaLimits>> | undefined
  /** By resource, as in `misc.capacity`. */
  readonly misc?: Readonly<Record<string, number | "max">> | undefined
}
