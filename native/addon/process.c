#include "process.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>

// A container that reaches /proc/PID/exe of its parent must not be able to write to it (CVE-2019-5736): the program runs from a memfd
// that is sealed against every change.
static int seal_copy(const char *path) {
    struct stat status;
    cleanup_close int source = open(path, O_RDONLY | O_CLOEXEC);
    if (source < 0) return -errno;
    if (fstat(source, &status) < 0) return -errno;
    cleanup_close int copy = memfd_create("berth-supervisor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (copy < 0) return -errno;
    for (off_t at = 0; at < status.st_size;) {
        ssize_t n = sendfile(copy, source, &at, (size_t)(status.st_size - at));
        if (n < 0) return -errno;
        if (n == 0) return -EIO;
    }
    // A process whose executable is unreadable for it is not dumpable, from its first instruction on (prctl(2)).
    if (fchmod(copy, 0111) < 0) return -errno;
    if (fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0) return -errno;
    return steal_fd(&copy);
}

struct launch {
    int program;
    char *const *argv;
    const int *inherited;
    int count;
    int error;
};

// Runs on a stack of its own in the memory of the JavaScript process, which waits (CLONE_VFORK). It may only make system calls.
static int launch(void *argument) {
    struct launch *l = argument;
    char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    int moved[16];
    for (int k = 0; k <= l->count; k++) {
        moved[k] = fcntl(k < l->count ? l->inherited[k] : l->program, F_DUPFD_CLOEXEC, 3 + 16);
        if (moved[k] < 0) goto failed;
    }
    for (int k = 0; k <= l->count; k++)
        if (dup2(moved[k], 3 + k) < 0) goto failed;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) goto failed;
    if (dup2(null, 0) < 0 || dup2(null, 1) < 0) goto failed; // stderr stays, for messages to people
    if (sys_close_range(3 + (unsigned)l->count + 1, ~0U, CLOSE_RANGE_CLOEXEC) < 0) goto failed;
    // Ctrl-C of the terminal reaches the JavaScript process alone, which handles it.
    if (setsid() < 0) goto failed;
    syscall(SYS_execveat, moved[l->count], "", l->argv, env, AT_EMPTY_PATH);
failed:
    l->error = errno;
    _exit(127);
}

pid_t process_start(const char *path, char *const argv[], const int *inherited, int count, int *pidfd) {
    size_t stack_size = 64 << 10;
    cleanup_close int program = seal_copy(path);
    if (program < 0) return program;
    if (count > 15) return -EINVAL;
    char *stack = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return -errno;
    struct launch l = {.program = program, .argv = argv, .inherited = inherited, .count = count};
    // The memory is shared rather than copied: a fork of a JavaScript process takes milliseconds. Signals are blocked until the child
    // has executed, so that no handler of this process runs in the child.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = clone(launch, stack + stack_size, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &l, pidfd);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, stack_size);
    if (pid < 0) return -error;
    if (l.error != 0) {
        close(*pidfd);
        siginfo_t info;
        waitid(P_PID, (id_t)pid, &info, WEXITED);
        return -l.error;
    }
    return pid;
}
