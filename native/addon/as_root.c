#include "as_root.h"
#include "../common/descriptor.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>

struct task {
    int user_namespace;
    long (*call)(const struct task *);
    int folder;
    const char *path, *name;
    uint64_t flags, resolve, mode;
    void *value;
    size_t size;
    enum change change;
    int other;
    int64_t a, b;
    bool opens; // the result is a descriptor, which is sent over the socket
    int socket;
    long result;
};

static int run(void *argument) {
    struct task *task = argument;
    long result = setns(task->user_namespace, CLONE_NEWUSER) < 0 ? -1 : task->call(task);
    if (result < 0) task->result = -errno;
    else if (!task->opens) task->result = result;
    else if (descriptor_send(task->socket, "", 1, (int)result) < 0) task->result = -errno;
    _exit(0);
}

static long received(int socket) {
    char byte;
    int fd;
    if (descriptor_receive(socket, &byte, 1, &fd) == 1 && fd >= 0) return fd;
    return errno == EMFILE ? -EMFILE : -1;
}

// A process of several threads cannot enter a user namespace (setns(2)), but its child can. As in process.c, the child runs in the
// memory of this process, which waits. A child that opens a file has a descriptor table of its own: a container with the host's pids
// may kill it at any time, and its descriptors would stay open in a shared table.
static long perform(struct task *task) {
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; // the dumpable flag belongs to the memory, which all children share
    const size_t stack_size = 64 << 10;
    int ends[2] = {-1, -1};
    if (task->opens && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) return -errno;
    cleanup_close int ours = ends[0], theirs = ends[1];
    char *stack = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return -errno;
    task->socket = theirs;
    task->result = -EIO; // if the child is killed
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&one_at_a_time);
    // A container with the host's pids may have CAP_SYS_PTRACE in the child's user namespace. The memory is this process's, so it is
    // not dumpable meanwhile, which keeps the container out.
    bool dumpable = prctl(PR_GET_DUMPABLE) == 1;
    if (dumpable) prctl(PR_SET_DUMPABLE, 0);
    // The child sends no signal at its end, so that wait(2) elsewhere in this process does not see it (__WCLONE).
    pid_t pid = clone(run, stack + stack_size, CLONE_VM | CLONE_VFORK | (task->opens ? 0 : CLONE_FILES), task);
    if (pid < 0) task->result = -errno;
    else waitpid(pid, NULL, __WCLONE);
    if (dumpable) prctl(PR_SET_DUMPABLE, 1);
    pthread_mutex_unlock(&one_at_a_time);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, stack_size);
    int fd = task->opens ? (int)received(ours) : -1;
    return fd >= 0 || fd == -EMFILE ? fd : task->result;
}

static long open_file(const struct task *task) {
    return sys_openat2(task->folder, task->path, task->flags, task->mode, task->resolve);
}

static long read_xattr(const struct task *task) {
    return getxattr(task->path, task->name, task->value, task->size);
}

static long watch(const struct task *task) {
    cleanup_close int events = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (events < 0 || inotify_add_watch(events, task->path, (uint32_t)task->flags) < 0) return -1;
    return steal_fd(&events);
}

static long make_socket(const struct task *task) {
    if (setns(task->folder, CLONE_NEWNET) < 0) return -1;
    return socket((int)task->a, (int)task->b | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static struct timespec time_of(int64_t micros) {
    int64_t seconds = micros / 1000000 - (micros % 1000000 < 0);
    return (struct timespec){.tv_sec = seconds, .tv_nsec = (micros - seconds * 1000000) * 1000};
}

static long change(const struct task *task) {
    const struct timespec times[2] = {time_of(task->a), time_of(task->b)};
    switch (task->change) {
    case CHANGE_MKDIR: return mkdirat(task->folder, task->path, (mode_t)task->a);
    case CHANGE_UNLINK: return unlinkat(task->folder, task->path, (int)task->a);
    case CHANGE_RENAME: return renameat(task->folder, task->path, task->other, task->name);
    case CHANGE_LINK: return linkat(task->folder, task->path, task->other, task->name, 0);
    case CHANGE_SYMLINK: return symlinkat(task->name, task->folder, task->path);
    case CHANGE_MODE: return chmod(task->path, (mode_t)task->a);
    case CHANGE_OWNER: return chown(task->path, (uid_t)task->a, (gid_t)task->b);
    case CHANGE_TIMES: return utimensat(AT_FDCWD, task->path, times, 0);
    case CHANGE_NOTHING: return access(task->path, (int)task->a);
    }
    errno = EINVAL;
    return -1;
}

long open_as_root(int user_namespace, int folder, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode) {
    struct task task = {
        .user_namespace = user_namespace,
        .call = open_file,
        .folder = folder,
        .path = path,
        .flags = flags | (flags & O_PATH ? 0 : O_NONBLOCK),
        .mode = mode,
        .resolve = resolve,
        .opens = true,
    };
    return perform(&task);
}

long xattr_as_root(int user_namespace, const char *path, const char *name, void *value, size_t size) {
    struct task task = {
        .user_namespace = user_namespace,
        .call = read_xattr,
        .path = path,
        .name = name,
        .value = value,
        .size = size,
    };
    return perform(&task);
}

long watch_as_root(int user_namespace, const char *path, uint32_t mask) {
    struct task task = {.user_namespace = user_namespace, .call = watch, .path = path, .flags = mask, .opens = true};
    return perform(&task);
}

long socket_as_root(int user_namespace, int pidfd, int family, int type) {
    struct task task = {.user_namespace = user_namespace, .call = make_socket, .folder = pidfd, .a = family, .b = type, .opens = true};
    return perform(&task);
}

long change_as_root(int user_namespace, enum change which, int folder, const char *name, int other, const char *text, int64_t a, int64_t b) {
    struct task task = {
        .user_namespace = user_namespace,
        .call = change,
        .change = which,
        .folder = folder,
        .path = name,
        .other = other,
        .name = text,
        .a = a,
        .b = b,
    };
    return perform(&task);
}
