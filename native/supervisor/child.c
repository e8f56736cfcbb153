#include "child.h"
#include "../common/descriptor.h"
#include "mount.h"
#include "netlink.h"
#include "pid_namespace.h"
#include "privilege.h"
#include "../common/syscalls.h"
#include "terminal.h"
#include "../common/util.h"

#include <linux/netlink.h>
#include <linux/nsfs.h>
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
    int null;     // the null device that masks files, if it was opened beforehand, else -1
    int *sources; // of binds, in the order of the plan, if they were opened beforehand
    size_t opened, used;
    size_t placed; // of the mounts that the supervisor has given
    int empty; // the mount that all masked folders share
    int proc;  // the procfs that `take-proc` has copied, or -1
};

static int descriptor(const struct child *child, const union field *field) {
    return field->fd == NO_FD ? child->null : child->descriptors[field->fd];
}

// The supervisor writes the maps. A supervisor in a user namespace of its own can open this process's /proc/PID/uid_map only while
// this process is dumpable. That is safe: this process is in no pid namespace that a container can see.
static int await_id_map(const struct child *child, struct failure *failure) {
    char byte;
    ssize_t n;
    if (child->rootless && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0) return fail(failure, "prctl");
    if (send(child->socket, "", 1, MSG_NOSIGNAL) != 1) return fail(failure, "send");
    while ((n = recv(child->socket, &byte, 1, 0)) < 0 && errno == EINTR) continue;
    if (n != 1) _exit(127); // the supervisor could not write the maps, and reports that itself
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    return 0;
}

// Becomes root of the user namespace that this process is in. As the host's root, which has no id there, it could open files of
// the host, but its mounts and files would belong to nobody. So the remaining files of the host are opened first.
static int root_user(struct state *state, const struct operation *operation, struct failure *failure) {
    const struct plan *plan = state->child->plan;
    for (; operation < plan->operations + plan->count; operation++) {
        bool masks = operation->code == OP_MASK && state->null < 0;
        if (operation->code != OP_BIND && !masks) continue;
        int fd = open(masks ? operation->mask.null.s.text : operation->bind.source.s.text, O_PATH | O_CLOEXEC);
        if (fd < 0) return fail(failure, "open");
        if (masks) state->null = fd;
        else if (state->opened < SOURCES_MAX) state->sources[state->opened++] = fd;
        else return fail_with(failure, "open", E2BIG);
    }
    // The host's groups do not exist in the namespace. A namespace that maps a single id allows no setgroups (user_namespaces(7)).
    if (syscall(SYS_setgroups, 0, NULL) < 0 && errno != EPERM) return fail(failure, "setgroups");
    if (syscall(SYS_setresgid, 0, 0, 0) < 0) return fail(failure, "setresgid");
    if (syscall(SYS_setresuid, 0, 0, 0) < 0) return fail(failure, "setresuid");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    return privilege_die_with(state->child->supervisor, failure);
}

// setns(2) into a pid namespace takes effect for later children only (pid_namespaces(7)): `fork` makes one. setns(2) into a user
// namespace makes the process dumpable again (CVE-2016-9962), which is undone at once.
static int join_namespaces(const struct child *child, int fd, int flags, struct failure *failure) {
    if (setns(fd, flags) < 0) return fail(failure, "setns");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    // The kernel clears the parent-death signal as well.
    return flags & CLONE_NEWUSER ? privilege_die_with(child->supervisor, failure) : 0;
}

static int join(const struct child *child, const struct operation *operation, struct failure *failure) {
    return join_namespaces(child, descriptor(child, &operation->join.process), (int)operation->join.namespaces.i, failure);
}

static int join_owner(const struct child *child, const struct operation *operation, struct failure *failure) {
    cleanup_close int owner = ioctl(descriptor(child, &operation->join_owner.namespace), NS_GET_USERNS);
    if (owner < 0) return fail(failure, "ioctl");
    return join_namespaces(child, owner, CLONE_NEWUSER, failure);
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

// Closes all descriptors but the standard streams and those that the remaining operations name. A container that may trace its
// processes can use every descriptor of the next one.
static int close_all_but_needed(const struct child *child, const struct operation *operation, struct failure *failure) {
    int kept[KEPT_MAX], next = 3;
    size_t count = 0;
    bool fits = keep(kept, &count, child->failures);
    for (; operation < child->plan->operations + child->plan->count; operation++) {
        const char *fields = operation_kinds[operation->code].fields;
        if (operation->code == OP_EXEC_SELF) fits &= keep(kept, &count, child->program);
        for (size_t k = 0; fields[k]; k++)
            if (fields[k] == 'f' && operation->field[k].fd != NO_FD) fits &= keep(kept, &count, child->descriptors[operation->field[k].fd]);
    }
    if (!fits) return fail_with(failure, "close_range", E2BIG);
    for (size_t k = 0; k < count; k++) {
        if (next < kept[k] && sys_close_range((unsigned)next, (unsigned)kept[k] - 1, 0) < 0) return fail(failure, "close_range");
        next = kept[k] + 1;
    }
    return sys_close_range((unsigned)next, ~0U, 0) < 0 ? fail(failure, "close_range") : 0;
}

// Continues in a child, which is in the pid namespace that this process has joined. Others in there see the child and may stop or
// kill it. So all preparation is done by then, and the child has nothing that a container may not have. They never see this
// process, which ends. The supervisor becomes the parent of the child (CLONE_PARENT) and reads its pid from memory that the child
// does not have.
//
// clone(2) rather than clone3(2): a seccomp filter may be loaded already, and a filter that checks the flags of clone has to deny
// clone3, whose flags it cannot read.
static int continue_in_child(const struct child *child, const struct operation *operation, struct failure *failure) {
    struct pollfd supervisor = {.fd = child->failures};
    if (close_all_but_needed(child, operation + 1, failure) < 0) return -1;
    // A container must not learn the path of the state folder.
    memset(child->arguments, 0, child->arguments_length);
    // The write makes the page present: the kernel does not report a pid that it cannot write.
    child->successors[child->slot] = 0;
    if (madvise(child->successors, SUCCESSORS_MAX * sizeof(pid_t), MADV_DONTFORK) < 0) return fail(failure, "madvise");
    long pid = syscall(SYS_clone, CLONE_PARENT | CLONE_PARENT_SETTID, NULL, &child->successors[child->slot], NULL, NULL);
    if (pid < 0) return fail(failure, "clone");
    if (pid > 0) {
        // The end of this process takes a while, and the child may wait for its processor.
        close(child->failures);
        sched_yield();
        _exit(0);
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return fail(failure, "prctl");
    if (poll(&supervisor, 1, 0) > 0 && (supervisor.revents & POLLERR)) _exit(127);
    return 0;
}

static int controlling_terminal(struct failure *failure) {
    return ioctl(0, TIOCSCTTY, 0) < 0 ? fail(failure, "ioctl") : 0;
}

// A stream may have the number of another: all three are first moved to free numbers.
static int place_stdio(const struct child *child, const union field streams[3], struct failure *failure) {
    int moved[3];
    for (int k = 0; k < 3; k++)
        if ((moved[k] = fcntl(descriptor(child, &streams[k]), F_DUPFD_CLOEXEC, 3)) < 0) return fail(failure, "fcntl");
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

static int bound_socket(int type, struct failure *failure) {
    const struct sockaddr_in resolver = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr = {htonl(0x7f00000b)}}; // 127.0.0.11
    cleanup_close int fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail(failure, "socket");
    if (bind(fd, (const struct sockaddr *)&resolver, sizeof resolver) < 0) return fail(failure, "bind");
    if (type == SOCK_STREAM && listen(fd, 16) < 0) return fail(failure, "listen");
    return steal_fd(&fd);
}

// Sends the sockets on which this network namespace asks for names to the responder outside, before the command can ask.
static int send_name_sockets(const struct child *child, const struct operation *operation, struct failure *failure) {
    const union field *message = &operation->name_sockets.message;
    cleanup_close int datagrams = bound_socket(SOCK_DGRAM, failure);
    if (datagrams < 0) return -1;
    cleanup_close int connections = bound_socket(SOCK_STREAM, failure);
    if (connections < 0) return -1;
    const int sockets[] = {datagrams, connections};
    struct pollfd responder = {.fd = descriptor(child, &operation->name_sockets.responder), .events = POLLOUT};
    while (descriptors_send(responder.fd, message->s.text, message->s.length, sockets, 2) < 0) {
        if (errno != EAGAIN) return fail(failure, "sendmsg");
        poll(&responder, 1, -1); // until it has read some of what others have sent
    }
    return 0;
}

// Messages to another network namespace name this process, whose namespace an interface moves to. A process in a user namespace of
// its own has no rights over the other one: the supervisor sends them for it, with its id maps.
static int send_netlink(const struct child *child, const struct operation *operation, struct failure *failure) {
    const union field *messages = &operation->netlink.messages;
    if (operation->netlink.socket.fd == NO_FD) return netlink_request_here(NETLINK_ROUTE, (void *)messages->b.bytes, messages->b.length, failure);
    if (child->netlink_sent && operation->netlink.pid_at.i != NO_PID) return 0;
    return netlink_request(descriptor(child, &operation->netlink.socket), (void *)messages->b.bytes, messages->b.length, operation->netlink.pid_at.i, getpid(), failure);
}

// Through a procfs of its own that is attached nowhere, never through the container's /proc, where anything may be mounted
// (CVE-2019-19921, CVE-2025-52881).
static int write_sysctl(const struct operation *operation, struct failure *failure) {
    // Kept for the operations that follow, as the end of a mount costs more than all else here: exec closes it.
    static int proc = -1;
    const union field *key = &operation->sysctl.key, *value = &operation->sysctl.value;
    struct statfs kind;
    char path[256] = "sys/";
    if (proc < 0) {
        cleanup_close int fs = sys_fsopen("proc", FSOPEN_CLOEXEC);
        if (fs < 0) return fail(failure, "fsopen");
        if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0) return fail(failure, "fsconfig");
        proc = sys_fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    }
    if (proc < 0) return fail(failure, "fsmount");
    if (fstatfs(proc, &kind) < 0 || kind.f_type != PROC_SUPER_MAGIC) return fail_with(failure, "fstatfs", ENODEV);
    if (key->s.length >= sizeof path - 4) return fail_with(failure, "openat2", ENAMETOOLONG);
    memcpy(path + 4, key->s.text, key->s.length + 1);
    cleanup_close int file = sys_openat2(proc, path, O_WRONLY, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
    if (file < 0) return fail(failure, "openat2");
    return write(file, value->s.text, value->s.length) != (ssize_t)value->s.length ? fail(failure, "write") : 0;
}

// Enters the working directory after the pivot. It is opened by its name, never by a descriptor that is still open here, and must
// be reachable from the new root (CVE-2024-21626).
static int enter(const char *path, int create, struct failure *failure) {
    char reached[4096];
    const uint64_t flags = O_PATH | O_DIRECTORY, resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    cleanup_close int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return fail(failure, "open");
    cleanup_close int folder = sys_openat2(root, path, flags, 0, resolve);
    if (folder < 0 && errno == ENOENT && create) {
        const struct root whole = {.mount = root};
        if (mount_directory(&whole, path, 0755, failure) < 0) return -1;
        folder = sys_openat2(root, path, flags, 0, resolve);
    }
    if (folder < 0) return fail(failure, "openat2");
    if (fchdir(folder) < 0) return fail(failure, "fchdir");
    if (syscall(SYS_getcwd, reached, sizeof reached) < 0) return fail(failure, "getcwd");
    return reached[0] != '/' ? fail_with(failure, "getcwd", ENOENT) : 0;
}

// As execvp(3): the error of an existing path that cannot be executed takes precedence over ENOENT.
static int execute(const struct child *child, const struct operation *operation, struct failure *failure) {
    const union field *program = &operation->exec.program, *paths = &operation->exec.paths;
    char *const *argv = operation->exec.arguments.l.items, *const *env = operation->exec.environment.l.items;
    int error = ENOENT;
    sigset_t none;
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) < 0) return fail(failure, "sigprocmask");
    if (sys_close_range(3, ~0U, CLOSE_RANGE_CLOEXEC) < 0) return fail(failure, "close_range");
    if (program->fd != NO_FD) {
        syscall(SYS_execveat, child->descriptors[program->fd], "", argv, env, AT_EMPTY_PATH);
        return fail(failure, "execveat");
    }
    for (size_t k = 0; k < paths->l.count; k++) {
        execve(paths->l.items[k], argv, env);
        if (errno == EACCES) error = EACCES;
        else if (errno != ENOENT && errno != ENOTDIR) return fail(failure, "execve");
    }
    return fail_with(failure, "execve", error);
}

// Executes the supervisor's executable again, from its copy for containers, so that nothing of the supervisor's memory stays. The
// pipe for a failure becomes descriptor 3: see init.h.
static int execute_self(const struct child *child, const struct operation *operation, struct failure *failure) {
    char *const *argv = operation->exec_self.arguments.l.items, *const *env = operation->exec_self.environment.l.items;
    if (child->failures == 3 ? fcntl(3, F_SETFD, 0) < 0 : dup2(child->failures, 3) < 0) return fail(failure, "dup2");
    if (sys_close_range(4, ~0U, CLOSE_RANGE_CLOEXEC) < 0) return fail(failure, "close_range");
    syscall(SYS_execveat, child->program, "", argv, env, AT_EMPTY_PATH);
    return fail(failure, "execveat");
}

// Records the number of this process and the time of its start, which the process cannot change, for a sweep
// (lib/internal/berth/sweep.ts). /proc is still the host's.
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

// The supervisor keeps the descriptor of the root. By it the container's files can be reached from outside as long as the unit
// exists, even after its process has ended.
static int attach_root(const struct state *state, struct failure *failure) {
    if (mount_attach_root(state->root.mount, failure) < 0) return -1;
    return descriptor_send(state->child->socket, "", 1, state->root.mount) < 0 ? fail(failure, "sendmsg") : 0;
}

// The supervisor passes the descriptor on, as it does that of a root. The namespace exists as long as somebody has it.
static int send_network(const struct child *child, struct failure *failure) {
    cleanup_close int namespace = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (namespace < 0) return fail(failure, "open");
    return descriptor_send(child->socket, "", 1, namespace) < 0 ? fail(failure, "sendmsg") : 0;
}

static int take_root(struct state *state, int mount) {
    if (mount < 0) return -1;
    state->root.mount = mount;
    return 0;
}

static int take_proc(struct state *state, const struct operation *operation, struct failure *failure) {
    state->proc = pid_namespace_proc(descriptor(state->child, &operation->take_proc.process), &operation->take_proc.paths, failure);
    return state->proc < 0 ? -1 : 0;
}

static int place(struct state *state, const struct operation *operation) {
    const struct child *child = state->child;
    if (state->placed == child->given_count) return fail_with(&state->failure, "plan", EINVAL);
    int mount = child->given[state->placed++];
    return mount_place(&state->root, mount, operation->place.target.s.text, &state->failure);
}

static int perform(struct state *state, const struct operation *o) {
    const struct child *child = state->child;
    struct failure *failure = &state->failure;

    switch (o->code) {
    case OP_OVERLAY: return take_root(state, mount_overlay(o, -1, failure));
    case OP_OVERLAY_MEMORY: return take_root(state, mount_overlay_memory(o, -1, failure));
    case OP_ROOT_MOUNT: return take_root(state, mount_reuse(descriptor(child, &o->root_mount.mount), failure));
    case OP_ROOT_BIND: return take_root(state, mount_root_bind(o, failure));
    case OP_FORK: return continue_in_child(child, o, failure);
    case OP_CONTROLLING_TERMINAL: return controlling_terminal(failure);
    case OP_EMPTY_ROOT: return pid_namespace_empty_root(o->empty_root.path.s.text, o->empty_root.proc.i != 0, failure);
    case OP_TAKE_PROC: return take_proc(state, o, failure);
    case OP_RECORD: return record(o->record.path.s.text, failure);
    case OP_ID_MAP: return await_id_map(child, failure);
    case OP_ROOT_USER: return root_user(state, o, failure);
    case OP_JOIN: return join(child, o, failure);
    case OP_JOIN_OWNER: return join_owner(child, o, failure);
    case OP_SESSION: return setsid() < 0 ? fail(failure, "setsid") : 0;
    case OP_KEYRING: return privilege_keyring(failure);
    case OP_STDIO: return place_stdio(child, o->field, failure);
    case OP_RLIMIT: return privilege_rlimit(o, failure);
    case OP_UNSHARE: return unshare((int)o->unshare.namespaces.i) < 0 ? fail(failure, "unshare") : 0;
    case OP_LOOPBACK: return loopback_up(failure);
    case OP_ATTACH_ROOT: return attach_root(state, failure);
    case OP_MOUNT: return mount_filesystem(&state->root, &state->proc, o, failure);
    case OP_BIND: return mount_bind(&state->root, state->used < state->opened ? state->sources[state->used++] : -1, o, failure);
    case OP_PLACE: return place(state, o);
    case OP_FILES: return mount_files(&state->root, o, failure);
    case OP_DIRECTORY: return mount_directory(&state->root, o->directory.path.s.text, (unsigned)o->directory.mode.i, failure);
    case OP_SYMLINK: return mount_symlink(&state->root, o->symlink.target.s.text, o->symlink.path.s.text, failure);
    case OP_MASK: return mount_mask(&state->root, &state->empty, state->null, o, failure);
    case OP_READONLY: return mount_readonly(&state->root, o, failure);
    case OP_PIVOT: return mount_pivot(state->root.mount, failure);
    case OP_ROOT_READONLY: return mount_root_readonly(failure);
    case OP_HOSTNAME: return sethostname(o->hostname.name.s.text, o->hostname.name.s.length) < 0 ? fail(failure, "sethostname") : 0;
    case OP_DOMAINNAME: return setdomainname(o->domainname.name.s.text, o->domainname.name.s.length) < 0 ? fail(failure, "setdomainname") : 0;
    case OP_SYSCTL: return write_sysctl(o, failure);
    case OP_WORKING_DIRECTORY: return enter(o->working_directory.path.s.text, o->working_directory.create.i != 0, failure);
    case OP_UMASK: umask((mode_t)o->umask.mask.i); return 0;
    case OP_BOUNDING: return privilege_bounding((uint64_t)o->bounding.capabilities.i, failure);
    case OP_USER: return privilege_user(o, failure) < 0 ? -1 : privilege_die_with(child->supervisor, failure);
    case OP_CAPABILITIES: return privilege_capabilities(o, failure);
    case OP_TERMINAL: return terminal_open(descriptor(child, &o->terminal.socket), o, failure);
    case OP_APPARMOR: return privilege_apparmor(&o->apparmor.profile, failure);
    case OP_NO_NEW_PRIVILEGES: return privilege_no_new_privileges(failure);
    case OP_SECCOMP: return privilege_seccomp(o, o->seccomp.listener.fd == NO_FD ? -1 : child->descriptors[o->seccomp.listener.fd], failure);
    case OP_EXEC: return execute(child, o, failure);
    case OP_NAME_SOCKETS: return send_name_sockets(child, o, failure);
    case OP_SEND_NETWORK: return send_network(child, failure);
    case OP_EXIT: _exit(0);
    case OP_NETLINK: return send_netlink(child, o, failure);
    case OP_NETFILTER: return netlink_request_here(NETLINK_NETFILTER, (void *)o->netfilter.messages.b.bytes, o->netfilter.messages.b.length, failure);
    case OP_EXEC_SELF: return execute_self(child, o, failure);
    default: return fail_with(failure, "plan", EINVAL);
    }
}

_Noreturn void child_run(const struct child *child) {
    int sources[SOURCES_MAX];
    struct state state = {.child = child, .root = {.mount = child->root}, .empty = -1, .null = -1, .proc = -1, .sources = sources};
    size_t at = child->plan->process;
    // The plan sets its own umask later. Until then, files get exactly the modes of the plan.
    umask(0);
    if (privilege_die_with(child->supervisor, &state.failure) == 0) {
        while (++at < child->plan->count)
            if (perform(&state, &child->plan->operations[at]) < 0) break;
    }
    state.failure.operation = (uint32_t)at;
    // A pipe takes so short a message whole or not at all. If it takes none, nobody can be told.
    if (write(child->failures, &state.failure, sizeof state.failure) < 0) _exit(126);
    _exit(127);
}
