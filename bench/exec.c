// What executing `true` in a running container costs with no library at all: the system calls that Berth's plan for an
// exec makes, in their order. For each line on stdin it does it once and prints the microseconds from before the first
// of them until the process has been waited for.
//
//   bench-exec PID [FOLDER OF A CGROUP]...
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CAPABILITIES 0xa80425fbull

static int own_pids, container, null, self;
static char tasks[8][512];
static int tasks_count;

static _Noreturn void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

#define TRY(call)                                                                                            \
    do {                                                                                                     \
        if ((call) < 0) _exit(90);                                                                           \
    } while (0)

static _Noreturn void child(const int *entrances, int out, int err, int failures) {
    struct pollfd parent = {.fd = self, .events = POLLIN};
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{CAPABILITIES & UINT32_MAX, CAPABILITIES & UINT32_MAX, 0}, {0}};
    static const char *const paths[] = {"/usr/local/sbin/true", "/usr/local/bin/true", "/usr/sbin/true", "/usr/bin/true"};
    static char *const argv[] = {"true", NULL};
    static char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
    const int wanted[3] = {null, out, err};
    int moved[3];
    char cwd[4096];
    sigset_t none;

    (void)failures;
    for (int k = 0; k < tasks_count; k++) TRY(write(entrances[k], "0", 1));
    umask(0);
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    TRY(poll(&parent, 1, 0));
    TRY(setns(container, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP));
    TRY(prctl(PR_SET_DUMPABLE, 0));
    TRY(setsid());
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    for (int k = 0; k < 3; k++) TRY(moved[k] = fcntl(wanted[k], F_DUPFD_CLOEXEC, 3));
    for (int k = 0; k < 3; k++) {
        TRY(dup2(moved[k], k));
        close(moved[k]);
    }
    TRY(chdir("/"));
    TRY(syscall(SYS_getcwd, cwd, sizeof cwd));
    umask(022);
    for (int k = 0; k < 64; k++)
        if (!(CAPABILITIES >> k & 1) && prctl(PR_CAPBSET_DROP, k) < 0) break;
    TRY(prctl(PR_SET_KEEPCAPS, 1));
    TRY(syscall(SYS_setgroups, 0, NULL));
    TRY(syscall(SYS_setresgid, 0, 0, 0));
    TRY(syscall(SYS_setresuid, 0, 0, 0));
    TRY(prctl(PR_SET_PDEATHSIG, SIGKILL));
    TRY(poll(&parent, 1, 0));
    TRY(syscall(SYS_capset, &header, data));
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (filter.len > 0) TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter));
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    TRY(syscall(SYS_close_range, 3, ~0U, 4));
    for (size_t k = 0; k < sizeof paths / sizeof *paths; k++) execve(paths[k], argv, env);
    _exit(91);
}

static double once(void) {
    struct timespec before, after;
    int out[2], err[2], failures[2], entrances[8], pidfd, status;

    clock_gettime(CLOCK_MONOTONIC, &before);
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) die("pipe2");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, failures) < 0) die("socketpair");
    for (int k = 0; k < tasks_count; k++)
        if ((entrances[k] = open(tasks[k], O_WRONLY | O_CLOEXEC)) < 0) die(tasks[k]);
    if (setns(container, CLONE_NEWPID) < 0) die("setns");
    struct clone_args arguments = {.flags = CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) child(entrances, out[1], err[1], failures[1]);
    if (pid < 0) die("clone3");
    if (setns(own_pids, CLONE_NEWPID) < 0) die("setns");
    for (int k = 0; k < tasks_count; k++) close(entrances[k]);
    close(out[1]);
    close(err[1]);
    close(failures[1]);
    if (waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "status %x\n", status);
        exit(1);
    }
    close(out[0]);
    close(err[0]);
    close(failures[0]);
    close(pidfd);
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
    own_pids = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    container = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
    if (own_pids < 0 || null < 0 || self < 0 || container < 0) die("open");
    for (int k = 2; k < argc && tasks_count < 8; k++) snprintf(tasks[tasks_count++], sizeof *tasks, "%s/tasks", argv[k]);
    while (fgets(line, sizeof line, stdin)) {
        printf("%.1f\n", once());
        fflush(stdout);
    }
    return 0;
}
