#include "environment.h"
#include "../common/syscalls.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// The end of a worker waits so long for a supervisor to remove everything. After that the supervisor continues alone, and stays a
// zombie at its end.
#define PATIENCE_MS 5000

int64_t environment_note(struct environment *environment, int64_t fd, enum descriptor is) {
    if (fd < 0) return fd;
    size_t number = (size_t)fd;
    if (number >= environment->size) {
        if (is == NOT_OURS) return fd;
        size_t size = (number + 1) * 2;
        uint8_t *larger = realloc(environment->descriptors, size);
        if (!larger) return fd; // it is closed with the process then
        memset(larger + environment->size, NOT_OURS, size - environment->size);
        environment->descriptors = larger;
        environment->size = size;
    }
    environment->descriptors[number] = is;
    return fd;
}

// Nobody else waits for the supervisor. At the end of the process, another process becomes its parent.
static void await_child(int pidfd) {
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    siginfo_t information;
    sys_pidfd_send_signal(pidfd, SIGCONT);
    if (gettid() == getpid() || poll(&end, 1, PATIENCE_MS) != 1) return;
    waitid(P_PIDFD, (id_t)pidfd, &information, WEXITED | WNOHANG);
}

// The close of its socket makes each supervisor remove everything.
static void end(void *argument) {
    struct environment *environment = argument;
    for (size_t fd = 0; fd < environment->size; fd++)
        if (environment->descriptors[fd] == OURS) close((int)fd);
    for (size_t fd = 0; fd < environment->size; fd++) {
        if (environment->descriptors[fd] != OF_CHILD) continue;
        await_child((int)fd);
        close((int)fd);
    }
    free(environment->descriptors);
    free(environment);
}

struct environment *environment_make(napi_env env) {
    struct environment *environment = calloc(1, sizeof *environment);
    // A cleanup hook without a finalizer: the runtimes differ in which of the two they call first.
    if (environment && napi_set_instance_data(env, environment, NULL, NULL) == napi_ok &&
        napi_add_env_cleanup_hook(env, end, environment) == napi_ok) {
        environment->home = (int)environment_note(environment, open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), OURS);
        return environment;
    }
    free(environment);
    return NULL;
}
