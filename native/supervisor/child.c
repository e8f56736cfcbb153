#include "child.h"
#include "../common/descriptor.h"
#include "mount.h"
#include "pid_namespace.h"
#include "privilege.h"
#include "../common/syscalls.h"
#include "terminal.h"
#include "../common/util.h"

#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define PROC_SUPER_MAGIC 0x9fa0
#define SOURCES_MAX 512

struct state {
    const struct child *child;
    struct failure failure;
    struct root root;
    int null; // what files are masked with, where it was opened beforehand, else -1
    int *sources; // of binds, in the order of the plan, where they were opened beforehand
    size_t opened, used;
    int empty; // the mount that masked folders share
    int proc;  // a procfs that has been taken, or -1
};

static int invalid(struct failure *failure, const char *call, int error) {
    errno = error;
    return fail(failure, call);
}

static int descriptor(const struct child *child, const union field *field) {
    return field->fd == NO_FD ? child->null : child->descriptors[field->fd];
}

// The maps are written by the supervisor. One in a user namespace of its own has to see this process's /proc/PID/uid_map as
// its own, so it is dumpable for that long: it is in no pid namespace that a container is in.
static int await_id_map(const struct child *child, struct failure *failure) {
    char byte;
    ssize_t n;
    if (child->rootless && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0) return fail(failure, "prctl");
    if (send(child->socket, "", 1, MSG_NOSIGNAL) != 1) return fail(failure, "send");
    while ((n = recv(child->socket, &byte, 1, 0)) < 0 && errno == EINTR) continue;
    if (n != 1) _exit(127); // the supervisor could not write them and reports that itself
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    return 0;
}

// Becomes root of the user namespace that this process is in. Until then it was its host's root, whose files nobody in
// there can reach, and whom it has no id for: what it mounts or makes would be nobody's. So what the plan still takes
// from the host is opened first.
static int root_user(struct state *state, const struct operation *operation, struct failure *failure) {
    const struct plan *plan = state->child->plan;
    for (; operation < plan->operations + plan->count; operation++) {
        if (operation->code != OP_BIND && (operation->code != OP_MASK || state->null >= 0)) continue;
        int fd = open(operation->field[0].s.text, O_PATH | O_CLOEXEC);
        if (fd < 0) return fail(failure, "open");
        if (operation->code == OP_MASK) state->null = fd;
        else if (state->opened < SOURCES_MAX) state->sources[state->opened++] = fd;
        else return invalid(failure, "open", E2BIG);
    }
    // Groups of the host's are none in there; where only one id is mapped, none can be set (user_namespaces(7)).
    if (syscall(SYS_setgroups, 0, NULL) < 0 && errno != EPERM) return fail(failure, "setgroups");
    if (syscall(SYS_setresgid, 0, 0, 0) < 0) return fail(failure, "setresgid");
    if (syscall(SYS_setresuid, 0, 0, 0) < 0) return fail(failure, "setresuid");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    return privilege_die_with(state->child->supervisor, failure);
}

// A pid namespace is joined for one's children only (pid_namespaces(7)): `fork` goes on in one. Joining a user namespace makes
// a process dumpable again (CVE-2016-9962), so that is put right at once.
static int join(const struct child *child, int pidfd, int64_t flags, struct failure *failure) {
    if (setns(pidfd, (int)flags) < 0) return fail(failure, "setns");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    // The kernel clears this one as well.
    return flags & CLONE_NEWUSER ? privilege_die_with(child->supervisor, failure) : 0;
}

#define KEPT_MAX 8

// In ascending order.
static bool keep(int *kept, size_t *count, int fd) {
    size_t at = *count;
    if (fd < 3) return true;
    if (*count == KEPT_MAX) return false;
    for (; at > 0 && kept[at - 1] > fd; at--) kept[at] = kept[at - 1];
    kept[at] = fd;
    (*count)++;
    return true;
}

// Closes all but the standard streams and what the operations that are left name. A container that may trace its processes
// has those of the next one as its own.
static int close_all_but_needed(const struct child *child, const struct operation *operation, struct failure *failure) {
    int kept[KEPT_MAX], next = 3;
    size_t count = 0;
    bool fits = keep(kept, &count, child->failures);
    for (; operation < child->plan->operations + child->plan->count; operation++) {
        const char *fields = operation_kinds[operation->code].fields;
        if (operation->code == OP_SELF) fits &= keep(kept, &count, child->program);
        for (size_t k = 0; fields[k]; k++)
            if (fields[k] == 'f' && operation->field[k].fd != NO_FD) fits &= keep(kept, &count, child->descriptors[operation->field[k].fd]);
    }
    if (!fits) return invalid(failure, "close_range", E2BIG);
    for (size_t k = 0; k < count; k++) {
        if (next < kept[k] && sys_close_range((unsigned)next, (unsigned)kept[k] - 1, 0) < 0) return fail(failure, "close_range");
        next = kept[k] + 1;
    }
    return sys_close_range((unsigned)next, ~0U, 0) < 0 ? fail(failure, "close_range") : 0;
}

// Goes on in a child, the first process of this plan that is in a pid namespace which others are in: they see it, and may
// stop or kill it. So all is done by then, and it has nothing that they may not have; this process, which they never see, is
// gone. The supervisor becomes its parent (CLONE_PARENT) and learns its pid from memory that it does not have.
//
// clone(2), as a seccomp filter may be there already: one that denies clone3(2) and looks at clone's flags.
static int go_on_in_child(const struct child *child, const struct operation *operation, struct failure *failure) {
    struct pollfd supervisor = {.fd = child->failures};
    if (close_all_but_needed(child, operation + 1, failure) < 0) return -1;
    // Its folder is nobody's business in there.
    memset(child->arguments, 0, child->arguments_length);
    // The kernel writes where memory is by then: what it cannot write it does not tell.
    child->successors[child->slot] = 0;
    if (madvise(child->successors, SUCCESSORS_MAX * sizeof(pid_t), MADV_DONTFORK) < 0) return fail(failure, "madvise");
    long pid = syscall(SYS_clone, CLONE_PARENT | CLONE_PARENT_SETTID, NULL, &child->successors[child->slot], NULL, NULL);
    if (pid < 0) return fail(failure, "clone");
    if (pid > 0) _exit(0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return fail(failure, "prctl");
    if (poll(&supervisor, 1, 0) > 0 && (supervisor.revents & POLLERR)) _exit(127);
    return 0;
}

static int controlling_terminal(struct failure *failure) {
    return ioctl(0, TIOCSCTTY, 0) < 0 ? fail(failure, "ioctl") : 0;
}

// Standard streams may lie on each other's numbers: all are first moved out of the way.
static int place_stdio(const struct child *child, const union field *fields, struct failure *failure) {
    int moved[3];
    for (int k = 0; k < 3; k++)
        if ((moved[k] = fcntl(descriptor(child, &fields[k]), F_DUPFD_CLOEXEC, 3)) < 0) return fail(failure, "fcntl");
    for (int k = 0; k < 3; k++) {
        if (dup2(moved[k], k) < 0) return fail(failure, "dup2");
        close(moved[k]);
    }
    return 0;
}

static int loopback_up(struct failure *failure) {
    struct ifreq interface = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return fail(failure, "socket");
    return ioctl(fd, SIOCSIFFLAGS, &interface) < 0 ? fail(failure, "ioctl") : 0;
}

// A connection to loopback inside this network namespace, handed out.
static int connect_out(int socket_out, int64_t version, int64_t port, struct failure *failure) {
    const struct sockaddr_in v4 = {AF_INET, htons((uint16_t)port), {htonl(INADDR_LOOPBACK)}, {0}};
    const struct sockaddr_in6 v6 = {AF_INET6, htons((uint16_t)port), 0, IN6ADDR_LOOPBACK_INIT, 0};
    cleanup_close int fd = socket(version == 6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return fail(failure, "socket");
    int status = version == 6 ? connect(fd, (const struct sockaddr *)&v6, sizeof v6) : connect(fd, (const struct sockaddr *)&v4, sizeof v4);
    if (status < 0) return fail(failure, "connect");
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) return fail(failure, "fcntl");
    if (descriptor_send(socket_out, "", 1, fd) < 0) return fail(failure, "sendmsg");
    _exit(0);
}

// Through a procfs of its own that is attached nowhere, never through what the container has at /proc
// (CVE-2019-19921, CVE-2025-52881).
static int write_sysctl(const char *key, const union field *value, struct failure *failure) {
    struct statfs kind;
    char path[256] = "sys/";
    cleanup_close int fs = sys_fsopen("proc", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0) return fail(failure, "fsconfig");
    cleanup_close int proc = sys_fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    if (proc < 0) return fail(failure, "fsmount");
    if (fstatfs(proc, &kind) < 0 || kind.f_type != PROC_SUPER_MAGIC) return invalid(failure, "fstatfs", ENODEV);
    if (strlen(key) >= sizeof path - 4) return invalid(failure, "openat2", ENAMETOOLONG);
    memcpy(path + 4, key, strlen(key) + 1);
    cleanup_close int file = sys_openat2(proc, path, O_WRONLY | O_CLOEXEC, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
    if (file < 0) return fail(failure, "openat2");
    return write(file, value->s.text, value->s.length) != (ssize_t)value->s.length ? fail(failure, "write") : 0;
}

static int open_folder(int root, const char *path) {
    for (int attempt = 0;; attempt++) {
        int fd = sys_openat2(root, path, O_PATH | O_DIRECTORY | O_CLOEXEC, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
        if (fd >= 0 || errno != EAGAIN || attempt == 32) return fd;
    }
}

// After the pivot: a folder by its name, never by a descriptor that is still open here, and one that can be reached from
// the new root (CVE-2024-21626).
static int enter(const char *path, int create, struct failure *failure) {
    char reached[4096];
    cleanup_close int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return fail(failure, "open");
    cleanup_close int folder = open_folder(root, path);
    if (folder < 0 && errno == ENOENT && create) {
        const struct root whole = {.mount = root};
        if (mount_directory(&whole, path, 0755, failure) < 0) return -1;
        folder = open_folder(root, path);
    }
    if (folder < 0) return fail(failure, "openat2");
    if (fchdir(folder) < 0) return fail(failure, "fchdir");
    if (syscall(SYS_getcwd, reached, sizeof reached) < 0) return fail(failure, "getcwd");
    return reached[0] != '/' ? invalid(failure, "getcwd", ENOENT) : 0;
}

// As execvp(3) would: a path that is there but cannot be executed decides the error over those that are not there.
static int execute(const struct child *child, const union field *fields, struct failure *failure) {
    char *const *argv = fields[2].l.items, *const *env = fields[3].l.items;
    int error = ENOENT;
    sigset_t none;
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) < 0) return fail(failure, "sigprocmask");
    if (sys_close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) < 0) return fail(failure, "close_range");
    if (fields[0].fd != NO_FD) {
        syscall(SYS_execveat, child->descriptors[fields[0].fd], "", argv, env, AT_EMPTY_PATH);
        return fail(failure, "execveat");
    }
    for (size_t k = 0; k < fields[1].l.count; k++) {
        execve(fields[1].l.items[k], argv, env);
        if (errno == EACCES) error = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR) return fail(failure, "execve");
    }
    return invalid(failure, "execve", error);
}

// Becomes the supervisor's executable again, from its copy for containers, to have nothing of the supervisor's memory. The pipe
// for a failure goes along as descriptor 3: see init.h.
static int execute_self(const struct child *child, const union field *fields, struct failure *failure) {
    if (child->failures == 3 ? fcntl(3, F_SETFD, 0) < 0 : dup2(child->failures, 3) < 0) return fail(failure, "dup2");
    if (sys_close_range(4, ~0U, CLOSE_RANGE_CLOEXEC) < 0) return fail(failure, "close_range");
    syscall(SYS_execveat, child->program, "", fields[0].l.items, fields[1].l.items, AT_EMPTY_PATH);
    return fail(failure, "execveat");
}

// Who this process is, by its number and the time of its start, which nothing that it does can change: for a sweep, in the
// host's /proc, which is still there (lib/internal/berth/sweep.ts).
static int record(const char *path, struct failure *failure) {
    char text[1024];
    cleanup_close int own = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (own < 0) return fail(failure, "open");
    ssize_t n = read(own, text, sizeof text);
    if (n < 0) return fail(failure, "read");
    cleanup_close int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return fail(failure, "open");
    return write(file, text, (size_t)n) != n ? fail(failure, "write") : 0;
}

// The supervisor keeps the root's descriptor, by which the container's files can be reached from outside for as long as
// the unit is there, the process alive or not.
static int attach_root(const struct state *state, struct failure *failure) {
    if (mount_attach_root(state->root.mount, failure) < 0) return -1;
    return descriptor_send(state->child->socket, "", 1, state->root.mount) < 0 ? fail(failure, "sendmsg") : 0;
}

static int take_root(struct state *state, int mount) {
    if (mount < 0) return -1;
    state->root.mount = mount;
    return 0;
}

static int perform(struct state *state, const struct operation *operation) {
    const struct child *child = state->child;
    const union field *f = operation->field;
    struct failure *failure = &state->failure;

    switch (operation->code) {
    case OP_OVERLAY: return take_root(state, mount_overlay(&f[0], f[1].s.text, f[2].s.text, &f[3], (unsigned)f[4].i, -1, failure));
    case OP_OVERLAY_MEMORY: return take_root(state, mount_overlay_memory(&f[0], (unsigned)f[1].i, &f[2], &f[3], (unsigned)f[4].i, -1, failure));
    case OP_ROOT_MOUNT: return take_root(state, mount_reuse(descriptor(child, &f[0]), failure));
    case OP_ROOT_BIND: return take_root(state, mount_clone(f[0].s.text, (unsigned)f[1].i, f[2].i != 0, failure));
    case OP_FORK: return go_on_in_child(child, operation, failure);
    case OP_CONTROLLING_TERMINAL: return controlling_terminal(failure);
    case OP_EMPTY_ROOT: return pid_namespace_empty_root(f[0].s.text, f[1].i != 0, failure);
    case OP_PROC_OF: return (state->proc = pid_namespace_proc(descriptor(child, &f[0]), &f[1], failure)) < 0 ? -1 : 0;
    case OP_RECORD: return record(f[0].s.text, failure);
    case OP_ID_MAP: return await_id_map(child, failure);
    case OP_ROOT_USER: return root_user(state, operation, failure);
    case OP_JOIN: return join(child, descriptor(child, &f[0]), f[1].i, failure);
    case OP_SESSION: return setsid() < 0 ? fail(failure, "setsid") : 0;
    case OP_KEYRING: return privilege_keyring(failure);
    case OP_STDIO: return place_stdio(child, f, failure);
    case OP_RLIMIT: return privilege_rlimit(f, failure);
    case OP_UNSHARE: return unshare((int)f[0].i) < 0 ? fail(failure, "unshare") : 0;
    case OP_LOOPBACK: return loopback_up(failure);
    case OP_ROOT: return attach_root(state, failure);
    case OP_MOUNT: return mount_filesystem(&state->root, &state->proc, f, failure);
    case OP_BIND: return mount_bind(&state->root, state->used < state->opened ? state->sources[state->used++] : -1, f, failure);
    case OP_DIRECTORY: return mount_directory(&state->root, f[0].s.text, (unsigned)f[1].i, failure);
    case OP_SYMLINK: return mount_symlink(&state->root, f[0].s.text, f[1].s.text, failure);
    case OP_MASK: return mount_mask(&state->root, &state->empty, state->null, f, failure);
    case OP_READONLY: return mount_readonly(&state->root, f, failure);
    case OP_PIVOT: return mount_pivot(state->root.mount, failure);
    case OP_ROOT_READONLY: return mount_root_readonly(failure);
    case OP_HOSTNAME: return sethostname(f[0].s.text, f[0].s.length) < 0 ? fail(failure, "sethostname") : 0;
    case OP_DOMAINNAME: return setdomainname(f[0].s.text, f[0].s.length) < 0 ? fail(failure, "setdomainname") : 0;
    case OP_SYSCTL: return write_sysctl(f[0].s.text, &f[1], failure);
    case OP_WORKING_DIRECTORY: return enter(f[0].s.text, f[1].i != 0, failure);
    case OP_UMASK: umask((mode_t)f[0].i); return 0;
    case OP_BOUNDING: return privilege_bounding((uint64_t)f[0].i, failure);
    case OP_USER: return privilege_user(f, failure) < 0 ? -1 : privilege_die_with(child->supervisor, failure);
    case OP_CAPABILITIES: return privilege_capabilities(f, failure);
    case OP_TERMINAL: return terminal_open(descriptor(child, &f[0]), (unsigned)f[1].i, (unsigned)f[2].i, (unsigned)f[3].i, failure);
    case OP_APPARMOR: return privilege_apparmor(&f[0], failure);
    case OP_NO_NEW_PRIVILEGES: return privilege_no_new_privileges(failure);
    case OP_SECCOMP: return privilege_seccomp(f, f[2].fd == NO_FD ? -1 : child->descriptors[f[2].fd], failure);
    case OP_EXEC: return execute(child, f, failure);
    case OP_CONNECT: return connect_out(descriptor(child, &f[0]), f[1].i, f[2].i, failure);
    case OP_SELF: return execute_self(child, f, failure);
    default: return invalid(failure, "plan", EINVAL);
    }
}

_Noreturn void child_run(const struct child *child) {
    int sources[SOURCES_MAX];
    struct state state = {.child = child, .root = {.mount = child->root}, .empty = -1, .null = -1, .proc = -1, .sources = sources};
    size_t at = child->plan->process;
    // The plan's own umask comes later; until then modes are what the plan says.
    umask(0);
    if (privilege_die_with(child->supervisor, &state.failure) == 0) {
        while (++at < child->plan->count)
            if (perform(&state, &child->plan->operations[at]) < 0) break;
    }
    state.failure.operation = (uint32_t)at;
    // A message is whole or not at all; there is nobody to tell of the latter.
    if (write(child->failures, &state.failure, sizeof state.failure) < 0) _exit(126);
    _exit(127);
}
