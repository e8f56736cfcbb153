#include "pair.h"
#include "watched.h"
#include "../common/util.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define BUFFER_BYTES (256 << 10)

struct side {
    enum watched kind;
    int fd;
    bool connecting, ended; // ended: nothing more is received
    uint32_t watching;
    // Bytes that the other side has received and this one could not send yet.
    uint8_t *left;
    size_t left_length, left_at;
    bool finish; // end the sending half once nothing is left
    struct pair *pair;
    struct side *other;
};

struct pair {
    struct side near, far; // near was accepted
    int epoll;
    struct targets targets;
    unsigned tried;
    bool over, broken;
    struct pair *next;
};

static struct pair *ended;

// With `reset` the other ends see a broken connection (SO_LINGER of socket(7)), as the one here was.
static void close_pair(struct pair *pair, bool reset) {
    if (pair->over) return;
    const struct linger linger = {.l_onoff = 1};
    for (int k = 0; k < 2; k++) {
        struct side *side = k ? &pair->far : &pair->near;
        if (side->fd < 0) continue;
        if (reset) setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(side->fd);
        free(side->left);
    }
    pair->over = true;
    pair->next = ended;
    ended = pair;
}

void pairs_free(void) {
    while (ended) {
        struct pair *pair = ended;
        ended = pair->next;
        free(pair);
    }
}

// Each side waits for bytes while the other can take them, and for room while something is left for it. One that waits for
// neither is not registered, as epoll(7) would tell of its hang-up again and again.
static void watch(struct side *side) {
    uint32_t events = 0;
    if (side->fd < 0) return;
    if (side->connecting || side->left_length) events |= EPOLLOUT;
    if (!side->connecting && !side->ended && !side->other->connecting && !side->other->left_length) events |= EPOLLIN;
    if (events == side->watching) return;
    struct epoll_event event = {.events = events, .data.ptr = side};
    int change = !events ? EPOLL_CTL_DEL : side->watching ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    side->watching = epoll_ctl(side->pair->epoll, change, side->fd, &event) < 0 ? 0 : events;
    if (events && !side->watching) side->pair->broken = true; // no memory for it: max_user_watches of epoll(7)
}

static void watch_both(struct pair *pair) {
    watch(&pair->near);
    watch(&pair->far);
    if (pair->broken) close_pair(pair, true);
}

// The next of the targets; false where there is none that does not fail at once.
static bool connect_far(struct pair *pair) {
    struct side *far = &pair->far;
    while (pair->tried < pair->targets.count) {
        int fd = target_connect(&pair->targets, pair->tried++);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE)) return false;
        if (fd < 0) continue;
        far->fd = fd;
        far->connecting = true;
        far->watching = 0;
        return true;
    }
    errno = ECONNREFUSED;
    return false;
}

bool pair_open(int epoll, int accepted, const struct targets *targets) {
    struct pair *pair = calloc(1, sizeof *pair);
    if (!pair) {
        close(accepted);
        return false;
    }
    const int on = 1;
    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    *pair = (struct pair){
        .near = {.kind = WATCHED_SIDE, .fd = accepted, .pair = pair, .other = &pair->far},
        .far = {.kind = WATCHED_SIDE, .fd = -1, .pair = pair, .other = &pair->near},
        .epoll = epoll,
        .targets = *targets,
    };
    bool made = connect_far(pair);
    bool full = !made && (errno == EMFILE || errno == ENFILE);
    if (!made) close_pair(pair, true);
    else watch_both(pair);
    return !full;
}

static bool finish_connect(struct side *far) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(far->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0) error = errno;
    far->connecting = false;
    if (error == 0) return true;
    close(far->fd);
    far->fd = -1;
    return connect_far(far->pair);
}

static bool keep(struct side *to, const uint8_t *bytes, size_t length) {
    to->left = malloc(length);
    if (!to->left) return false;
    memcpy(to->left, bytes, length);
    to->left_length = length;
    to->left_at = 0;
    return true;
}

// false: the connection is broken.
static bool send_left(struct side *to) {
    while (to->left_at < to->left_length) {
        ssize_t n = send(to->fd, to->left + to->left_at, to->left_length - to->left_at, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        to->left_at += (size_t)n;
    }
    free(to->left);
    to->left = NULL;
    to->left_length = 0;
    if (to->finish) shutdown(to->fd, SHUT_WR);
    return true;
}

static bool pass_on(struct side *from) {
    static uint8_t buffer[BUFFER_BYTES];
    struct side *to = from->other;
    ssize_t n = recv(from->fd, buffer, sizeof buffer, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) {
        from->ended = true;
        to->finish = true;
        if (!to->left_length) shutdown(to->fd, SHUT_WR);
        return true;
    }
    for (size_t at = 0; at < (size_t)n;) {
        ssize_t sent = send(to->fd, buffer + at, (size_t)n - at, MSG_NOSIGNAL);
        if (sent >= 0) at += (size_t)sent;
        else if (errno == EAGAIN) return keep(to, buffer + at, (size_t)n - at);
        else if (errno != EINTR) return false;
    }
    return true;
}

void pair_serve(struct side *side, uint32_t events) {
    struct pair *pair = side->pair;
    if (pair->over) return;
    bool good = true;
    if (side->connecting) good = finish_connect(side);
    else {
        // A broken connection has an error that recv or send would give; the side may be waiting for neither.
        if (events & EPOLLERR) good = false;
        if (good && events & EPOLLOUT) good = send_left(side);
        if (good && events & (EPOLLIN | EPOLLHUP) && !side->ended && !side->other->connecting && !side->other->left_length) good = pass_on(side);
    }
    if (!good) return close_pair(pair, true);
    if (pair->near.ended && pair->far.ended && !pair->near.left_length && !pair->far.left_length) return close_pair(pair, false);
    watch_both(pair);
}
