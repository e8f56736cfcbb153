// The limit: what a container's start costs with no library at all. It starts and reaps `true` in the surroundings
// that Berth gives it, with the same system calls in the same order, as straight-line C: no plan, no messages, no
// event loop, nothing that is decided at run time. It shares no source with Berth, so that neither hides the other's
// mistakes. One thing Berth has that this has not: it makes the network namespace of the next container while nothing else
// is to be done.
//
//   bench-limit COUNT [WORKERS] [phases]
//
// Starts COUNT containers one after another and prints the microseconds of each, from the first mkdir of its cgroup
// to the last rmdir; what Berth needs to hear of it (a pipe, a socket, an epoll) is not among them. A COUNT of 0 starts
// one for each line that comes in on stdin, so that another program can take turns with it. With WORKERS above 1, so
// many processes start COUNT each at the same time, and the one line that is printed is the wall-clock time of all of
// them, in microseconds. `phases` prints the names of the phases first, and behind each time how long each phase took.
#include "cgroups.h"
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MNT_DETACH 2
#define AT_RECURSIVE 0x8000
#define NO_SUID_DEV_EXEC (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
#define countof(array) (sizeof(array) / sizeof((array)[0]))

// Phases: each is the sum of all that is marked with it, wherever it happens.
#define PHASES(X)                                                                                            \
    X(CGROUP_CREATE, "cgroup-create")                                                                        \
    X(CLONE, "clone")                                                                                        \
    X(CGROUP_JOIN, "cgroup-join")                                                                            \
    X(SESSION, "session+stdio")                                                                              \
    X(NAMESPACES, "cgroupns+loopback+hostname")                                                              \
    X(OVERLAY, "overlay")                                                                                    \
    X(PROC_SYS, "proc+sys")                                                                                  \
    X(DEV, "dev")                                                                                            \
    X(MASK, "mask")                                                                                          \
    X(READONLY, "readonly")                                                                                  \
    X(PIVOT, "pivot")                                                                                        \
    X(PRIVILEGES, "privileges")                                                                              \
    X(EXEC, "exec-to-exit")                                                                                  \
    X(TEARDOWN, "teardown+reap")                                                                             \
    X(CGROUP_REMOVE, "cgroup-remove")

enum phase {
#define X(name, text) name,
    PHASES(X)
#undef X
        PHASE_COUNT
};

static const char *const phase_names[] = {
#define X(name, text) text,
    PHASES(X)
#undef X
};

// Shared with the child, which marks its own phases; the two never mark at the same time.
struct clock {
    uint64_t first, last, phase[PHASE_COUNT];
};

static struct clock *shared;
static int messages, null_device, own_pidfd;
static bool phases;

static _Noreturn void die(const char *what) {
    dprintf(messages, "bench-limit: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static long check(const char *what, long result) {
    if (result < 0) die(what);
    return result;
}

// A system call that has to succeed. By number: what glibc's wrappers do besides is not what is measured.
#define CALL(name, ...) check(#name, syscall(SYS_##name __VA_OPT__(, ) __VA_ARGS__))

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time); // no system call: the vDSO's, some 25 ns
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void mark(enum phase phase) {
    uint64_t time = now();
    shared->phase[phase] += time - shared->last;
    shared->last = time;
}

// The child

// Targets are resolved inside the root, or inside one of its pinned mounts, which nobody can rename.
static int resolve(int from, const char *path, uint64_t flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, from, path, &how, sizeof how);
}

static int resolve_no_link(int from, const char *path) {
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS};
    return (int)CALL(openat2, from, path, &how, sizeof how);
}

static void set(int fs, const char *key, const char *value) {
    CALL(fsconfig, fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, key, value, 0);
}

static int create(int fs, unsigned long attributes) {
    CALL(fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    return (int)CALL(fsmount, fs, FSMOUNT_CLOEXEC, attributes);
}

static void attach(int mount, int target) {
    CALL(move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

// /proc, /dev and /sys: gives the mount, in which what is below it is found.
static int mount_pinned(int root, int fs, unsigned long attributes, const char *path) {
    int mount = create(fs, attributes);
    CALL(close, fs);
    int target = resolve_no_link(root, path);
    attach(mount, target);
    CALL(close, target);
    return mount;
}

// A folder of /dev, which is a new file system.
static void mount_in(int dev, int fs, unsigned long attributes, const char *name) {
    int mount = create(fs, attributes);
    CALL(close, fs);
    int target = resolve(dev, name, O_PATH); // is it there? only /dev/shm is
    if (target < 0) {
        int parent = (int)check("openat2", resolve(dev, "/", O_PATH | O_DIRECTORY));
        CALL(mkdirat, parent, name, 0755);
        target = resolve_no_link(parent, name);
        CALL(close, parent);
    }
    attach(mount, target);
    CALL(close, target);
    CALL(close, mount);
}

// A device node of the host's, bound: Berth binds nodes of its own, which makes no difference in time.
static void device(int dev, const char *path) {
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, .propagation = 1 << 18}; // MS_PRIVATE
    const char *name = path + strlen("/dev/");
    struct stat source;
    int tree = (int)CALL(open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    CALL(mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes);
    CALL(newfstatat, tree, "", &source, AT_EMPTY_PATH);
    resolve(dev, name, O_PATH); // is it there? not yet
    int parent = (int)check("openat2", resolve(dev, "/", O_PATH | O_DIRECTORY));
    CALL(close, (int)CALL(openat, parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
    int target = resolve_no_link(parent, name);
    CALL(close, parent);
    attach(tree, target);
    CALL(close, target);
    CALL(close, tree);
}

// A file in /dev/shm, which is mounted at its path in the root.
static void etc_file(int root, int shm, const char *path, const char *text) {
    const char *name = strrchr(path, '/') + 1;
    struct stat status;
    int file = (int)CALL(openat, shm, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    CALL(write, file, text, strlen(text));
    CALL(close, file);
    int tree = (int)CALL(open_tree, shm, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    int target = (int)check("openat2", resolve(root, path, O_PATH | O_NOFOLLOW));
    CALL(newfstatat, target, "", &status, AT_EMPTY_PATH);
    attach(tree, target);
    CALL(close, target);
    CALL(close, tree);
}

static void etc_files(int root, int dev) {
    int parent = (int)check("openat2", resolve(dev, "/", O_PATH | O_DIRECTORY));
    CALL(mkdirat, parent, "shm", 0755);
    int shm = resolve_no_link(parent, "shm");
    CALL(close, parent);
    etc_file(root, shm, "/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t0123456789ab\n");
    etc_file(root, shm, "/etc/hostname", "0123456789ab\n");
    etc_file(root, shm, "/etc/resolv.conf", "# This container has no network, and no name server.\n");
    CALL(close, shm);
}

static void symbolic_link(int dev, const char *target, const char *name) {
    int parent = (int)check("openat2", resolve(dev, "/", O_PATH | O_DIRECTORY));
    CALL(symlinkat, target, parent, name);
    CALL(close, parent);
}

static void mask(int from, int *empty, const char *path) {
    struct stat masked, source;
    int mount, target = resolve(from, path, O_PATH);
    if (target < 0) return;
    CALL(newfstatat, target, "", &masked, AT_EMPTY_PATH);
    if (!S_ISDIR(masked.st_mode)) {
        mount = (int)CALL(open_tree, AT_FDCWD, "/dev/null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        CALL(newfstatat, mount, "", &source, AT_EMPTY_PATH);
    } else if (*empty < 0) {
        int fs = (int)CALL(fsopen, "tmpfs", FSOPEN_CLOEXEC);
        set(fs, "nr_inodes", "1");
        set(fs, "mode", "0755");
        *empty = create(fs, MOUNT_ATTR_RDONLY | NO_SUID_DEV_EXEC);
        mount = (int)CALL(fcntl, *empty, F_DUPFD_CLOEXEC, 3);
        CALL(close, fs);
    } else {
        mount = (int)CALL(open_tree, *empty, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    }
    attach(mount, target);
    CALL(close, mount);
    CALL(close, target);
}

static void read_only(int from, const char *path) {
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY, .propagation = 1 << 18}; // MS_PRIVATE
    int target = resolve(from, path, O_PATH);
    if (target < 0) return;
    int tree = (int)CALL(open_tree, target, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
    CALL(mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof attributes);
    attach(tree, target);
    CALL(close, tree);
    CALL(close, target);
}

static void die_with_parent(void) {
    struct pollfd gone = {.fd = own_pidfd, .events = POLLIN};
    CALL(prctl, PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0UL, 0UL, 0UL);
    CALL(poll, &gone, 1UL, 0);
}

// "/proc/self/fd/N/name", without printf, whose pages the child would have to fault in.
static void name_below(char *out, int fd, const char *name) {
    char digits[12];
    size_t n = 0;
    do digits[n++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    out = stpcpy(out, "/proc/self/fd/");
    while (n > 0) *out++ = digits[--n];
    stpcpy(stpcpy(out, "/"), name);
}

static int overlay(void) {
    char upper[64], work[64];
    int memory_fs = (int)CALL(fsopen, "tmpfs", FSOPEN_CLOEXEC);
    set(memory_fs, "mode", "0755");
    int memory = create(memory_fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    CALL(mkdirat, memory, "upper", 0700);
    CALL(mkdirat, memory, "work", 0700);
    CALL(fchmodat, memory, "upper", 0755);
    name_below(upper, memory, "upper");
    name_below(work, memory, "work");
    int fs = (int)CALL(fsopen, "overlay", FSOPEN_CLOEXEC);
    set(fs, "lowerdir+", "/");
    set(fs, "upperdir", upper);
    set(fs, "workdir", work);
    set(fs, "volatile", NULL);
    int root = create(fs, MOUNT_ATTR_NODEV);
    CALL(close, fs);
    CALL(close, memory);
    CALL(close, memory_fs);
    return root;
}

static _Noreturn void child(int out, int err) {
    const uint64_t kept = 0xa80425fb;
    const sigset_t none = {0};
    char cwd[4096];

    mark(CLONE);
    for (size_t k = 0; k < cgroup_count; k++)
        if (cgroups[k].version == 1) CALL(write, cgroups[k].entrance, "0", 1UL);
    mark(CGROUP_JOIN);

    CALL(umask, 0);
    die_with_parent();
    CALL(setsid);
    CALL(keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL, 0UL, 0UL, 0UL);
    const int streams[] = {null_device, out, err};
    int moved[3];
    for (int k = 0; k < 3; k++) moved[k] = (int)CALL(fcntl, streams[k], F_DUPFD_CLOEXEC, 3);
    for (int k = 0; k < 3; k++) {
        CALL(dup2, moved[k], k);
        CALL(close, moved[k]);
    }
    mark(SESSION);

    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    CALL(unshare, CLONE_NEWCGROUP);
    int socket = (int)CALL(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CALL(ioctl, socket, SIOCSIFFLAGS, &loopback);
    CALL(close, socket);
    CALL(sethostname, "0123456789ab", 12);
    mark(NAMESPACES);

    int root = overlay();
    CALL(move_mount, root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
    mark(OVERLAY);

    int empty = -1;
    mask(root, &empty, "/var/lib/berth"); // a container of the host's files does not see Berth's folder
    mark(MASK);

    int proc = mount_pinned(root, (int)CALL(fsopen, "proc", FSOPEN_CLOEXEC), NO_SUID_DEV_EXEC, "/proc");
    mark(PROC_SYS);

    int fs = (int)CALL(fsopen, "tmpfs", FSOPEN_CLOEXEC);
    set(fs, "mode", "0755");
    set(fs, "size", "65536k");
    int dev = mount_pinned(root, fs, NO_SUID_DEV_EXEC, "/dev");
    device(dev, "/dev/null");
    device(dev, "/dev/zero");
    device(dev, "/dev/full");
    device(dev, "/dev/random");
    device(dev, "/dev/urandom");
    device(dev, "/dev/tty");
    symbolic_link(dev, "pts/ptmx", "ptmx");
    symbolic_link(dev, "/proc/self/fd", "fd");
    symbolic_link(dev, "/proc/self/fd/0", "stdin");
    symbolic_link(dev, "/proc/self/fd/1", "stdout");
    symbolic_link(dev, "/proc/self/fd/2", "stderr");
    fs = (int)CALL(fsopen, "devpts", FSOPEN_CLOEXEC);
    set(fs, "newinstance", NULL);
    set(fs, "ptmxmode", "0666");
    set(fs, "mode", "0620");
    set(fs, "gid", "5");
    mount_in(dev, fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, "pts");
    etc_files(root, dev);
    fs = (int)CALL(fsopen, "tmpfs", FSOPEN_CLOEXEC);
    set(fs, "mode", "1777");
    set(fs, "size", "67108864");
    mount_in(dev, fs, NO_SUID_DEV_EXEC, "shm");
    mount_in(dev, (int)CALL(fsopen, "mqueue", FSOPEN_CLOEXEC), NO_SUID_DEV_EXEC, "mqueue");
    mark(DEV);
    int sys = mount_pinned(root, (int)CALL(fsopen, "sysfs", FSOPEN_CLOEXEC), MOUNT_ATTR_RDONLY | NO_SUID_DEV_EXEC, "/sys");
    mark(PROC_SYS);

    mask(proc, &empty, "acpi");
    mask(proc, &empty, "asound");
    mask(proc, &empty, "interrupts");
    mask(proc, &empty, "kcore");
    mask(proc, &empty, "keys");
    mask(proc, &empty, "latency_stats");
    mask(proc, &empty, "sched_debug");
    mask(proc, &empty, "scsi");
    mask(proc, &empty, "timer_list");
    mask(proc, &empty, "timer_stats");
    mask(sys, &empty, "devices/virtual/powercap");
    mask(sys, &empty, "firmware");
    mark(MASK);

    read_only(proc, "bus");
    read_only(proc, "fs");
    read_only(proc, "sys");
    read_only(proc, "irq");
    read_only(proc, "sysrq-trigger");
    mark(READONLY);

    int old = (int)CALL(openat, AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CALL(fchdir, root);
    CALL(pivot_root, ".", ".");
    CALL(fchdir, old);
    CALL(umount2, ".", MNT_DETACH);
    CALL(chdir, "/");
    CALL(close, old);
    mark(PIVOT);

    CALL(chdir, "/");
    CALL(getcwd, cwd, sizeof cwd);
    CALL(umask, 022);
    for (unsigned long capability = 0; capability < 64; capability++)
        if (!(kept >> capability & 1) && syscall(SYS_prctl, PR_CAPBSET_DROP, capability, 0UL, 0UL, 0UL) < 0) break;
    CALL(prctl, PR_SET_KEEPCAPS, 1UL, 0UL, 0UL, 0UL);
    CALL(setgroups, 0, NULL);
    CALL(setresgid, 0, 0, 0);
    CALL(setresuid, 0, 0, 0);
    die_with_parent();
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = (uint32_t)kept, .permitted = (uint32_t)kept}, {0}};
    CALL(capset, &header, data);
    CALL(prctl, PR_CAP_AMBIENT, (unsigned long)PR_CAP_AMBIENT_CLEAR_ALL, 0UL, 0UL, 0UL);
    CALL(prctl, PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL);
    if (filter.len > 0) CALL(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter);
    CALL(rt_sigprocmask, SIG_SETMASK, &none, NULL, 8UL);
    CALL(close_range, 3U, ~0U, 4U); // CLOSE_RANGE_CLOEXEC
    mark(PRIVILEGES);

    static const char *const paths[] = {
        "/usr/local/sbin/true", "/usr/local/bin/true", "/usr/sbin/true", "/usr/bin/true", "/sbin/true", "/bin/true",
    };
    const char *const arguments[] = {"true", NULL};
    const char *const environment[] = {"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    for (size_t k = 0; k < countof(paths); k++) syscall(SYS_execve, paths[k], arguments, environment);
    die("execve");
}

// The parent

static void make_cgroups(unsigned long number) {
    char file[700];
    for (size_t k = 0; k < cgroup_count; k++) {
        struct cgroup *cgroup = &cgroups[k];
        snprintf(cgroup->path, sizeof cgroup->path, "%s/berth-limit.%d.%lu", cgroup->parent, (int)getpid(), number);
        CALL(mkdir, cgroup->path, 0755);
    }
    for (size_t k = 0; k < cgroup_count; k++) {
        for (size_t s = 0; s < cgroups[k].count; s++) {
            const struct setting *setting = &cgroups[k].settings[s];
            snprintf(file, sizeof file, "%s/%s", cgroups[k].path, setting->file);
            int fd = (int)CALL(openat, AT_FDCWD, file, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
            CALL(write, fd, setting->value, strlen(setting->value));
            CALL(close, fd);
        }
    }
    for (size_t k = 0; k < cgroup_count; k++) {
        struct cgroup *cgroup = &cgroups[k];
        snprintf(file, sizeof file, "%s/tasks", cgroup->path);
        cgroup->entrance = cgroup->version == 1
                               ? (int)CALL(openat, AT_FDCWD, file, O_WRONLY | O_CLOEXEC | O_NOFOLLOW)
                               : (int)CALL(openat, AT_FDCWD, cgroup->path, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    }
}

// The end of the command closes its streams, which comes before its namespaces are given back.
static void await_hangup(int out) {
    struct pollfd hangup = {.fd = out};
    CALL(poll, &hangup, 1UL, -1);
    mark(EXEC);
}

static void start_and_reap(unsigned long number) {
    struct rusage usage;
    int out[2], err[2], pidfd = -1, status;

    memset(shared, 0, sizeof *shared);
    shared->first = shared->last = now();
    make_cgroups(number);
    CALL(pipe2, out, O_CLOEXEC);
    CALL(pipe2, err, O_CLOEXEC);
    mark(CGROUP_CREATE);

    struct clone_args arguments = {
        .flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
    };
    for (size_t k = 0; k < cgroup_count; k++) {
        if (cgroups[k].version == 1) continue;
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)cgroups[k].entrance;
    }
    pid_t pid = (pid_t)CALL(clone3, &arguments, sizeof arguments);
    if (pid == 0) child(out[1], err[1]);
    CALL(close, out[1]);
    CALL(close, err[1]);
    for (size_t k = 0; k < cgroup_count; k++) CALL(close, cgroups[k].entrance);
    if (phases) await_hangup(out[0]);
    CALL(wait4, pid, &status, 0, &usage);
    mark(TEARDOWN);

    for (size_t k = cgroup_count; k > 0; k--) CALL(rmdir, cgroups[k - 1].path);
    CALL(close, pidfd);
    CALL(close, out[0]);
    CALL(close, err[0]);
    mark(CGROUP_REMOVE);
    if (status != 0) {
        errno = ECHILD;
        die("the container");
    }
}

static void print_times(void) {
    printf("%.1f", (double)(shared->last - shared->first) / 1000);
    for (size_t k = 0; phases && k < PHASE_COUNT; k++) printf(" %.1f", (double)shared->phase[k] / 1000);
    putchar('\n');
    fflush(stdout);
}

static struct clock *new_clock(void) {
    void *page = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED ? (die("mmap"), NULL) : page;
}

// The conditions of Berth's supervisor: a mount namespace of its own from which nothing spreads, no signals, and
// /proc/self not for others.
static void set_up(void) {
    sigset_t all;
    check("BENCH_SECCOMP", read_filter());
    sigfillset(&all);
    messages = (int)check("fcntl", fcntl(2, F_DUPFD_CLOEXEC, 3));
    check("sigprocmask", sigprocmask(SIG_SETMASK, &all, NULL));
    const char *missing = find_cgroups();
    if (missing) {
        errno = ENOENT;
        die(missing);
    }
    CALL(prctl, PR_SET_DUMPABLE, 0UL, 0UL, 0UL, 0UL);
    CALL(unshare, CLONE_NEWNS);
    CALL(mount, NULL, "/", NULL, 1UL << 14 | 1UL << 19, NULL); // MS_REC | MS_SLAVE
    CALL(chdir, "/");
    null_device = (int)check("open", open("/dev/null", O_RDWR | O_CLOEXEC));
}

static void work(unsigned long count, unsigned long workers) {
    uint64_t first = now();
    int status, failed = 0;
    for (unsigned long k = 0; k < workers; k++) {
        pid_t pid = (pid_t)check("fork", fork());
        if (pid > 0) continue;
        shared = new_clock();
        own_pidfd = (int)CALL(pidfd_open, getpid(), 0);
        for (unsigned long n = 0; n < count; n++) start_and_reap(n);
        _exit(0);
    }
    while (wait(&status) > 0) failed |= status;
    if (failed) _exit(1);
    printf("%.1f\n", (double)(now() - first) / 1000);
}

int main(int argc, char **argv) {
    unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    unsigned long workers = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    char line[64];

    phases = argc > 3 && !strcmp(argv[3], "phases");
    set_up();
    if (workers > 1) {
        work(count, workers);
        return 0;
    }
    shared = new_clock();
    own_pidfd = (int)CALL(pidfd_open, getpid(), 0);
    for (size_t k = 0; phases && k < PHASE_COUNT; k++) printf("%s%c", phase_names[k], k + 1 < PHASE_COUNT ? ' ' : '\n');
    fflush(stdout);
    for (unsigned long n = 0; count > 0 ? n < count : fgets(line, sizeof line, stdin) != NULL; n++) {
        start_and_reap(n);
        print_times();
    }
    return 0;
}
