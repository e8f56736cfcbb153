/**
 * What a cgroup uses. `Cgroup` exports these types.
 *
 * @since 0.1.0
 */

/**
 * How long processes waited for a resource: cgroup-v2.rst and psi.rst. Version 2.
 *
 * @since 0.1.0
 * @category models
 */
export interface PressureTimes {
  /** The part of the last 10, 60 and 300 seconds, in percent. */
  readonly avg10: number
  readonly avg60: number
  readonly avg300: number
  /** In all, in microseconds. */
  readonly totalMicros: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Pressure {
  /** At least one process waited. */
  readonly some: PressureTimes
  /** All that were not idle waited at once. */
  readonly full: PressureTimes | undefined
}

/**
 * How often the limits of memory have had an effect: counters. A value that the tree cannot give is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface MemoryEvents {
  /** Reclaimed from although below `low`; held up at `high`; about to go past `max`. */
  readonly low: number | undefined
  readonly high: number | undefined
  readonly max: number | undefined
  /** At `max`, and nothing could be reclaimed. */
  readonly oom: number | undefined
  /** Processes that the OOM killer has ended, and times that it ended all of a cgroup. */
  readonly oomKill: number | undefined
  readonly oomGroupKill: number | undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export interface PidsEvents {
  /** Forks that failed at the limit. */
  readonly max: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface IoStats {
  /** `MAJOR:MINOR`. */
  readonly device: string
  readonly readBytes: number
  readonly writtenBytes: number
  readonly reads: number
  readonly writes: number
}

/**
 * @since 0.1.0
 * @category models
 */
export interface HugetlbStats {
  /** Bytes. */
  readonly current: number | undefined
  readonly limit: number | undefined
  /** Allocations that failed at the limit. */
  readonly failures: number | undefined
}

/**
 * What a cgroup uses, read at once. A value that this tree cannot give is undefined.
 *
 * @since 0.1.0
 * @category models
 */
export interface Stats {
  readonly memory: {
    /** Bytes in use now. */
    readonly current: number | undefined
    /** The most bytes that were in use. */
    readonly peak: number | undefined
    /** The limit in bytes, undefined where there is none. */
    readonly limit: number | undefined
    /** Bytes of swap in use. */
    readonly swap: number | undefined
    /** Bytes of what processes have allocated, of page cache, of the kernel's own and of sockets' buffers. */
    readonly anon: number | undefined
    readonly file: number | undefined
    readonly kernel: number | undefined
    readonly sockets: number | undefined
    readonly pageFaults: number | undefined
    readonly majorPageFaults: number | undefined
    /** Processes that the OOM killer has ended. */
    readonly oomKills: number | undefined
    readonly events: MemoryEvents
  }
  readonly cpu: {
    /** CPU time used, in microseconds. */
    readonly usageMicros: number | undefined
    readonly userMicros: number | undefined
    readonly systemMicros: number | undefined
    /** The limit in CPUs, undefined where there is none. */
    readonly limit: number | undefined
    /** Periods in which it ran, in which it was held back, and for how long in all, in microseconds. */
    readonly periods: number | undefined
    readonly throttledPeriods: number | undefined
    readonly throttledMicros: number | undefined
    /** CPU time beyond the quota, in microseconds. */
    readonly burstMicros: number | undefined
  }
  readonly pids: {
    readonly current: number | undefined
    readonly peak: number | undefined
    readonly limit: number | undefined
    /** Forks that failed at the limit. */
    readonly failures: number | undefined
  }
  /** Of the devices that have been used. */
  readonly io: ReadonlyArray<IoStats>
  /** By size: `2MB`. */
  readonly hugetlb: Readonly<Record<string, HugetlbStats>>
  /** By device: handles and objects in use. */
  readonly rdma: Readonly<Record<string, { readonly handles: number; readonly objects: number }>>
  /** By resource: how much of it is in use. */
  readonly misc: Readonly<Record<string, number>>
  readonly pressure: {
    readonly cpu: Pressure | undefined
    readonly memory: Pressure | undefined
    readonly io: Pressure | undefined
  }
}
