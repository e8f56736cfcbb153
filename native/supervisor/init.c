#include "init.h"
#include "../common/failure.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define FAILURES 3

static _Noreturn void hold_namespaces(void) {
    sigset_t all;
    // Its executable is unreadable, so it is not dumpable from its first instruction on: others in its namespaces cannot look into it.
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    close(FAILURES);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (int number;;) {
        sigwait(&all, &number);
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
    }
}

// As execute() in child.c: the error of an existing path that cannot be executed takes precedence over ENOENT.
static _Noreturn void execute(uint32_t operation, char **paths, size_t count, char **argv) {
    struct failure failure = {.operation = operation};
    int error = ENOENT;
    for (size_t k = 0; k < count; k++) {
        execve(paths[k], argv, environ);
        if (errno != ENOENT && errno != ENOTDIR) error = errno;
        if (error != ENOENT && error != EACCES) break;
    }
    errno = error;
    fail(&failure, "execve");
    if (write(FAILURES, &failure, sizeof failure) < 0) _exit(126);
    _exit(127);
}

static _Noreturn void init(int argc, char **argv) {
    sigset_t all, none;
    int status, number;
    size_t count = argc > 3 ? strtoul(argv[2], NULL, 10) : 0;
    if (argc < 5 || count > (size_t)argc - 4) _exit(126);
    // It is a process of the container like the command. Without root, the container's files are reached through this process, which
    // must be dumpable for that.
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);

    fcntl(FAILURES, F_SETFD, FD_CLOEXEC);
    sigfillset(&all);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, NULL);
    pid_t command = fork();
    if (command < 0) _exit(126);
    if (command == 0) {
        // A process group of its own in the foreground of the terminal, if there is one: Ctrl-C then reaches the command alone.
        setpgid(0, 0);
        if (isatty(0)) tcsetpgrp(0, getpid());
        sigprocmask(SIG_SETMASK, &none, NULL);
        execute((uint32_t)strtoul(argv[1], NULL, 10), argv + 3, count, argv + 3 + count);
    }
    close(FAILURES);
    for (;;) {
        if (sigwait(&all, &number) != 0) continue;
        if (number != SIGCHLD) {
            kill(command, number);
            continue;
        }
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == command) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
}

void init_run(int argc, char **argv) {
    if (argc < 1) return;
    if (!strcmp(argv[0], "berth-hold")) hold_namespaces();
    if (!strcmp(argv[0], "berth-init")) init(argc, argv);
}
