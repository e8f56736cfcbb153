#include "unit.h"
#include "cgroup.h"
#include "child.h"
#include "clone.h"
#include "descriptor.h"
#include "mount.h"
#include "remove.h"
#include "syscalls.h"
#include "util.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Entries that are removed in passing; a larger folder gets a process of its own, so that no start waits for it.
#define REMOVE_AT_ONCE 64
#define CGROUPS_MAX 16

// For so long a child may run in the supervisor's memory where the plan bounds it: an exec takes a tenth of that.
#define SHARED_MS 20

// The cgroups that the child is to enter: one by the clone on version 2, the others by itself, each with the
// operation that asked for it.
struct entrances {
    int unified;
    size_t count;
    int tasks[CGROUPS_MAX];
};

// What the supervisor's operations leave for those that follow.
struct preparation {
    struct entrances entrances;
    int layer_map; // the user namespace that translates the ids of lower layers, or -1
};

static void close_preparation(struct preparation *made) {
    close_descriptor(&made->layer_map);
    close_descriptor(&made->entrances.unified);
    while (made->entrances.count > 0) close_descriptor(&made->entrances.tasks[--made->entrances.count]);
}

static int own(struct unit *unit, const char *path, bool cgroup, struct failure *failure) {
    size_t length = strlen(path) + 1;
    struct owned *owned = malloc(sizeof *owned + length);
    if (!owned) return fail(failure, "malloc");
    memcpy(owned->path, path, length);
    owned->cgroup = cgroup;
    owned->next = unit->owned;
    unit->owned = owned;
    return 0;
}

static int make_scratch(struct unit *unit, const union field *f, struct failure *failure) {
    if (mkdir(f[0].s.text, 0700) < 0) return fail(failure, "mkdir");
    if (own(unit, f[0].s.text, false, failure) < 0) return -1;
    return chmod(f[0].s.text, (mode_t)f[1].i) < 0 ? fail(failure, "chmod") : 0;
}

static int enter_cgroup(struct entrances *entrances, const union field *f, struct failure *failure) {
    bool taken = f[1].i == 2 ? entrances->unified >= 0 : entrances->count == CGROUPS_MAX;
    if (taken) {
        errno = E2BIG;
        return fail(failure, "open");
    }
    int fd = cgroup_entrance(f[0].s.text, (int)f[1].i, failure);
    if (fd < 0) return -1;
    if (f[1].i == 2) entrances->unified = fd;
    else entrances->tasks[entrances->count++] = fd;
    return 0;
}

static int take_mount(struct unit *unit, int mount) {
    if (mount < 0) return -1;
    close_descriptor(&unit->mount);
    unit->mount = mount;
    return 0;
}

static int write_proc(pid_t pid, const char *file, const char *text, size_t length, struct failure *failure) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail(failure, "open");
    return write(fd, text, length) != (ssize_t)length ? fail(failure, "write") : 0;
}

// user_namespaces(7): without CAP_SETGID in the parent namespace, setgroups must be denied before gid_map can be written.
static int write_id_maps(pid_t pid, const union field *f, struct failure *failure) {
    if (write_proc(pid, "uid_map", f[0].s.text, f[0].s.length, failure) < 0) return -1;
    if (write_proc(pid, "gid_map", f[1].s.text, f[1].s.length, failure) == 0) return 0;
    if (failure->error != EPERM || write_proc(pid, "setgroups", "deny", 4, failure) < 0) return -1;
    return write_proc(pid, "gid_map", f[1].s.text, f[1].s.length, failure);
}

// A user namespace with these maps and nobody in it: its process is gone as soon as there is a descriptor.
static int make_layer_map(int *namespace, const union field *f, struct failure *failure) {
    char path[64];
    struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) return fail(failure, "clone3");
    if (pid == 0)
        for (;;) pause();
    int result = write_id_maps(pid, f, failure);
    snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
    close_descriptor(namespace);
    *namespace = result < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (result == 0 && *namespace < 0) result = fail(failure, "open");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return result;
}

static int hold(struct unit *unit, int fd, struct failure *failure) {
    close_descriptor(&unit->held);
    unit->held = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return unit->held < 0 ? fail(failure, "fcntl") : 0;
}

static int prepare(struct unit *unit, const struct operation *operation, const int *descriptors, struct preparation *made) {
    const union field *f = operation->field;
    struct failure *failure = &unit->failure;
    switch (operation->code) {
    case OP_CGROUP_CREATE: return cgroup_create(f[0].s.text, failure) < 0 ? -1 : own(unit, f[0].s.text, true, failure);
    case OP_CGROUP_WRITE: return cgroup_write(f[0].s.text, f[1].s.text, f[1].s.length, failure);
    case OP_CGROUP_DEVICES: return cgroup_devices(f[0].s.text, f[1].b.bytes, f[1].b.length, failure);
    case OP_CGROUP_JOIN: return enter_cgroup(&made->entrances, f, failure);
    case OP_SCRATCH: return make_scratch(unit, f, failure);
    case OP_OVERLAY: return take_mount(unit, mount_overlay(&f[0], f[1].s.text, f[2].s.text, &f[3], (unsigned)f[4].i, made->layer_map, failure));
    case OP_OVERLAY_MEMORY: return take_mount(unit, mount_overlay_memory(&f[0], (unsigned)f[1].i, &f[2], &f[3], (unsigned)f[4].i, made->layer_map, failure));
    case OP_HOLD: return hold(unit, f[0].fd == NO_FD ? -1 : descriptors[f[0].fd], failure);
    case OP_LAYER_MAP: return make_layer_map(&made->layer_map, f, failure);
    case OP_DISCARD: return own(unit, f[0].s.text, false, failure);
    case OP_OWNER: return lchown(f[0].s.text, (uid_t)f[1].i, (gid_t)f[2].i) < 0 ? fail(failure, "lchown") : 0;
    default:
        errno = EINVAL;
        return fail(failure, "plan");
    }
}

static const struct operation *find(const struct plan *plan, enum operation_code code) {
    for (size_t k = plan->process; k < plan->count; k++)
        if (plan->operations[k].code == code) return &plan->operations[k];
    return NULL;
}

// The pid namespace to join: the descriptor of a process in it, or -1. It is joined for one's children only
// (pid_namespaces(7)), so somebody has to enter it before the clone.
static int pid_namespace_of(const struct plan *plan, const int *descriptors, uint32_t *index) {
    for (size_t k = plan->process; k < plan->count; k++) {
        const struct operation *operation = &plan->operations[k];
        if (operation->code != OP_JOIN || !(operation->field[1].i & CLONE_NEWPID) || operation->field[0].fd == NO_FD) continue;
        *index = (uint32_t)k;
        return descriptors[operation->field[0].fd];
    }
    return -1;
}

// How a child has its memory: the values of the plan's field, of which any other is as the last.
enum memory { OWN, SHARED, SHARED_BOUNDED };

struct launch {
    const struct child *child;
    const struct entrances *entrances;
    enum memory memory;
    bool unbounded; // there was no timer for it
};

// Kills this process unless it executes something before: execve(2) deletes timers, and fork(2) does not copy them.
// Nothing that a container can do keeps it from being killed, stopped though it may be.
static int bound_by_timer(void) {
    const struct itimerspec after = {.it_value.tv_nsec = SHARED_MS * 1000000L};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    int timer; // the kernel's number; the C library's own timers take memory
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) < 0) return -1;
    return (int)syscall(SYS_timer_settime, timer, 0, &after, NULL);
}

static void enter_and_run(void *argument) {
    struct launch *launch = argument;
    if (launch->memory != OWN && launch->memory != SHARED && bound_by_timer() < 0) {
        launch->unbounded = true;
        _exit(127);
    }
    // "0" is the writer itself. One thread that moves itself does not take the lock that every fork and exit in the
    // system shares, which the same write to cgroup.procs takes (Linux 5.7).
    for (size_t k = 0; k < launch->entrances->count; k++) {
        if (write(launch->entrances->tasks[k], "0", 1) == 1) continue;
        struct failure failure = {.operation = (uint32_t)launch->child->plan->process};
        fail(&failure, "write");
        if (write(launch->child->failures, &failure, sizeof failure) < 0) _exit(126);
        _exit(127);
    }
    child_run(launch->child);
}

// A copy of the supervisor's memory costs more than all else in a clone: page tables, and a fault for each page that
// either of the two writes to afterwards.
static pid_t clone_with_own_memory(struct clone_args arguments, struct launch *launch) {
    launch->memory = OWN;
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) enter_and_run(launch);
    return pid;
}

// The child runs in the supervisor's memory on a stack of its own, and the supervisor waits until it has executed. A
// vfork child is no victim of the OOM killer, which would take the supervisor along (oom_badness() in mm/oom_kill.c).
static pid_t clone_with_shared_memory(struct clone_args arguments, char *stack, size_t size, struct launch *launch) {
    arguments.flags |= CLONE_VM | CLONE_VFORK;
    arguments.stack = (uint64_t)(uintptr_t)stack;
    arguments.stack_size = size;
    long pid = clone_on_stack(&arguments, sizeof arguments, enter_and_run, launch);
    // A change of user in the child has made the memory dumpable as /proc/sys/fs/suid_dumpable says (proc(5)).
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    errno = pid < 0 ? (int)-pid : 0;
    return pid < 0 ? -1 : (pid_t)pid;
}

// Of include/linux/sched.h, as /proc/PID/stat shows them.
#define PF_EXITING 0x4
#define PF_FORKNOEXEC 0x40

// The wait of vfork ends with the memory's release, before a child that was killed can be waited for; but by then it is
// known to be ending, and that it has never executed anything. One that has must not be run twice, however it ended.
static bool ends_unexecuted(pid_t pid) {
    char path[64], text[1024];
    unsigned flags = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0) return false;
    text[n] = '\0';
    char *name_end = strrchr(text, ')'); // a name may have anything in it
    return name_end && sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & PF_EXITING) && (flags & PF_FORKNOEXEC);
}

// Whether the child was killed by its timer. It is waited for then.
static bool ran_out(pid_t pid) {
    siginfo_t end = {0};
    if (!ends_unexecuted(pid)) return false;
    if (waitid(P_PID, (id_t)pid, &end, WEXITED | WNOWAIT) < 0 || end.si_code != CLD_KILLED || end.si_status != SIGKILL) return false;
    return waitid(P_PID, (id_t)pid, &end, WEXITED) == 0;
}

// A child that shares memory holds the supervisor up for as long as it takes. Where what it does can hang (a lease on
// the program's file, fcntl(2), holds up an exec for 45 seconds), the plan has it bounded: then it is killed, and tried
// again with memory of its own, in which it may hang as it likes.
static pid_t clone_child(const struct clone_args *arguments, enum memory memory, struct launch *launch) {
    static char *stack;
    const size_t size = 256 << 10;
    struct timespec before, after;

    if (memory != OWN && !stack) {
        void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        if (mapped != MAP_FAILED && mprotect(mapped, 4096, PROT_NONE) == 0) stack = mapped;
    }
    if (memory == OWN || !stack || !CLONE_ON_STACK) return clone_with_own_memory(*arguments, launch);
    launch->memory = memory;
    clock_gettime(CLOCK_MONOTONIC, &before);
    pid_t pid = clone_with_shared_memory(*arguments, stack, size, launch);
    if (memory == SHARED || pid < 0) return pid;
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t took_us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    if (launch->unbounded) waitpid(pid, NULL, 0);
    else if (took_us < SHARED_MS * 1000 || !ran_out(pid)) return pid;
    close(*(int *)(uintptr_t)arguments->pidfd);
    return clone_with_own_memory(*arguments, launch);
}

// Where the supervisor could not come back from a pid namespace, a process in between enters it, whose child becomes the
// supervisor's own by CLONE_PARENT, and gets the exit signal of the one in between (clone(2)).
static pid_t clone_between(int namespace, const struct clone_args *asked, struct launch *launch, int *pidfd, const char **call) {
    struct clone_args arguments = *asked;
    struct { pid_t pid; int error; bool entered; } told = {.pid = -1, .error = EIO};
    int ends[2];
    *call = "pipe2";
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    cleanup_close int ours = ends[0], theirs = ends[1];
    *call = "fork";
    pid_t between = fork();
    if (between < 0) return -1;
    if (between == 0) {
        arguments.flags = (arguments.flags & ~(uint64_t)CLONE_PIDFD) | CLONE_PARENT;
        arguments.exit_signal = 0;
        arguments.pidfd = 0;
        told.entered = setns(namespace, CLONE_NEWPID) == 0;
        if (told.entered) told.pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
        if (told.pid == 0) enter_and_run(launch);
        told.error = errno;
        _exit(write(theirs, &told, sizeof told) == sizeof told ? 0 : 1);
    }
    waitpid(between, NULL, 0);
    close_descriptor(&theirs);
    theirs = -1;
    if (read(ours, &told, sizeof told) < 0) told.error = errno;
    *call = told.entered ? "clone3" : "setns";
    errno = told.error;
    // Nobody but the supervisor waits for it, so the pid is still its own.
    if (told.pid > 0) *pidfd = sys_pidfd_open(told.pid);
    return told.pid;
}

static int start_process(struct unit *unit, struct supervisor *supervisor, const struct plan *plan,
                         const int *descriptors, const struct entrances *entrances) {
    const struct operation *maps = find(plan, OP_ID_MAP);
    struct failure *failure = &unit->failure;
    const union field *process = plan->operations[plan->process].field;
    int failures[2], gate[2] = {-1, -1};

    unit->own_pids = process[0].i & CLONE_NEWPID;
    failure->operation = (uint32_t)plan->process;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, failures) < 0) return fail(failure, "socketpair");
    cleanup_close int childs_end = failures[1];
    unit->failures = failures[0];
    if (maps && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, gate) < 0) return fail(failure, "socketpair");
    cleanup_close int childs_gate = gate[0], our_gate = gate[1];

    uint32_t join = 0;
    int namespace = pid_namespace_of(plan, descriptors, &join);
    bool entered = namespace >= 0 && supervisor->pid_namespace >= 0;
    if (entered && setns(namespace, CLONE_NEWPID) < 0) {
        failure->operation = join;
        return fail(failure, "setns");
    }
    struct clone_args arguments = {
        .flags = (uint64_t)process[0].i | CLONE_PIDFD | (entrances->unified >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&unit->pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = entrances->unified >= 0 ? (uint64_t)entrances->unified : 0,
    };
    struct child child = {
        .plan = plan,
        .descriptors = descriptors,
        .failures = failures[1],
        .gate = {gate[0], gate[1]},
        .supervisor = supervisor->pidfd,
        .null = supervisor->null,
        .root = unit->mount,
        .self = supervisor->self,
    };
    struct launch launch = {.child = &child, .entrances = entrances};
    // A network namespace is owned by the user namespace that made it, which has to be the new one where there is one.
    bool own_network = (process[0].i & CLONE_NEWNET) && !(process[0].i & CLONE_NEWUSER);
    bool ahead = own_network && network_enter(&supervisor->network);
    if (ahead) arguments.flags &= ~(uint64_t)CLONE_NEWNET;
    const char *call = "clone3";
    pid_t pid = namespace >= 0 && !entered ? clone_between(namespace, &arguments, &launch, &unit->pidfd, &call)
                                           : clone_child(&arguments, (enum memory)process[1].i, &launch);
    if (pid < 0) fail(failure, call);
    if (ahead) network_leave(&supervisor->network);
    if (entered && setns(supervisor->pid_namespace, CLONE_NEWPID) < 0) abort(); // every later child would be in there
    if (pid < 0) return -1;
    unit->pid = pid;
    close_descriptor(&unit->mount); // the child's now
    unit->mount = -1;
    if (maps) {
        char byte;
        close_descriptor(&childs_gate); // so that the child's end is seen
        childs_gate = -1;
        failure->operation = (uint32_t)(maps - plan->operations);
        ssize_t n;
        while ((n = read(our_gate, &byte, 1)) < 0 && errno == EINTR) continue;
        if (n < 0) return fail(failure, "read");
        if (n == 0) return 0; // it has failed before that, and says so itself
        if (write_id_maps(pid, maps->field, failure) < 0) return -1;
        if (send(our_gate, "", 1, MSG_NOSIGNAL) != 1) return fail(failure, "send");
    }
    return 0;
}

bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors) {
    __attribute__((cleanup(close_preparation))) struct preparation made = {.entrances.unified = -1, .layer_map = -1};
    for (size_t k = 0; k < plan->process; k++) {
        if (prepare(unit, &plan->operations[k], descriptors, &made) == 0) continue;
        unit->failure.operation = (uint32_t)k;
        return false;
    }
    return plan->process == plan->count || start_process(unit, supervisor, plan, descriptors, &made.entrances) == 0;
}

bool unit_executed(struct unit *unit) {
    struct failure failure;
    ssize_t n;
    for (int root; (n = descriptor_receive(unit->failures, &failure, sizeof failure, &root)) > 0;) {
        if (n != (ssize_t)sizeof failure) {
            take_mount(unit, root);
            continue;
        }
        close_descriptor(&root);
        failure.syscall[sizeof failure.syscall - 1] = '\0';
        unit->failure = failure;
        unit->failed = true;
        break;
    }
    close(unit->failures);
    unit->failures = -1;
    return !unit->failed;
}

void unit_kill(struct unit *unit) {
    if (unit->pid > 0) sys_pidfd_send_signal(unit->pidfd, SIGKILL);
    if (unit->own_pids) return;
    // Each begins a session, so that what it has started, and has not left for another, is in its process group. The pid
    // is not given to anything else while the process has not been waited for.
    if (unit->pid > 0) kill(-unit->pid, SIGKILL);
    for (struct owned *owned = unit->owned; owned; owned = owned->next)
        if (owned->cgroup) cgroup_kill(owned->path);
}

bool unit_settle(struct unit *unit) {
    for (struct owned **link = &unit->owned; *link;) {
        struct owned *owned = *link;
        if (!owned->cgroup || rmdir(owned->path) < 0) {
            link = &owned->next;
            continue;
        }
        *link = owned->next;
        free(owned);
    }
    return !unit->owned;
}

static int remove_scratch(struct unit *unit, const char *path) {
    int result = remove_tree(AT_FDCWD, path, REMOVE_AT_ONCE);
    if (result != 1) return result;
    unit->remover = fork();
    if (unit->remover < 0) {
        unit->remover = 0;
        return remove_tree(AT_FDCWD, path, __LONG_MAX__);
    }
    if (unit->remover == 0) _exit(remove_tree(AT_FDCWD, path, __LONG_MAX__) == 0 ? 0 : 1);
    return 1;
}

static void disown(struct unit *unit) {
    struct owned *owned = unit->owned;
    unit->owned = owned->next;
    free(owned);
}

void unit_give_up(struct unit *unit, int error) {
    errno = error;
    if (unit->leftover.error == 0) fail(&unit->leftover, unit->owned->cgroup ? "rmdir" : "unlinkat");
    disown(unit);
}

void unit_remover_done(struct unit *unit, int status) {
    unit->remover = 0;
    if (status != 0) unit_give_up(unit, EIO);
}

int unit_remove(struct unit *unit) {
    while (unit->owned) {
        struct owned *owned = unit->owned;
        if (unit->remover > 0) return 1;
        int result = owned->cgroup ? cgroup_remove(owned->path) : remove_scratch(unit, owned->path);
        if (result == 1) return 1;
        if (result < 0 && owned->cgroup && errno == EBUSY) {
            cgroup_kill(owned->path);
            return 1;
        }
        // A folder that somebody else has removed is gone, which is all that was wanted.
        if (result < 0 && errno != ENOENT) unit_give_up(unit, errno);
        else disown(unit);
    }
    return unit->leftover.error != 0 ? -1 : 0;
}

void unit_free(struct unit *unit) {
    while (unit->owned) disown(unit);
    close_descriptor(&unit->pidfd);
    close_descriptor(&unit->failures);
    close_descriptor(&unit->mount);
    close_descriptor(&unit->held);
    free(unit);
}
