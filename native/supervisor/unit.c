#include "unit.h"
#include "cgroup.h"
#include "child.h"
#include "../common/descriptor.h"
#include "mount.h"
#include "netlink.h"
#include "../common/remove.h"
#include "../common/syscalls.h"
#include "../common/util.h"
#include "program.h"
#include "volume.h"

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

// The supervisor removes so many entries itself. A larger folder gets a process of its own, so that no start waits for it.
#define REMOVE_AT_ONCE 64
// If no process can be made, the supervisor removes so many entries at each retry.
#define REMOVE_IN_TURN 4096
#define CGROUPS_MAX 16
#define GIVEN_MAX 128

// The cgroups that the child enters: one of version 2 by the clone, those of version 1 by itself.
struct entrances {
    int unified;
    size_t count;
    int tasks[CGROUPS_MAX];
};

// The results of the supervisor's operations that later operations use.
struct preparation {
    struct entrances entrances;
    int layer_map; // the user namespace that translates the ids of lower layers, or -1
    size_t given_count;
    int given[GIVEN_MAX]; // mounts for the child
};

static void close_preparation(struct preparation *made) {
    close_descriptor(&made->layer_map);
    while (made->given_count > 0) close_descriptor(&made->given[--made->given_count]);
    close_descriptor(&made->entrances.unified);
    while (made->entrances.count > 0) close_descriptor(&made->entrances.tasks[--made->entrances.count]);
}

static int own(struct unit *unit, const char *path, enum owned_kind kind, struct failure *failure) {
    size_t length = strlen(path) + 1;
    struct owned *owned = malloc(sizeof *owned + length);
    if (!owned) return fail(failure, "malloc");
    *owned = (struct owned){.next = unit->owned, .kind = kind};
    memcpy(owned->path, path, length);
    unit->owned = owned;
    return 0;
}

static int make_scratch(struct unit *unit, const char *path, mode_t mode, struct failure *failure) {
    if (mkdir(path, 0700) < 0) return fail(failure, "mkdir");
    if (own(unit, path, FOLDER, failure) < 0) return -1;
    return chmod(path, mode) < 0 ? fail(failure, "chmod") : 0;
}

static int enter_cgroup(struct entrances *entrances, const char *path, int version, struct failure *failure) {
    bool taken = version == 2 ? entrances->unified >= 0 : entrances->count == CGROUPS_MAX;
    if (taken) return fail_with(failure, "open", E2BIG);
    int fd = cgroup_entrance(path, version, failure);
    if (fd < 0) return -1;
    if (version == 2) entrances->unified = fd;
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
static int write_id_maps(pid_t pid, const char *maps, struct failure *failure) {
    size_t length = strlen(maps);
    const char *gids = maps + length + 1;
    if (write_proc(pid, "uid_map", maps, length, failure) < 0) return -1;
    if (write_proc(pid, "gid_map", gids, strlen(gids), failure) == 0) return 0;
    if (failure->error != EPERM || write_proc(pid, "setgroups", "deny", 4, failure) < 0) return -1;
    return write_proc(pid, "gid_map", gids, strlen(gids), failure);
}

static char *copy_maps(const union field *uids, const union field *gids) {
    char *maps = malloc(uids->s.length + gids->s.length + 2);
    if (!maps) return NULL;
    memcpy(maps, uids->s.text, uids->s.length + 1);
    memcpy(maps + uids->s.length + 1, gids->s.text, gids->s.length + 1);
    return maps;
}

// Makes a user namespace with the maps. The process that it is made with ends as soon as there is a descriptor of the namespace.
static int make_layer_map(int *namespace, const struct operation *operation, struct failure *failure) {
    char path[64];
    struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    char *maps = copy_maps(&operation->layer_map.uids, &operation->layer_map.gids);
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

static int keep_open(struct unit *unit, int fd, struct failure *failure) {
    close_descriptor(&unit->kept_open);
    unit->kept_open = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return unit->kept_open < 0 ? fail(failure, "fcntl") : 0;
}

static int make_cgroup(struct unit *unit, const char *path, struct failure *failure) {
    return cgroup_create(path, failure) < 0 ? -1 : own(unit, path, CGROUP, failure);
}

static int attach(struct unit *unit, const struct operation *operation, struct failure *failure) {
    const char *path = operation->attach.path.s.text;
    if (sys_move_mount(unit->mount, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    close_descriptor(&unit->mount);
    if (own(unit, path, MOUNT_POINT, failure) < 0) {
        sys_umount2(path, MNT_DETACH);
        return -1;
    }
    unit->owned->discard = operation->attach.discard.i != 0;
    return 0;
}

static int change_owner(const struct operation *o, struct failure *failure) {
    return lchown(o->owner.path.s.text, (uid_t)o->owner.uid.i, (gid_t)o->owner.gid.i) < 0 ? fail(failure, "lchown") : 0;
}

static int hand_over(struct unit *unit, struct preparation *made) {
    if (made->given_count == GIVEN_MAX) return fail_with(&unit->failure, "plan", E2BIG);
    made->given[made->given_count++] = steal_fd(&unit->mount);
    return 0;
}

static int copy_attributes(const char *from, const char *path, struct failure *failure) {
    struct stat status;
    if (lstat(from, &status) < 0) return fail(failure, "lstat");
    if (lchown(path, status.st_uid, status.st_gid) < 0) return fail(failure, "lchown");
    return chmod(path, status.st_mode & 07777) < 0 ? fail(failure, "chmod") : 0;
}

static int prepare(struct unit *unit, const struct operation *o, const int *descriptors, struct preparation *made) {
    struct failure *failure = &unit->failure;
    switch (o->code) {
    case OP_CGROUP_CREATE: return make_cgroup(unit, o->cgroup_create.path.s.text, failure);
    case OP_CGROUP_WRITE: return cgroup_write(o->cgroup_write.file.s.text, o->cgroup_write.value.s.text, o->cgroup_write.value.s.length, failure);
    case OP_CGROUP_DEVICES: return cgroup_devices(o->cgroup_devices.path.s.text, o->cgroup_devices.program.b.bytes, o->cgroup_devices.program.b.length, failure);
    case OP_CGROUP_JOIN: return enter_cgroup(&made->entrances, o->cgroup_join.path.s.text, (int)o->cgroup_join.version.i, failure);
    case OP_SCRATCH: return make_scratch(unit, o->scratch.path.s.text, (mode_t)o->scratch.mode.i, failure);
    case OP_OVERLAY: return take_mount(unit, mount_overlay(o, made->layer_map, failure));
    case OP_OVERLAY_MEMORY: return take_mount(unit, mount_overlay_memory(o, made->layer_map, failure));
    case OP_TARGETS: mount_targets(unit->mount, o); return 0;
    case OP_KEEP_OPEN: return keep_open(unit, o->keep_open.descriptor.fd == NO_FD ? -1 : descriptors[o->keep_open.descriptor.fd], failure);
    case OP_LAYER_MAP: return make_layer_map(&made->layer_map, o, failure);
    case OP_DISCARD: return own(unit, o->discard.path.s.text, FOLDER, failure);
    case OP_OWNER: return change_owner(o, failure);
    case OP_FILESYSTEM: return take_mount(unit, volume_filesystem(o, failure));
    case OP_TREE: return take_mount(unit, volume_tree(o, made->layer_map, failure));
    case OP_COPY_ATTRIBUTES: return copy_attributes(o->copy_attributes.from.s.text, o->copy_attributes.path.s.text, failure);
    case OP_HAND_OVER: return hand_over(unit, made);
    case OP_ATTACH: return attach(unit, o, failure);
    default: return fail_with(failure, "plan", EINVAL);
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
    return fail_with(failure, "clone", EAGAIN);
}

static void leave_slot(struct unit *unit, struct supervisor *supervisor) {
    if (unit->slot >= 0) supervisor->successors[unit->slot] = -1;
    unit->slot = -1;
}

// The child has a copy of the supervisor's memory, which is small. The supervisor does not wait for the child, so a container that
// holds up a child does not hold up the supervisor.
static pid_t clone_child(const struct clone_args *arguments, const struct child *child, const struct entrances *entrances) {
    pid_t pid = (pid_t)syscall(SYS_clone3, arguments, sizeof *arguments);
    if (pid != 0) return pid;
    // A child that outlives the supervisor would hold the lock of the state folder, which could not be swept. A child in a frozen
    // cgroup of version 1 can outlive it, so the lock is closed before the child enters one.
    close(child->lock);
    // "0" is the writer itself. A write to cgroup.procs takes a lock that every fork and exit in the system shares; a thread that moves
    // itself by `tasks` does not take it (Linux 5.7).
    for (size_t k = 0; k < entrances->count; k++) {
        if (write(entrances->tasks[k], "0", 1) == 1) continue;
        struct failure failure = {.operation = (uint32_t)child->plan->process};
        fail(&failure, "write");
        if (write(child->failures, &failure, sizeof failure) < 0) _exit(126);
        _exit(127);
    }
    child_run(child);
}

static void free_letters(struct unit *unit) {
    while (unit->letters) {
        struct letter *letter = unit->letters;
        unit->letters = letter->next;
        close(letter->socket);
        free(letter);
    }
}

// Keeps the messages to other network namespaces, in their order, until the process has a network namespace of its own.
static int keep_letters(struct unit *unit, const struct plan *plan, const int *descriptors, struct failure *failure) {
    struct letter **end = &unit->letters;
    for (size_t k = plan->process; k < plan->count; k++) {
        const struct operation *operation = &plan->operations[k];
        if (operation->code != OP_NETLINK || operation->netlink.socket.fd == NO_FD || operation->netlink.pid_at.i == NO_PID) continue;
        const union field *messages = &operation->netlink.messages;
        struct letter *letter = malloc(sizeof *letter + messages->b.length);
        if (!letter) return fail(failure, "malloc");
        *letter = (struct letter){.operation = (uint32_t)k, .pid_at = operation->netlink.pid_at.i, .length = messages->b.length};
        memcpy(letter->messages, messages->b.bytes, messages->b.length);
        letter->socket = fcntl(descriptors[operation->netlink.socket.fd], F_DUPFD_CLOEXEC, 3);
        if (letter->socket < 0) {
            free(letter);
            return fail(failure, "fcntl");
        }
        *end = letter;
        end = &letter->next;
    }
    return 0;
}

static int start_process(struct unit *unit, struct supervisor *supervisor, const struct plan *plan,
                         const int *descriptors, const struct preparation *made) {
    const struct entrances *entrances = &made->entrances;
    const struct operation *maps = find(plan, OP_ID_MAP);
    struct failure *failure = &unit->failure;
    uint64_t flags = (uint64_t)plan->operations[plan->process].process.namespaces.i;
    int failures[2], sockets[2];

    unit->own_pids = flags & CLONE_NEWPID;
    failure->operation = (uint32_t)plan->process;
    if (pipe2(failures, O_CLOEXEC | O_NONBLOCK) < 0) return fail(failure, "pipe2");
    cleanup_close int childs_pipe = failures[1], childs_socket = -1;
    unit->failures = failures[0];
    if (maps && !(unit->maps = copy_maps(&maps->id_map.uids, &maps->id_map.gids))) return fail(failure, "malloc");
    if (maps) unit->maps_operation = (uint32_t)(maps - plan->operations);
    if (maps && keep_letters(unit, plan, descriptors, failure) < 0) return -1;
    if (maps || find(plan, OP_ATTACH_ROOT) || find(plan, OP_SEND_NETWORK)) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) return fail(failure, "socketpair");
        unit->socket = sockets[0];
        childs_socket = sockets[1];
    }
    bool needs_program = plan->operations[plan->count - 1].code == OP_EXEC_SELF;
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
        .given = made->given,
        .given_count = made->given_count,
        .arguments = supervisor->arguments,
        .arguments_length = supervisor->arguments_length,
        .program = supervisor->program,
        .netlink_sent = maps != NULL,
        .rootless = supervisor->rootless,
        .successors = supervisor->successors,
        .slot = forks ? (size_t)unit->slot : 0,
    };
    // A network namespace is owned by the user namespace in which it was made, so a new user namespace needs a new one.
    bool own_network = (flags & CLONE_NEWNET) && !(flags & CLONE_NEWUSER);
    bool spare = own_network && network_enter(&supervisor->network);
    struct clone_args arguments = {
        .flags = (spare ? flags & ~(uint64_t)CLONE_NEWNET : flags) | CLONE_PIDFD | (entrances->unified >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uint64_t)(uintptr_t)&unit->pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = entrances->unified >= 0 ? (uint64_t)entrances->unified : 0,
    };
    pid_t pid = clone_child(&arguments, &child, entrances);
    if (pid < 0) fail(failure, "clone3");
    if (spare) network_leave(&supervisor->network);
    if (pid < 0) return -1;
    unit->pid = pid;
    if (forks) unit->maker = pid;
    close_descriptor(&unit->mount); // the child has it now
    return 0;
}

bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors) {
    __attribute__((cleanup(close_preparation))) struct preparation made = {.entrances.unified = -1, .layer_map = -1};
    for (size_t k = 0; k < plan->process; k++) {
        if (prepare(unit, &plan->operations[k], descriptors, &made) == 0) continue;
        unit->failure.operation = (uint32_t)k;
        return false;
    }
    // On an older kernel, a first way to make a mount may have failed before another succeeded.
    unit->failure = (struct failure){0};
    return plan->process == plan->count || start_process(unit, supervisor, plan, descriptors, &made) == 0;
}

// A container may be able to write to the child's pipe: the message affects its own unit alone.
static void take_failure(struct unit *unit, const struct failure *failure) {
    unit->failure = *failure;
    unit->failure.syscall[sizeof failure->syscall - 1] = '\0';
    unit->failure.text[sizeof failure->text - 1] = '\0';
    unit->failed = true;
}

static int send_letters(struct unit *unit, struct failure *failure) {
    for (struct letter *letter = unit->letters; letter; letter = letter->next) {
        if (netlink_request(letter->socket, letter->messages, letter->length, letter->pid_at, unit->pid, failure) == 0) continue;
        failure->operation = letter->operation;
        return -1;
    }
    return 0;
}

static void give_maps(struct unit *unit) {
    struct failure failure = {.operation = unit->maps_operation};
    if (!unit->maps) return;
    int status = send_letters(unit, &failure);
    if (status == 0) status = write_id_maps(unit->pid, unit->maps, &failure);
    free_letters(unit);
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
    // The descriptor of the root is lost: the container's files cannot be reached.
    if (!unit->failed && n < 0 && errno == EMFILE) fail(&unit->failure, "recvmsg");
}

bool unit_executed(struct unit *unit) {
    struct failure failure;
    unit_listen(unit);
    if (read(unit->failures, &failure, sizeof failure) == (ssize_t)sizeof failure) take_failure(unit, &failure);
    close_descriptor(&unit->socket);
    close_descriptor(&unit->failures);
    return !unit->failed;
}

void unit_find_successor(struct unit *unit, struct supervisor *supervisor) {
    if (unit->slot < 0 || supervisor->successors[unit->slot] <= 0) return;
    unit->pid = supervisor->successors[unit->slot];
    leave_slot(unit, supervisor);
    close_descriptor(&unit->pidfd);
    // Only the supervisor waits for it, so the pid cannot have been reused.
    if ((unit->pidfd = sys_pidfd_open(unit->pid)) < 0) fail(&unit->failure, "pidfd_open");
}

void unit_kill(struct unit *unit, struct supervisor *supervisor) {
    // A pid cannot be reused before its process has been waited for. If the maker is killed before the kernel has written the pid of the
    // successor, the pid is read when the maker has been waited for.
    unit_find_successor(unit, supervisor);
    if (unit->maker > 0) kill(unit->maker, SIGKILL);
    if (unit->pid > 0) kill(unit->pid, SIGKILL);
    if (unit->own_pids) return;
    // Each process begins a session, so all that it has started is in its process group, unless it has left for another.
    if (unit->pid > 0) kill(-unit->pid, SIGKILL);
    for (struct owned *owned = unit->owned; owned; owned = owned->next)
        if (owned->kind == CGROUP) cgroup_kill(owned->path);
}

bool unit_settle(struct unit *unit) {
    for (struct owned **link = &unit->owned; *link;) {
        struct owned *owned = *link;
        if (owned->kind != CGROUP || rmdir(owned->path) < 0) {
            link = &owned->next;
            continue;
        }
        *link = owned->next;
        free(owned);
    }
    return !unit->owned;
}

// As fork(2). A remover that outlives the supervisor would hold the lock of the state folder, which could not be swept.
static pid_t fork_remover(struct unit *unit) {
    pid_t supervisor = getpid(), remover = fork();
    if (remover == 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != supervisor)) _exit(1);
    unit->remover = remover > 0 ? remover : 0;
    return remover;
}

static int remove_scratch(struct unit *unit, const char *path) {
    int result = remove_tree(AT_FDCWD, path, REMOVE_AT_ONCE);
    if (result != 1) return result;
    pid_t remover = fork_remover(unit);
    // Containers may use up all processes. The supervisor then removes the folder in parts, so that no other unit waits for it.
    if (remover < 0) return remove_tree(AT_FDCWD, path, REMOVE_IN_TURN);
    if (remover > 0) return 1;
    _exit(remove_tree(AT_FDCWD, path, __LONG_MAX__) == 0 ? 0 : 1);
}

static void disown(struct unit *unit) {
    struct owned *owned = unit->owned;
    unit->owned = owned->next;
    free(owned);
}

// The last unmount of a file system writes what is not written yet, which a container can make much: a process of its own waits for it.
// Below a mount that is still there are files that a later unit of the same volume needs: the folders around it stay as well, for
// a sweep, which has another mount namespace.
static int unmount(struct unit *unit, struct owned *point) {
    if (!point->tried) {
        point->tried = true;
        if (point->discard) volume_discard(point->path);
        pid_t remover = fork_remover(unit);
        if (remover > 0) return 1;
        if (remover == 0) {
            sys_umount2(point->path, MNT_DETACH | UMOUNT_NOFOLLOW);
            _exit(0);
        }
    }
    if (sys_umount2(point->path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || errno == EINVAL || errno == ENOENT) return 0;
    fail(&unit->leftover, "umount2");
    for (struct owned *rest = point->next, *next; rest; rest = next) {
        next = rest->next;
        free(rest);
    }
    point->next = NULL;
    return -1;
}

void unit_give_up(struct unit *unit, int error) {
    errno = error;
    if (unit->leftover.error == 0) fail(&unit->leftover, unit->owned->kind == CGROUP ? "rmdir" : "unlinkat");
    disown(unit);
}

void unit_remover_done(struct unit *unit, int status) {
    unit->remover = 0;
    if (status != 0 && unit->owned->kind == FOLDER) unit_give_up(unit, EIO);
}

int unit_remove(struct unit *unit) {
    while (unit->owned) {
        struct owned *owned = unit->owned;
        if (unit->remover > 0) return 1;
        int result = owned->kind == CGROUP        ? cgroup_remove(owned->path)
                     : owned->kind == MOUNT_POINT ? unmount(unit, owned)
                                                  : remove_scratch(unit, owned->path);
        if (result == 1) return 1;
        if (result < 0 && owned->kind == CGROUP && errno == EBUSY) {
            cgroup_kill(owned->path);
            return 1;
        }
        // A folder that somebody else has removed is gone as well.
        if (result < 0 && errno != ENOENT) unit_give_up(unit, errno);
        else disown(unit);
    }
    return unit->leftover.error != 0 ? -1 : 0;
}

void unit_free(struct unit *unit, struct supervisor *supervisor) {
    leave_slot(unit, supervisor);
    free(unit->maps);
    free_letters(unit);
    while (unit->owned) disown(unit);
    close_descriptor(&unit->pidfd);
    close_descriptor(&unit->failures);
    close_descriptor(&unit->socket);
    close_descriptor(&unit->mount);
    close_descriptor(&unit->kept_open);
    for (size_t k = 0; k < countof(unit->outputs); k++) close_descriptor(&unit->outputs[k]);
    free(unit);
}
