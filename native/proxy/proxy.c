// The proxy: accepts connections on sockets that it is given and connects each to a target in its own network namespace,
// so that a port of the host's leads into a container. It runs as a unit of the supervisor's, without capabilities, and
// ends with its control socket, which is its standard input. lib/internal/network/proxy.ts sends the messages:
//
//   add ID TARGET...   with a bound socket: from when a target listens, the socket does too. A target is `v4:PORT:ADDRESS`,
//                      `v6:PORT:ADDRESS`; they are tried in turn. Or there is one alone: `abstract:NAME`, or `unix:PATH`, for which
//                      the descriptor of a root comes after the socket.
//   datagrams ID TARGET...   with a bound UDP socket.
//   toxic ID UP DOWN   the faults of what `add` or `outbound` has added, for each direction: `LATENCY:JITTER:RATE:BYTES:AFTER:HALF_OPEN`,
//                      the members of struct toxic.
//
// For the way out of a network, which has a proxy of its own:
//
//   outbound ID        with a listening socket in the network's namespace, to which the connections that leave the network are
//                      redirected: each goes on to where it was going to, if the rules allow that; else it is reset at once
//   rules ID RULE...   adds such rules: see outbound.h
//   learn ID           with a socket that tells addresses of allowed names
//   refusals ID        with a socket that is told `refused FROM ADDRESS PORT` of each connection that the rules refuse, and of one too
//                      many `full FROM ADDRESS PORT`
//
// It answers each with its ID.
#include "../common/descriptor.h"
#include "../common/util.h"
#include "datagram.h"
#include "outbound.h"
#include "pair.h"
#include "target.h"
#include "timer.h"
#include "watched.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX 64
#define MESSAGE_MAX (PATH_MAX + 64)
#define BACKLOG 4096
#define ACCEPTS_MAX 64
// A port that does not listen yet is looked at so often, in milliseconds: first, and at most.
#define LOOK_FIRST_MS 2
#define LOOK_MOST_MS 25
// Where no more descriptors can be had, those that wait are left so long.
#define FULL_MS 50

struct listener {
    enum watched kind;
    int fd;
    uint32_t id;
    bool listening, paused;
    bool outbound; // each connection has a target of its own
    struct targets targets;
    struct shape shape;
    struct listener *next;
};

static struct listener *listeners;
static struct sockets listening; // when they were looked at last
static int epoll, control, told_refusals = -1;
static enum watched control_kind = WATCHED_CONTROL;

static void watch(struct listener *listener) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = listener};
    listener->paused = epoll_ctl(epoll, EPOLL_CTL_ADD, listener->fd, &event) < 0;
}

// An answer that does not fit is lost: whoever asked is gone, or does not read.
static void answer(uint32_t id) {
    char text[16];
    int length = snprintf(text, sizeof text, "%u", id);
    descriptors_send(control, text, (size_t)length, NULL, 0);
}

static void look(struct listener *listener) {
    if (!targets_listen(&listener->targets, &listening) || listen(listener->fd, BACKLOG) < 0) return;
    listener->listening = true;
    watch(listener);
}

// Takes the socket, and listens on it as it is told; NULL where there is no memory, and the socket is closed.
static struct listener *make_listener(int fd, struct listener wanted) {
    struct listener *listener = malloc(sizeof *listener);
    if (!listener) {
        close(fd);
        return NULL;
    }
    *listener = wanted;
    listener->kind = WATCHED_LISTENER;
    listener->fd = fd;
    listener->shape = (struct shape)NO_SHAPE;
    listener->next = listeners;
    return listeners = listener;
}

static void add(uint32_t id, int fd, const struct targets *targets) {
    struct listener *listener = make_listener(fd, (struct listener){.id = id, .targets = *targets});
    sockets_listening(&listening);
    if (listener) look(listener);
}

static void add_outbound(uint32_t id, int fd) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct listener *listener = make_listener(fd, (struct listener){.id = id, .listening = true, .outbound = true});
    if (listener) watch(listener);
}

static void reshape(uint32_t id, const char *text) {
    struct toxic toxics[2];
    struct listener *listener = listeners;
    while (listener && listener->id != id) listener = listener->next;
    if (!listener || !toxics_parse(toxics, text)) return;
    memcpy(listener->shape.toxics, toxics, sizeof toxics);
    pairs_reshape(&listener->shape);
}

static void take_message(void) {
    char text[MESSAGE_MAX], verb[16];
    int fds[2];
    struct targets targets;
    uint32_t id;
    int at = 0;
    ssize_t length = descriptors_receive(control, text, sizeof text - 1, fds, countof(fds));
    if (length < 0 && (errno == EAGAIN || errno == EMFILE || errno == EMSGSIZE)) return;
    if (length <= 0) exit(0);
    text[length] = '\0';
    cleanup_close int fd = fds[0], root = fds[1];
    if (sscanf(text, "%15s %u %n", verb, &id, &at) != 2) return;
    if (strcmp(verb, "toxic") == 0) {
        reshape(id, text + at);
    } else if (strcmp(verb, "rules") == 0) {
        outbound_rules(text + at);
    } else if (strcmp(verb, "learn") == 0) {
        outbound_learn_from(epoll, steal_fd(&fd));
    } else if (strcmp(verb, "refusals") == 0) {
        close_descriptor(&told_refusals);
        told_refusals = steal_fd(&fd);
    } else if (strcmp(verb, "outbound") == 0 && fd >= 0) {
        add_outbound(id, steal_fd(&fd));
    } else if (fd >= 0 && targets_parse(&targets, text + at, &root)) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        if (strcmp(verb, "add") == 0) add(id, steal_fd(&fd), &targets);
        else if (strcmp(verb, "datagrams") == 0) datagrams_open(epoll, steal_fd(&fd), &targets);
    }
    answer(id);
}

// Resets a connection, and tells of it; a message that does not fit is lost, as a container may flood.
static void refuse(int fd, const char *why, const char *what) {
    const struct linger linger = {.l_onoff = 1};
    char text[160];
    int length = snprintf(text, sizeof text, "%s %s", why, what);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
    if (*what) descriptors_send(told_refusals, text, (size_t)length, NULL, 0);
}

static bool pass_on(struct listener *listener, int fd) {
    struct targets target;
    size_t *count;
    char what[128];
    if (!listener->outbound) return pair_open(epoll, fd, &listener->targets, &listener->shape, NULL);
    switch (outbound_decide(fd, &target, &count, what)) {
    case OUTBOUND_ALLOWED: return pair_open(epoll, fd, &target, &listener->shape, count);
    case OUTBOUND_REFUSED: refuse(fd, "refused", what); break;
    case OUTBOUND_FULL: refuse(fd, "full", what); break;
    }
    return true;
}

static void take_connections(struct listener *listener) {
    for (int k = 0; k < ACCEPTS_MAX; k++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            if (pass_on(listener, fd)) continue;
        } else if (errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return;
            continue; // of one that was gone again
        }
        epoll_ctl(epoll, EPOLL_CTL_DEL, listener->fd, NULL);
        listener->paused = true;
        return;
    }
}

// Milliseconds until something has to be looked at again, or -1.
static int look_around(int wait) {
    bool waits = false, full = false;
    for (struct listener *listener = listeners; listener; listener = listener->next) waits |= !listener->listening;
    if (waits) sockets_listening(&listening);
    waits = false;
    for (struct listener *listener = listeners; listener; listener = listener->next) {
        if (!listener->listening) look(listener);
        if (listener->listening && listener->paused) watch(listener);
        waits |= !listener->listening;
        full |= listener->paused;
    }
    return waits ? wait : full ? FULL_MS : -1;
}

static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

// Of two times in milliseconds, of which -1 is never.
static int sooner(int a, int b) {
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

int main(void) {
    struct epoll_event events[EVENTS_MAX];
    struct epoll_event told = {.events = EPOLLIN, .data.ptr = &control_kind};
    int wait = LOOK_FIRST_MS, until = -1;
    raise_limit();
    control = STDIN_FILENO;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, control, &told) < 0) return 1;
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS_MAX, until);
        if (count < 0 && errno != EINTR) return 1;
        for (int k = 0; k < count; k++) {
            switch (*(enum watched *)events[k].data.ptr) {
            case WATCHED_CONTROL:
                take_message();
                wait = LOOK_FIRST_MS;
                break;
            case WATCHED_LISTENER: take_connections(events[k].data.ptr); break;
            case WATCHED_TEACHER: outbound_learn(); break;
            case WATCHED_SIDE: pair_serve(events[k].data.ptr, events[k].events); break;
            case WATCHED_BOUND: datagrams_serve_bound(events[k].data.ptr); break;
            case WATCHED_PEER: datagrams_serve_peer(events[k].data.ptr); break;
            }
        }
        pairs_serve_due();
        pairs_free();
        int look = look_around(wait);
        if (count == 0 && look == wait && wait < LOOK_MOST_MS) wait++;
        until = sooner(sooner(look, datagrams_tidy()), timer_wait());
    }
}
