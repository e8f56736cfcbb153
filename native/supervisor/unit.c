#include "unit.h"
#include "cgroup.h"
#include "child.h"
#include "../common/descriptor.h"
#include "mount.h"
#include "../common/remove.h"
#include "../common/syscalls.h"
#include "../common/util.h"
#include "program.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// Entries that are removed in passing; a larger folder gets a process of its own, so that no start waits for it.
#define REMOVE_AT_ONCE 64
// And where there can be no process, so many each time that it is tried again.
#define REMOVE_IN_TURN 4096
#define CGROUPS_MAX 16

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

// uid_map's text, and gid_map's behind its NUL. user_namespaces(7): without CAP_SETGID in the parent namespace, setgroups must
// be denied before gid_map can be written.
static int write_id_maps(pid_t pid, const char *maps, struct failure *failure) {
    size_t length = strlen(maps);
    const char *gids = maps + length + 1;
    if (write_proc(pid, "uid_map", maps, length, failure) < 0) return -1;
    if (write_proc(pid, "gid_map", gids, strlen(gids), failure) == 0) return 0;
    if (failure->error != EPERM || write_proc(pid, "setgroups", "deny", 4, failure) < 0) return -1;
    return write_proc(pid, "gid_map", gids, strlen(gids), failure);
}

static char *copy_maps(const union field *f) {
    char *maps = malloc(f[0].s.length + f[1].s.length + 2);
    if (!maps) return NULL;
    memcpy(maps, f[0].s.text, f[0].s.length + 1);
    memcpy(maps + f[0].s.length + 1, f[1].s.text, f[1].s.length + 1);
    return maps;
}

// A user namespace with these maps and nobody in it: its process is gone as soon as there is a descriptor.
static int make_layer_map(int *namespace, const union field *f, struct failure *failure) {
    char path[64];
    struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    char *maps = copy_maps(f);
    if (!maps) return fail(failure, "malloc");
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        for (;;) pause();
    int result = pid < 0 ? fail(failure, "clone3") : write_id_maps(pid, maps, failure);
    free(maps);
    if (pid < 0) return -1;
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

static int take_slot(struct supervisor *supervisor, struct failure *failure) {
    for (int slot = 0; slot < SUCCESSORS_MAX; slot++) {
        if (supervisor->successors[slot] != -1) continue;
        supervisor->successors[slot] = 0;
        return slot;
    }
    errno = EAGAIN;
    return fail(failure, "clone");
}

static void leave_slot(struct unit *unit, struct supervisor *supervisor) {
    if (unit->slot >= 0) supervisor->successors[unit->slot] = -1;
    unit->slot = -1;
}

// The child's memory is a copy of the supervisor's, which is small, and nobody waits for it: what it does may take as long as
// it likes, and no container can have the supervisor wait by holding up a child.
static pid_t clone_child(const struct clone_args *arguments, const struct child *child, const struct entrances *entrances) {
    pid_t pid = (pid_t)syscall(SYS_clone3, arguments, sizeof *arguments);
    if (pid != 0) return pid;
    // A child that lives when the supervisor is dead would keep the state folder from being swept. A frozen cgroup of version
    // 1 has it live on, so this comes before it enters one.
    close(child->lock);
    // "0" is the writer itself. One thread that moves itself does not take the lock that every fork and exit in the
    // system shares, which the same write to cgroup.procs takes (Linux 5.7).
    for (size_t k = 0; k < entrances->count; k++) {
        if (write(entrances->tasks[k], "0", 1) == 1) continue;
        struct failure failure = {.operation = (uint32_t)child->plan->process};
        fail(&failure, "write");
        if (write(child->failures, &failure, sizeof failure) < 0) _exit(126);
        _exit(127);
    }
    child_run(child);
}

static int start_process(struct unit *unit, struct supervisor *supervisor, const struct plan *plan,
                         const int *descriptors, const struct entrances *entrances) {
    const struct operation *maps = find(plan, OP_ID_MAP);
    struct failure *failure = &unit->failure;
    uint64_t flags = (uint64_t)plan->operations[plan->process].field[0].i;
    int failures[2], sockets[2];

    unit->own_pids = flags & CLONE_NEWPID;
    failure->operation = (uint32_t)plan->process;
    if (pipe2(failures, O_CLOEXEC | O_NONBLOCK) < 0) return fail(failure, "pipe2");
    cleanup_close int childs_pipe = failures[1], childs_socket = -1;
    unit->failures = failures[0];
    if (maps && !(unit->maps = copy_maps(maps->field))) return fail(failure, "malloc");
    if (maps) unit->maps_operation = (uint32_t)(maps - plan->operations);
    if (maps || find(plan, OP_ROOT)) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) return fail(failure, "socketpair");
        unit->socket = sockets[0];
        childs_socket = sockets[1];
    }
    bool needs_program = plan->operations[plan->count - 1].code == OP_SELF;
    if (needs_program && supervisor->program < 0 && (supervisor->program = program_copy(supervisor->self, failure)) < 0) return -1;
    bool forks = find(plan, OP_FORK);
    if (forks && (unit->slot = take_slot(supervisor, failure)) < 0) return -1;

    struct child child = {
        .plan = plan,
        .descriptors = descriptors,
        .failures = childs_pipe,
        .socket = childs_socket,
        .lock = supervisor->lock,
        .supervisor = supervisor->pidfd,
        .null = supervisor->null,
        .root = unit->mount,
        .arguments = supervisor->arguments,
        .arguments_length = supervisor->arguments_length,
        .program = supervisor->program,
        .rootless = supervisor->rootless,
        .successors = supervisor->successors,
        .slot = forks ? (size_t)unit->slot : 0,
    };
    // A network namespace is owned by the user namespace that made it, which has to be the new one where there is one.
    bool own_network = (flags & CLONE_NEWNET) && !(flags & CLONE_NEWUSER);
    bool ahead = own_network && network_enter(&supervisor->network);
    struct clone_args arguments = {
        .flags = (ahead ? flags & ~(uint64_t)CLONE_NEWNET : flags) | CLONE_PIDFD | (entrances->unified >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&unit->pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = entrances->unified >= 0 ? (uint64_t)entrances->unified : 0,
    };
    pid_t pid = clone_child(&arguments, &child, entrances);
    if (pid < 0) fail(failure, "clone3");
    if (ahead) network_leave(&supervisor->network);
    if (pid < 0) return -1;
    unit->pid = pid;
    if (forks) unit->maker = pid;
    close_descriptor(&unit->mount); // the child's now
    unit->mount = -1;
    return 0;
}

bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors) {
    __attribute__((cleanup(close_preparation))) struct preparation made = {.entrances.unified = -1, .layer_map = -1};
    for (size_t k = 0; k < plan->process; k++) {
        if (prepare(unit, &plan->operations[k], descriptors, &made) == 0) continue;
        unit->failure.operation = (uint32_t)k;
        return false;
    }
    // What an older kernel has refused at first is no failure of a unit that has got it in another way.
    unit->failure = (struct failure){0};
    return plan->process == plan->count || start_process(unit, supervisor, plan, descriptors, &made.entrances) == 0;
}

// The child's pipe may be a container's to write to: what it says is of its own unit alone.
static void take_failure(struct unit *unit, const struct failure *failure) {
    unit->failure = *failure;
    unit->failure.syscall[sizeof failure->syscall - 1] = '\0';
    unit->failed = true;
}

static void give_maps(struct unit *unit) {
    struct failure failure = {.operation = unit->maps_operation};
    if (!unit->maps) return;
    int status = write_id_maps(unit->pid, unit->maps, &failure);
    if (status == 0 && send(unit->socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) != 1) status = fail(&failure, "send");
    free(unit->maps);
    unit->maps = NULL;
    if (status == 0) return;
    take_failure(unit, &failure);
    sys_pidfd_send_signal(unit->pidfd, SIGKILL);
}

void unit_listen(struct unit *unit) {
    char byte;
    ssize_t n = 0;
    for (int root; unit->socket >= 0 && !unit->failed && (n = descriptor_receive(unit->socket, &byte, 1, &root)) > 0;) {
        if (root < 0) give_maps(unit);
        else take_mount(unit, root);
    }
    // The root that it has sent is lost, and with it the way to the container's files.
    if (!unit->failed && n < 0 && errno == EMFILE) fail(&unit->failure, "recvmsg");
}

bool unit_executed(struct unit *unit) {
    struct failure failure;
    unit_listen(unit);
    if (read(unit->failures, &failure, sizeof failure) == (ssize_t)sizeof failure) take_failure(unit, &failure);
    close_descriptor(&unit->socket);
    close(unit->failures);
    unit->socket = unit->failures = -1;
    return !unit->failed;
}

void unit_find_successor(struct unit *unit, struct supervisor *supervisor) {
    if (unit->slot < 0 || supervisor->successors[unit->slot] <= 0) return;
    unit->pid = supervisor->successors[unit->slot];
    leave_slot(unit, supervisor);
    close_descriptor(&unit->pidfd);
    // Nobody but the supervisor waits for it, so the pid is still its own.
    if ((unit->pidfd = sys_pidfd_open(unit->pid)) < 0) fail(&unit->failure, "pidfd_open");
}

void unit_kill(struct unit *unit, struct supervisor *supervisor) {
    // By their pids, which nothing else has while they have not been waited for. Where the maker is killed before it has said
    // who goes on, that is known when it has been waited for.
    unit_find_successor(unit, supervisor);
    if (unit->maker > 0) kill(unit->maker, SIGKILL);
    if (unit->pid > 0) kill(unit->pid, SIGKILL);
    if (unit->own_pids) return;
    // Each begins a session, so that what it has started, and has not left for another, is in its process group.
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
    pid_t supervisor = getpid();
    int result = remove_tree(AT_FDCWD, path, REMOVE_AT_ONCE);
    if (result != 1) return result;
    unit->remover = fork();
    if (unit->remover < 0) {
        // Containers may have all processes that there can be: bit by bit then, so that no other unit waits for it.
        unit->remover = 0;
        return remove_tree(AT_FDCWD, path, REMOVE_IN_TURN);
    }
    if (unit->remover > 0) return 1;
    // One that lives when the supervisor is dead would keep the state folder from being swept.
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != supervisor) _exit(1);
    _exit(remove_tree(AT_FDCWD, path, __LONG_MAX__) == 0 ? 0 : 1);
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

void unit_free(struct unit *unit, struct supervisor *supervisor) {
    leave_slot(unit, supervisor);
    free(unit->maps);
    while (unit->owned) disown(unit);
    close_descriptor(&unit->pidfd);
    close_descriptor(&unit->failures);
    close_descriptor(&unit->socket);
    close_descriptor(&unit->mount);
    close_descriptor(&unit->held);
    free(unit);
}
