/**
 * Berth's own policies, as data in the form of Docker's profiles. The default one allows and refuses the same as Docker's:
 * calls that are not named here fail with EPERM, and calls that libseccomp does not know with ENOSYS. Three differences make
 * it safer: no x32, an ABI that no distribution is built for; no sockets of the kernel's cryptography (AF_ALG), which Docker
 * refuses as well since version 29; and no socketcall(2) of 32-bit programs, which could make any socket with it.
 */
import type { SeccompProfile } from "../../Security.ts"

const words = (text: string): ReadonlyArray<string> => text.trim().split(/\s+/)

const files = words(`
  access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
  fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat
  fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown
  lchown32 link linkat listmount _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open
  openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat
  renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync
  sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice
  write writev cachestat`)

const attributes = words(`
  fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr lremovexattr
  lsetxattr removexattr removexattrat setxattr setxattrat`)

const waiting = words(`
  epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
  fanotify_mark futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake inotify_add_watch inotify_init
  inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
  membarrier _newselect pause pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4`)

const memory = words(`
  brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal
  msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages`)

const processes = words(`
  arch_prctl capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid geteuid32 getgid getgid32
  getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit
  get_robust_list getrusage getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set kill landlock_add_rule
  landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall
  riscv_flush_icache riscv_hwprobe rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
  rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam
  sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
  sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 setfsuid
  setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
  setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid set_thread_area set_tid_address setuid setuid32
  sigaltstack sigprocmask sigreturn sysinfo tgkill tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid`)

const talking = words(`
  accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify mq_open mq_timedreceive
  mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd recv recvfrom recvmmsg
  recvmmsg_time64 recvmsg semctl semget semop semtimedop semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat
  shmctl shmdt shmget shutdown socketpair`)

const time = words(`
  alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer
  getrandom gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
  timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times`)

// Without CAP_SYS_TIME these only read the clock's state.
const clock = words("adjtimex clock_adjtime clock_adjtime64")

const x86 = ["modify_ldt"]

const arm = words("arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls")

const inspection = words("process_vm_readv process_vm_writev ptrace")

const administration = words(`
  bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
  lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname
  setns syslog umount umount2 unshare`)

/** The calls that a capability allows in addition: without it, the kernel would refuse most of them anyway. */
const byCapability: Readonly<Record<string, ReadonlyArray<string>>> = {
  CAP_DAC_READ_SEARCH: ["open_by_handle_at"],
  CAP_SYS_ADMIN: administration,
  CAP_SYS_BOOT: ["reboot"],
  CAP_SYS_CHROOT: ["chroot"],
  CAP_SYS_MODULE: words("delete_module init_module finit_module"),
  CAP_SYS_PACCT: ["acct"],
  CAP_SYS_PTRACE: [...words("kcmp pidfd_getfd process_madvise"), ...inspection],
  CAP_SYS_RAWIO: words("iopl ioperm"),
  CAP_SYS_TIME: words("settimeofday stime clock_settime clock_settime64"),
  CAP_SYS_TTY_CONFIG: ["vhangup"],
  CAP_SYS_NICE: words("get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
  CAP_SYSLOG: ["syslog"],
  CAP_BPF: ["bpf"],
  CAP_PERFMON: ["perf_event_open"]
}

type Rule = NonNullable<SeccompProfile["syscalls"]>[number]
type Condition = NonNullable<Rule["args"]>[number]

const allow = (
  names: ReadonlyArray<string>,
  args: ReadonlyArray<Condition> = [],
  only: Pick<Rule, "includes" | "excludes"> = {}
): Rule => ({ names, action: "SCMP_ACT_ALLOW", args, ...only })

const is = (value: number): Condition => ({ index: 0, value, op: "SCMP_CMP_EQ" })

const AF_ALG = 38
const AF_VSOCK = 40
const AF_MAX = 46

// AF_VSOCK reaches the host's hypervisor from any network namespace. A filter compares 64 bits, and the kernel uses 32 of
// them for the family: a rule must not allow every number above a limit.
const sockets: ReadonlyArray<Rule> = [
  allow(["socket"], [{ index: 0, value: AF_ALG, op: "SCMP_CMP_LT" }]),
  ...Array.from({ length: AF_MAX - AF_ALG }, (_, k) => AF_ALG + k)
    .filter((family) => family !== AF_ALG && family !== AF_VSOCK)
    .map((family) => allow(["socket"], [is(family)]))
]

// socketcall(2) has the family in memory, which a filter cannot read, and with each rule for `socket` libseccomp allows
// it for all families unless an earlier rule says otherwise. Since Linux 4.3 each operation has a system call of its
// own, which musl tries first, as does a glibc that was built for such kernels; the glibc of s390's distributions was
// not.
const s390 = ["s390", "s390x"]
const multiplexer: ReadonlyArray<Rule> = [
  { names: ["socketcall"], action: "SCMP_ACT_ERRNO", errnoRet: 38, excludes: { arches: s390 } },
  allow(["socketcall"], [], { includes: { arches: s390 } })
]

// personality(2): Linux's default and PER_LINUX32, each with and without UNAME26, and a query.
const personalities: ReadonlyArray<Rule> = [0, 0x8, 0x20000, 0x20008, 0xffffffff].map((value) =>
  allow(["personality"], [is(value)])
)

// No new namespaces by clone(2). A filter cannot read the flags of clone3(2), which are in memory: without clone3,
// programs fall back to clone(2) if the error is ENOSYS (38).
const CLONE_NEW = 0x7e020000
const cloning = (unless: ReadonlyArray<string>): ReadonlyArray<Rule> => [
  allow(["clone"], [{ index: 0, value: CLONE_NEW, valueTwo: 0, op: "SCMP_CMP_MASKED_EQ" }], {
    excludes: { caps: unless, arches: s390 }
  }),
  allow(["clone"], [{ index: 1, value: CLONE_NEW, valueTwo: 0, op: "SCMP_CMP_MASKED_EQ" }], {
    includes: { arches: s390 },
    excludes: { caps: unless }
  }),
  { names: ["clone3"], action: "SCMP_ACT_ERRNO", errnoRet: 38, excludes: { caps: unless } }
]

const common = [...files, ...attributes, ...waiting, ...memory, ...processes, ...talking, ...time]

/** Docker's default policy, ordered by purpose. */
export const defaultProfile: SeccompProfile = {
  defaultAction: "SCMP_ACT_ERRNO",
  defaultErrnoRet: 1,
  archMap: [
    { architecture: "SCMP_ARCH_X86_64", subArchitectures: ["SCMP_ARCH_X86"] },
    { architecture: "SCMP_ARCH_AARCH64", subArchitectures: ["SCMP_ARCH_ARM"] },
    { architecture: "SCMP_ARCH_S390X", subArchitectures: ["SCMP_ARCH_S390"] }
  ],
  syscalls: [
    ...multiplexer,
    allow([...common, ...clock]),
    // Before 4.8 a traced process could leave its filter (seccomp(2)).
    allow(inspection, [], { includes: { minKernel: "4.8" } }),
    ...sockets,
    ...personalities,
    ...cloning(["CAP_SYS_ADMIN"]),
    allow(x86, [], { includes: { arches: ["amd64", "x32", "x86"] } }),
    allow(arm, [], { includes: { arches: ["arm", "arm64"] } }),
    allow(["sync_file_range2", "swapcontext"], [], { includes: { arches: ["ppc64le"] } }),
    ...Object.entries(byCapability).map(([capability, names]) =>
      allow(names, [], { includes: { caps: [capability] } })
    )
  ]
}

// Each of these has had security holes, or reveals something about the host, and few programs need them.
const seldom = new Set(
  words(`
  fanotify_mark io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ipc listmount
  memfd_secret mknod name_to_handle_at remap_file_pages statmount uretprobe vmsplice
  mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
  msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget`)
)

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const AF_NETLINK = 16
const NETLINK_ROUTE = 0

/**
 * Less than the default: only this machine's own architecture, no tracing, no System V and POSIX message IPC, only UNIX and
 * IP sockets (and netlink's routes, which name resolution needs), and no rules that depend on a capability.
 */
export const strictProfile: SeccompProfile = {
  defaultAction: "SCMP_ACT_ERRNO",
  defaultErrnoRet: 1,
  syscalls: [
    allow(common.filter((name) => !seldom.has(name))),
    ...[AF_UNIX, AF_INET, AF_INET6].map((family) => allow(["socket"], [is(family)])),
    allow(["socket"], [is(AF_NETLINK), { index: 2, value: NETLINK_ROUTE, op: "SCMP_CMP_EQ" }]),
    allow(["personality"], [is(0xffffffff)]),
    ...cloning([]),
    allow(arm, [], { includes: { arches: ["arm", "arm64"] } })
  ]
}
