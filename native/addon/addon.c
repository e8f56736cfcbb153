// The addon: system calls that JavaScript cannot make, one function each, and the loop. It uses Node-API only, so that one file loads
// in Node, Deno and Bun. lib/internal/system/addon.ts has the types.
//
// A function returns the result of the system call, or -errno, and does not throw. It throws only for wrong arguments, which are a bug
// of the library.
#include "addon.h"
#include "../common/descriptor.h"
#include "process.h"
#include "seccomp.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>

// startSupervisor(path, folder, [socket, lock], mode, gate or ""): [pid, pidfd] or [-errno, 0]. The supervisor gets the socket as
// descriptor 3, the lock as 4 and its own sealed copy as 5.
static napi_value start_supervisor(struct call *call, napi_env env) {
    char path[PATH_MAX], folder[PATH_MAX], mode[PATH_MAX], gate[PATH_MAX];
    int fds[FDS_MAX], pidfd = 0;
    uint32_t count;
    if (!take_path(call, 0, path) || !take_path(call, 1, folder) || !take_fds(call, 2, fds, &count) || !take_path(call, 3, mode) || !take_path(call, 4, gate) || count != 2) return misuse(env);
    char *argv[] = {"berth-supervisor", folder, "3", "4", "5", mode, gate[0] ? gate : NULL, NULL};
    pid_t pid = process_start(path, argv, fds, (int)count, &pidfd);
    return pair(env, pid, pid < 0 ? 0 : environment_note(call->environment, pidfd, OF_CHILD));
}
FUNCTION(start_supervisor)

// socketpair(): [ours, theirs], SOCK_SEQPACKET; ours does not block.
static napi_value socket_pair(struct call *call, napi_env env) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) return pair(env, -errno, 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    return opened_pair(call, fds[0], fds[1]);
}
FUNCTION(socket_pair)

// pipe(ours, bytes): [read end, write end]; the end numbered `ours` does not block. `bytes` asks for a capacity. The kernel rounds it
// up, or refuses it above /proc/sys/fs/pipe-max-size; the default capacity stays then.
static napi_value make_pipe(struct call *call, napi_env env) {
    int fds[2], ours;
    int64_t bytes;
    if (!take_fd(call, 0, &ours) || !take_number(call, 1, &bytes)) return misuse(env);
    if (pipe2(fds, O_CLOEXEC) < 0) return pair(env, -errno, 0);
    fcntl(fds[ours & 1], F_SETFL, O_NONBLOCK | (ours ? O_WRONLY : O_RDONLY));
    if (bytes > 0) fcntl(fds[0], F_SETPIPE_SZ, (int)bytes);
    return opened_pair(call, fds[0], fds[1]);
}
FUNCTION(make_pipe)

// enlargePipe(fd, bytes): asks for a capacity later.
static napi_value enlarge_pipe(struct call *call, napi_env env) {
    int fd;
    int64_t bytes;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &bytes)) return misuse(env);
    return number(env, fcntl(fd, F_SETPIPE_SZ, (int)bytes) < 0 ? -errno : 0);
}
FUNCTION(enlarge_pipe)

// send(socket, bytes, descriptors): bytes sent.
static napi_value send_message(struct call *call, napi_env env) {
    int socket, fds[FDS_MAX];
    uint32_t count;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &socket) || !take_bytes(call, 1, &bytes, &length) || !take_fds(call, 2, fds, &count)) return misuse(env);
    ssize_t n = descriptors_send(socket, bytes, length, fds, count);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(send_message)

// receive(socket, bytes): [bytes received, descriptor or -1, descriptor or -1]; 0 bytes at the end.
static napi_value receive_message(struct call *call, napi_env env) {
    int socket, fds[2];
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &socket) || !take_bytes(call, 1, &bytes, &length)) return misuse(env);
    ssize_t n = descriptors_receive(socket, bytes, length, fds, 2);
    napi_value result = pair(env, n < 0 ? -errno : (int)n, environment_note(call->environment, fds[0], OURS));
    napi_set_element(env, result, 2, opened(call, fds[1]));
    return result;
}
FUNCTION(receive_message)

// read(fd, bytes): bytes read, 0 at the end.
static napi_value read_bytes(struct call *call, napi_env env) {
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &length)) return misuse(env);
    ssize_t n = read(fd, bytes, length);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(read_bytes)

// write(fd, bytes, offset): bytes written from the offset on. Node, Deno and Bun ignore SIGPIPE.
static napi_value write_bytes(struct call *call, napi_env env) {
    int fd;
    int64_t offset;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &length) || !take_number(call, 2, &offset)) return misuse(env);
    if (offset < 0 || (size_t)offset > length) return misuse(env);
    ssize_t n = write(fd, bytes + offset, length - (size_t)offset);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(write_bytes)

// close(fd): close(2), after the loop has forgotten the descriptor.
static napi_value close_fd(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    environment_note(call->environment, fd, NOT_OURS);
    if (call->environment->loop) loop_forget(call->environment->loop, fd);
    return number(env, close(fd) < 0 ? -errno : 0);
}
FUNCTION(close_fd)

// closeRoot(fd): close(2) on the loop's thread.
static napi_value close_root(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    environment_note(call->environment, fd, NOT_OURS);
    if (call->environment->loop && loop_close(call->environment->loop, fd) == 0) return number(env, 0);
    return number(env, close(fd) < 0 ? -errno : 0);
}
FUNCTION(close_root)

// openIn(folder, path, flags, resolve, mode): openat2(2); the folder may be AT_FDCWD.
static napi_value open_in(struct call *call, napi_env env) {
    char path[PATH_MAX];
    int folder;
    int64_t flags, resolve, mode;
    if (!take_fd(call, 0, &folder) || !take_path(call, 1, path) || !take_number(call, 2, &flags) || !take_number(call, 3, &resolve) || !take_number(call, 4, &mode)) return misuse(env);
    int fd = sys_openat2(folder, path, (uint64_t)flags, (uint64_t)mode, (uint64_t)resolve);
    return opened(call, fd < 0 ? -errno : fd);
}
FUNCTION(open_in)

// modified(fd): [seconds, nanoseconds] of the last change of the contents, or [-errno, -1]. Any descriptor, also of O_PATH.
static napi_value get_modified(struct call *call, napi_env env) {
    int fd;
    struct stat status;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    if (fstat(fd, &status) < 0) return pair(env, -errno, -1);
    return pair(env, status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}
FUNCTION(get_modified)

// inode(fd): the number in two halves of 32 bits, as a double cannot hold 64, the high one first; or [-errno, 0].
static napi_value get_inode(struct call *call, napi_env env) {
    int fd;
    struct stat status;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    if (fstat(fd, &status) < 0) return pair(env, -errno, 0);
    return pair(env, (int64_t)((uint64_t)status.st_ino >> 32), (int64_t)(status.st_ino & UINT32_MAX));
}
FUNCTION(get_inode)

// setModified(fd, seconds, nanoseconds): JavaScript's own function has the precision of a double. Any descriptor.
static napi_value set_modified(struct call *call, napi_env env) {
    char path[SELF_FD_MAX];
    int fd;
    int64_t seconds, nanoseconds;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &seconds) || !take_number(call, 2, &nanoseconds)) return misuse(env);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = seconds, .tv_nsec = nanoseconds}};
    return number(env, utimensat(AT_FDCWD, self_fd(path, fd), times, 0) < 0 ? -errno : 0);
}
FUNCTION(set_modified)

// xattrs(fd, bytes): writes the names, each with a NUL after it, and returns their length. Any descriptor.
static napi_value list_xattrs(struct call *call, napi_env env) {
    char path[SELF_FD_MAX];
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &length)) return misuse(env);
    ssize_t n = listxattr(self_fd(path, fd), (char *)bytes, length);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(list_xattrs)

// xattr(fd, name, bytes): writes the value, and returns its length.
static napi_value get_xattr(struct call *call, napi_env env) {
    char path[SELF_FD_MAX], name[PATH_MAX];
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_path(call, 1, name) || !take_bytes(call, 2, &bytes, &length)) return misuse(env);
    ssize_t n = getxattr(self_fd(path, fd), name, bytes, length);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(get_xattr)

// setXattr(fd, name, bytes): setxattr(2).
static napi_value set_xattr(struct call *call, napi_env env) {
    char path[SELF_FD_MAX], name[PATH_MAX];
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_path(call, 1, name) || !take_bytes(call, 2, &bytes, &length)) return misuse(env);
    return number(env, setxattr(self_fd(path, fd), name, bytes, length, 0) < 0 ? -errno : 0);
}
FUNCTION(set_xattr)

// access(fd, mode): access(2). Any descriptor.
static napi_value may_access(struct call *call, napi_env env) {
    char path[SELF_FD_MAX];
    int fd, mode;
    if (!take_fd(call, 0, &fd) || !take_fd(call, 1, &mode)) return misuse(env);
    return number(env, access(self_fd(path, fd), mode) < 0 ? -errno : 0);
}
FUNCTION(may_access)

// inotify(fd, mask): a new non-blocking inotify(7) that watches the file of the descriptor.
static napi_value watch_file(struct call *call, napi_env env) {
    char path[SELF_FD_MAX];
    int fd;
    int64_t mask;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &mask)) return misuse(env);
    cleanup_close int events = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (events < 0 || inotify_add_watch(events, self_fd(path, fd), (uint32_t)mask) < 0) return number(env, -errno);
    return opened(call, steal_fd(&events));
}
FUNCTION(watch_file)

// eventfd(): a new non-blocking eventfd(2).
static napi_value make_eventfd(struct call *call, napi_env env) {
    (void)env;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return opened(call, fd < 0 ? -errno : fd);
}
FUNCTION(make_eventfd)

// extent(fd, offset): [start, end) of the next bytes that are not a hole, from the offset on, and seeks to the first of them; or
// [-errno, 0], with ENXIO if there are none.
static napi_value next_extent(struct call *call, napi_env env) {
    int fd;
    int64_t offset;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &offset)) return misuse(env);
    off_t start = lseek(fd, offset, SEEK_DATA);
    if (start < 0) return pair(env, -errno, 0);
    off_t end = lseek(fd, start, SEEK_HOLE);
    return end < 0 || lseek(fd, start, SEEK_SET) < 0 ? pair(env, -errno, 0) : pair(env, start, end);
}
FUNCTION(next_extent)

// makeFifo(folder, name, mode): mkfifoat(2). The name has no slash, so that no link is followed.
static napi_value make_fifo(struct call *call, napi_env env) {
    char name[PATH_MAX];
    int folder;
    int64_t mode;
    if (!take_fd(call, 0, &folder) || !take_path(call, 1, name) || !take_number(call, 2, &mode) || strchr(name, '/')) return misuse(env);
    return number(env, mkfifoat(folder, name, (mode_t)mode) < 0 ? -errno : 0);
}
FUNCTION(make_fifo)

// entries(fd, bytes): getdents64(2) of a folder that is open for reading. Returns the length of the entries, 0 at the end.
static napi_value list_entries(struct call *call, napi_env env) {
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &length)) return misuse(env);
    ssize_t n = getdents64(fd, (void *)bytes, length);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(list_entries)

// readLink(fd, bytes): writes the target of a symbolic link, and returns its length.
static napi_value read_link(struct call *call, napi_env env) {
    int fd;
    uint8_t *bytes;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &length)) return misuse(env);
    ssize_t n = readlinkat(fd, "", (char *)bytes, length);
    return number(env, n < 0 ? -errno : n);
}
FUNCTION(read_link)

// memfd(bytes): a sealed memfd with the bytes.
static napi_value make_memfd(struct call *call, napi_env env) {
    uint8_t *bytes;
    size_t length;
    if (!take_bytes(call, 0, &bytes, &length)) return misuse(env);
    cleanup_close int fd = memfd_create("berth-plan", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    for (size_t at = 0; fd >= 0 && at < length;) {
        ssize_t n = write(fd, bytes + at, length - at);
        if (n < 0) return number(env, -errno);
        at += (size_t)n;
    }
    if (fd < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) return number(env, -errno);
    return opened(call, steal_fd(&fd));
}
FUNCTION(make_memfd)

// duplicate(fd): another descriptor of the same file.
static napi_value duplicate(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return opened(call, copy < 0 ? -errno : copy);
}
FUNCTION(duplicate)

// replace(fd, by): dup3(2): makes fd refer to the file of `by`, for a runtime that uses only descriptors that it has opened itself.
static napi_value replace(struct call *call, napi_env env) {
    int fd, by;
    if (!take_fd(call, 0, &fd) || !take_fd(call, 1, &by)) return misuse(env);
    return number(env, dup3(by, fd, O_CLOEXEC) < 0 ? -errno : 0);
}
FUNCTION(replace)

// resize(terminal, rows, columns): TIOCSWINSZ, which sends SIGWINCH to the foreground of the terminal.
static napi_value resize(struct call *call, napi_env env) {
    int fd;
    int64_t rows, columns;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &rows) || !take_number(call, 2, &columns)) return misuse(env);
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    return number(env, ioctl(fd, TIOCSWINSZ, &size) < 0 ? -errno : 0);
}
FUNCTION(resize)

// flock(fd, operation): flock(2).
static napi_value lock_file(struct call *call, napi_env env) {
    int fd;
    int64_t operation;
    if (!take_fd(call, 0, &fd) || !take_number(call, 1, &operation)) return misuse(env);
    return number(env, flock(fd, (int)operation) < 0 ? -errno : 0);
}
FUNCTION(lock_file)

// signal(pidfd, number): pidfd_send_signal(2).
static napi_value send_signal(struct call *call, napi_env env) {
    int pidfd, which;
    if (!take_fd(call, 0, &pidfd) || !take_fd(call, 1, &which)) return misuse(env);
    return number(env, sys_pidfd_send_signal(pidfd, which) < 0 ? -errno : 0);
}
FUNCTION(send_signal)

// reap(pidfd): waits for a child that has ended, by its pidfd, so that no other child of the program is waited for.
static napi_value reap(struct call *call, napi_env env) {
    siginfo_t information = {0};
    int pidfd;
    if (!take_fd(call, 0, &pidfd)) return misuse(env);
    return number(env, waitid(P_PIDFD, (id_t)pidfd, &information, WEXITED | WNOHANG) < 0 ? -errno : information.si_pid);
}
FUNCTION(reap)

// seccompCompile(policy, program): [bytes of the program or -errno, index of the faulty rule].
static napi_value seccomp_program(struct call *call, napi_env env) {
    uint8_t *policy, *program;
    size_t length, room;
    uint32_t rule;
    if (!take_bytes(call, 0, &policy, &length) || !take_bytes(call, 1, &program, &room) || room < SECCOMP_PROGRAM_MAX) return misuse(env);
    int n = seccomp_compile(policy, length, program, room, &rule);
    return pair(env, n, n < 0 ? rule : 0);
}
FUNCTION(seccomp_program)

// seccompName(number): the name of a system call, or "".
static napi_value system_call_name(struct call *call, napi_env env) {
    napi_value result;
    int which;
    if (!take_fd(call, 0, &which)) return misuse(env);
    char *name = seccomp_name(which);
    napi_status status = napi_create_string_utf8(env, name ? name : "", NAPI_AUTO_LENGTH, &result);
    free(name);
    return status == napi_ok ? result : NULL;
}
FUNCTION(system_call_name)

// seccompReceive(listener, request), seccompAnswer(listener, answer): seccomp_unotify(2).
static napi_value seccomp_exchange(struct call *call, napi_env env, unsigned long operation, size_t size) {
    uint8_t *bytes;
    size_t length;
    int listener;
    if (!take_fd(call, 0, &listener) || !take_bytes(call, 1, &bytes, &length) || length != size) return misuse(env);
    return number(env, ioctl(listener, operation, bytes) < 0 ? -errno : 0);
}

static napi_value seccomp_receive(struct call *call, napi_env env) {
    return seccomp_exchange(call, env, SECCOMP_IOCTL_NOTIF_RECV, sizeof(struct seccomp_notif));
}
FUNCTION(seccomp_receive)

static napi_value seccomp_answer(struct call *call, napi_env env) {
    return seccomp_exchange(call, env, SECCOMP_IOCTL_NOTIF_SEND, sizeof(struct seccomp_notif_resp));
}
FUNCTION(seccomp_answer)

// startLoop(ready), watch(fd, events, token), keepAlive(boolean): the loop of this environment.
static napi_value start_loop(struct call *call, napi_env env) {
    errno = ENOMEM;
    if (!call->environment->loop) call->environment->loop = loop_start(env, call->argument[0]);
    return number(env, call->environment->loop ? 0 : -errno);
}
FUNCTION(start_loop)

static napi_value watch(struct call *call, napi_env env) {
    int fd;
    int64_t wanted, token;
    if (!call->environment->loop || !take_fd(call, 0, &fd) || !take_number(call, 1, &wanted) || !take_number(call, 2, &token)) return misuse(env);
    return number(env, loop_watch(call->environment->loop, fd, (uint32_t)wanted, (uint64_t)token));
}
FUNCTION(watch)

static napi_value keep_alive(struct call *call, napi_env env) {
    bool alive;
    if (!call->environment->loop || napi_get_value_bool(env, call->argument[0], &alive) != napi_ok) return misuse(env);
    loop_keep_alive(call->environment->loop, alive);
    return number(env, 0);
}
FUNCTION(keep_alive)

NAPI_MODULE_INIT() {
    static const struct {
        const char *name;
        napi_callback function;
    } functions[] = {
        {"startSupervisor", js_start_supervisor},
        {"socketpair", js_socket_pair},
        {"pipe", js_make_pipe},
        {"enlargePipe", js_enlarge_pipe},
        {"send", js_send_message},
        {"receive", js_receive_message},
        {"read", js_read_bytes},
        {"write", js_write_bytes},
        {"close", js_close_fd},
        {"closeRoot", js_close_root},
        {"openIn", js_open_in},
        {"openAsRoot", js_open_in_as_root},
        {"changeAsRoot", js_change_file_as_root},
        {"inotifyAsRoot", js_watch_file_as_root},
        {"modified", js_get_modified},
        {"inode", js_get_inode},
        {"setModified", js_set_modified},
        {"xattrs", js_list_xattrs},
        {"xattr", js_get_xattr},
        {"xattrAsRoot", js_get_xattr_as_root},
        {"setXattr", js_set_xattr},
        {"access", js_may_access},
        {"inotify", js_watch_file},
        {"eventfd", js_make_eventfd},
        {"extent", js_next_extent},
        {"makeFifo", js_make_fifo},
        {"entries", js_list_entries},
        {"readLink", js_read_link},
        {"memfd", js_make_memfd},
        {"duplicate", js_duplicate},
        {"replace", js_replace},
        {"resize", js_resize},
        {"flock", js_lock_file},
        {"signal", js_send_signal},
        {"reap", js_reap},
        {"seccompCompile", js_seccomp_program},
        {"seccompName", js_system_call_name},
        {"seccompReceive", js_seccomp_receive},
        {"seccompAnswer", js_seccomp_answer},
        {"socketIn", js_socket_in},
        {"connect", js_connect_socket},
        {"connected", js_connect_result},
        {"bind", js_bind_socket},
        {"listen", js_listen_socket},
        {"accept", js_accept_socket},
        {"socketAddress", js_socket_address},
        {"shutdown", js_end_socket},
        {"disown", js_disown},
        {"capture", js_capture_packets},
        {"packets", js_take_packets},
        {"packetStatistics", js_packet_statistics},
        {"startLoop", js_start_loop},
        {"watch", js_watch},
        {"keepAlive", js_keep_alive},
    };
    if (!environment_make(env)) return NULL;
    for (size_t k = 0; k < countof(functions); k++) {
        napi_value function;
        if (napi_create_function(env, functions[k].name, NAPI_AUTO_LENGTH, functions[k].function, NULL, &function) != napi_ok) return NULL;
        if (napi_set_named_property(env, exports, functions[k].name, function) != napi_ok) return NULL;
    }
    return exports;
}
