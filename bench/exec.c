// What executing `true` in a running container costs with no library at all: the steps that Berth's plan for an exec
// takes, in the order that is safe, with the fewest system calls. For each line on stdin it does it once and prints the
// microseconds from before the first of them until both processes have been waited for.
//
// A child that the container does not see joins its namespaces, has its privileges taken, loads the filter and closes all
// that is not the command's. Only then does it enter the pid namespace, by a second clone, in which what the container can
// stop, kill or trace begins a session and executes. Neither clone shares memory: who may trace the second process would
// write to the first one's, which is outside of the pid namespace, or to the parent's. The parent hears of the command's
// pid by waiting for it, and the command of the parent's death by its own stdout: so no socket and no shared page is needed.
//
//   bench-exec PID [FOLDER OF A CGROUP]...
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CAPABILITIES 0xa80425fbull

static int container, null;
static char tasks[8][512]; // of version 1; the process enters a cgroup of version 2 by its clone
static int tasks_count, unified = -1;

static _Noreturn void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        if ((call) < 0) _exit(90);                                                                           \
    } while (0)

// All that the container sees. What it says goes by the exit status: there is no other descriptor any more.
static _Noreturn void visible(void) {
    struct pollfd parent = {.fd = 1};
    static const char *const paths[] = {"/usr/local/sbin/true", "/usr/local/bin/true", "/usr/sbin/true", "/usr/bin/true"};
    static char *const argv[] = {"true", NULL};
    static char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};

    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    if (poll(&parent, 1, 0) != 0) _exit(92); // nobody reads it any more
    TRY(setsid());
    for (size_t k = 0; k < sizeof paths / sizeof *paths; k++) execve(paths[k], argv, env);
    _exit(91);
}

static _Noreturn void child(const int *entrances, int out, int err) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{CAPABILITIES & UINT32_MAX, CAPABILITIES & UINT32_MAX, 0}, {0}};
    char cwd[4096];

    for (int k = 0; k < tasks_count; k++) TRY(write(entrances[k], "0", 1));
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    TRY(setns(container, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP));
    TRY(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    TRY(dup2(null, 0));
    TRY(dup2(out, 1));
    TRY(dup2(err, 2));
    TRY(chdir("/"));
    TRY(syscall(SYS_getcwd, cwd, sizeof cwd));
    umask(022);
    for (int k = 0; k < 64; k++)
        if (!(CAPABILITIES >> k & 1) && prctl(PR_CAPBSET_DROP, k) < 0) break;
    TRY(prctl(PR_SET_KEEPCAPS, 1));
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    TRY(syscall(SYS_capset, &header, data));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (filter.len > 0) TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter));
    TRY(syscall(SYS_close_range, 3, ~0U, 0));
    long pid = syscall(SYS_clone, CLONE_PARENT, NULL, NULL, NULL, NULL); // its end is told as that of this one
    if (pid == 0) visible();
    _exit(pid < 0 ? 93 : 0);
}

// Waits for the process that made the command's, and for that.
static void await_both(pid_t maker) {
    int status, failed = 0, commands = 0;
    for (pid_t pid; commands < 1 || maker > 0;) {
        if ((pid = wait4(-1, &status, 0, NULL)) < 0) die("wait4");
        if (pid == maker) maker = 0;
        else commands++;
        failed |= status;
        if (failed && maker == 0) break;
    }
    if (!failed) return;
    fprintf(stderr, "status %x\n", failed);
    exit(1);
}

static double once(void) {
    struct timespec before, after;
    int out[2], err[2], entrances[8];

    clock_gettime(CLOCK_MONOTONIC, &before);
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) die("pipe2");
    for (int k = 0; k < tasks_count; k++)
        if ((entrances[k] = open(tasks[k], O_WRONLY | O_CLOEXEC)) < 0) die(tasks[k]);
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    if (unified >= 0) {
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)unified;
    }
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) child(entrances, out[1], err[1]);
    if (pid < 0) die("clone3");
    for (int k = 0; k < tasks_count; k++) close(entrances[k]);
    close(out[1]);
    close(err[1]);
    await_both(pid);
    close(out[0]);
    close(err[0]);
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (double)(after.tv_sec - before.tv_sec) * 1e6 + (double)(after.tv_nsec - before.tv_nsec) / 1e3;
}

int main(int argc, char **argv) {
    char line[16];
    if (argc < 2) return 2;
    if (read_filter() < 0) die("BENCH_SECCOMP");
    // As the supervisor is: in a mount namespace of its own, not dumpable.
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) die("unshare");
    prctl(PR_SET_DUMPABLE, 0);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    container = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
    if (null < 0 || container < 0) die("open");
    for (int k = 2; k < argc && tasks_count < 8; k++) {
        snprintf(tasks[tasks_count], sizeof *tasks, "%s/tasks", argv[k]);
        if (access(tasks[tasks_count], F_OK) == 0) tasks_count++;
        else if ((unified = open(argv[k], O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) die(argv[k]);
    }
    while (fgets(line, sizeof line, stdin)) {
        printf("%.1f\n", once());
        fflush(stdout);
    }
    return 0;
}
