#include "loop.h"
#include "../common/util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH 64

// The loop's own tokens: its thread must end, or close the descriptors in the pipe.
#define TOKEN_END 0
#define TOKEN_CLOSE UINT64_MAX

struct loop {
    napi_env env;
    napi_threadsafe_function ready;
    pthread_t thread;
    int epoll;
    int end; // eventfd
    int closing[2]; // pipe of descriptors to close
};

struct batch {
    int count;
    struct epoll_event events[BATCH];
};

static void call_ready(napi_env env, napi_value ready, void *context, void *data) {
    struct batch *batch = data;
    (void)context;
    for (int k = 0; env && k < batch->count; k++) {
        napi_value receiver, arguments[2];
        napi_get_undefined(env, &receiver);
        napi_create_double(env, (double)batch->events[k].data.u64, &arguments[0]);
        napi_create_uint32(env, batch->events[k].events, &arguments[1]);
        // An exception stays pending, and the runtime reports it as uncaught.
        if (napi_call_function(env, receiver, ready, 2, arguments, NULL) != napi_ok) break;
    }
    free(batch);
}

static void close_given(int pipe) {
    int fds[64];
    for (ssize_t n; (n = read(pipe, fds, sizeof fds)) > 0;)
        for (ssize_t k = 0; k < n / (ssize_t)sizeof *fds; k++) close(fds[k]);
}

// Calls JavaScript once for all events of one epoll_wait(2), so that a burst costs one wake-up.
static void *run(void *argument) {
    struct loop *loop = argument;
    for (;;) {
        struct batch *batch = malloc(sizeof *batch);
        if (!batch) abort();
        while ((batch->count = epoll_wait(loop->epoll, batch->events, BATCH, -1)) < 0 && errno == EINTR) continue;
        int ending = batch->count < 0, kept = 0;
        for (int k = 0; k < batch->count; k++) {
            uint64_t token = batch->events[k].data.u64;
            ending |= token == TOKEN_END;
            if (token == TOKEN_CLOSE) close_given(loop->closing[0]);
            else batch->events[kept++] = batch->events[k];
        }
        batch->count = kept;
        if (!ending && kept == 0) {
            free(batch);
            continue;
        }
        if (ending || napi_call_threadsafe_function(loop->ready, batch, napi_tsfn_nonblocking) != napi_ok) {
            free(batch);
            return NULL;
        }
    }
}

static void release(struct loop *loop) {
    close_descriptor(&loop->end);
    close_descriptor(&loop->epoll);
    close_descriptor(&loop->closing[0]);
    close_descriptor(&loop->closing[1]);
    free(loop);
}

// At the end of the environment (a process or a worker). Joins the thread before it releases what the thread uses.
static void stop(void *argument) {
    struct loop *loop = argument;
    uint64_t one = 1;
    if (write(loop->end, &one, sizeof one) == (ssize_t)sizeof one) pthread_join(loop->thread, NULL);
    close_given(loop->closing[0]);
    napi_release_threadsafe_function(loop->ready, napi_tsfn_abort);
    release(loop);
}

static int start_thread(struct loop *loop) {
    struct epoll_event end = {.events = EPOLLIN, .data.u64 = TOKEN_END}, closing = {.events = EPOLLIN, .data.u64 = TOKEN_CLOSE};
    sigset_t all, before;
    if ((loop->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) return -1;
    if ((loop->end = eventfd(0, EFD_CLOEXEC)) < 0) return -1;
    if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->end, &end) < 0) return -1;
    if (pipe2(loop->closing, O_CLOEXEC | O_NONBLOCK) < 0) return -1;
    if (epoll_ctl(loop->epoll, EPOLL_CTL_ADD, loop->closing[0], &closing) < 0) return -1;
    // JavaScript's threads handle the signals.
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&loop->thread, NULL, run, loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error == 0 ? 0 : -1;
}

struct loop *loop_start(napi_env env, napi_value ready) {
    napi_value name;
    struct loop *loop = malloc(sizeof *loop);
    if (!loop) return NULL;
    *loop = (struct loop){.env = env, .epoll = -1, .end = -1, .closing = {-1, -1}};
    if (napi_create_string_utf8(env, "berth", NAPI_AUTO_LENGTH, &name) == napi_ok &&
        napi_create_threadsafe_function(env, ready, NULL, name, 0, 1, NULL, NULL, NULL, call_ready, &loop->ready) == napi_ok) {
        napi_unref_threadsafe_function(env, loop->ready);
        if (start_thread(loop) == 0 && napi_add_env_cleanup_hook(env, stop, loop) == napi_ok) return loop;
        napi_release_threadsafe_function(loop->ready, napi_tsfn_abort);
    }
    release(loop);
    return NULL;
}

int loop_watch(struct loop *loop, int fd, uint32_t events, uint64_t token) {
    struct epoll_event event = {.events = events | EPOLLONESHOT, .data.u64 = token};
    if (epoll_ctl(loop->epoll, EPOLL_CTL_MOD, fd, &event) == 0) return 0;
    if (errno != ENOENT) return -errno;
    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

void loop_forget(struct loop *loop, int fd) {
    epoll_ctl(loop->epoll, EPOLL_CTL_DEL, fd, NULL);
}

int loop_close(struct loop *loop, int fd) {
    return write(loop->closing[1], &fd, sizeof fd) == (ssize_t)sizeof fd ? 0 : -1;
}

void loop_keep_alive(struct loop *loop, int alive) {
    if (alive) napi_ref_threadsafe_function(loop->env, loop->ready);
    else napi_unref_threadsafe_function(loop->env, loop->ready);
}
