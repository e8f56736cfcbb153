#include "pair.h"
#include "timer.h"
#include "watched.h"
#include "../common/util.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define BUFFER_BYTES (256 << 10)
// What one direction of a connection holds while latency delays it, with what the chunks themselves take.
#define DELAYED_BYTES_MAX (512 << 10)
#define DELAYED_BYTES (64 << 10) // of one chunk
// A limited rate sends what it may in so much time at once.
#define BURSTS_A_SECOND 50
// The queue of a Unix server that is full is tried again after so long: connect(2) says EAGAIN.
#define AGAIN_US 10000

// Bytes that wait to be sent; none of them for the end.
struct chunk {
    struct chunk *next;
    uint64_t due;
    size_t length, at;
    uint8_t bytes[];
};

struct side {
    enum watched kind;
    int fd;
    bool connecting;
    bool ended;    // nothing more is received
    bool finished; // the end has been sent
    bool full;     // the socket takes no bytes at this moment
    bool broken;   // by its other end, which a half-open connection does not tell
    uint32_t watching;
    struct chunk *first, **last;
    size_t queued;
    uint64_t free_at; // when the rate lets it send again
    uint64_t passed;  // bytes that it has sent since the faults changed
    struct timer timer;
    struct pair *pair;
    struct side *other;
};

struct pair {
    struct side near, far; // near was accepted
    int epoll;
    struct targets targets;
    unsigned tried;
    struct shape *shape;
    size_t *count; // of pairs that are counted together, or NULL
    uint64_t reset_at;
    bool over, unwatched;
    struct pair *next, **before; // of its shape; `next` also of those that have ended
};

static struct pair *ended;

// The faults of what is sent to the side.
static const struct toxic *toxic_to(const struct side *to) {
    return &to->pair->shape->toxics[to == &to->pair->far ? UP : DOWN];
}

static void drop_first(struct side *to) {
    struct chunk *chunk = to->first;
    to->first = chunk->next;
    if (!to->first) to->last = &to->first;
    to->queued -= sizeof *chunk + chunk->length;
    free(chunk);
}

// With `reset` the other ends see a broken connection (SO_LINGER of socket(7)), as the one here was.
static void close_pair(struct pair *pair, bool reset) {
    if (pair->over) return;
    const struct linger linger = {.l_onoff = 1};
    for (int k = 0; k < 2; k++) {
        struct side *side = k ? &pair->far : &pair->near;
        if (reset && side->fd >= 0) setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close_descriptor(&side->fd);
        while (side->first) drop_first(side);
        timer_set(&side->timer, NEVER);
    }
    pair->over = true;
    if (pair->count) --*pair->count;
    *pair->before = pair->next;
    if (pair->next) pair->next->before = pair->before;
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

static size_t burst(const struct toxic *toxic) {
    uint64_t bytes = toxic->rate / BURSTS_A_SECOND;
    return bytes < 1 ? 1 : bytes > BUFFER_BYTES ? BUFFER_BYTES : (size_t)bytes;
}

// How many bytes may be received for the side.
static size_t room(const struct side *to) {
    const struct toxic *toxic = toxic_to(to);
    if (toxic->half_open || to->connecting) return 0;
    if (toxic->latency || toxic->jitter) {
        return to->queued + DELAYED_BYTES > DELAYED_BYTES_MAX ? 0 : DELAYED_BYTES;
    }
    return to->first ? 0 : toxic->rate ? burst(toxic) : BUFFER_BYTES;
}

// Each side waits for bytes while the other can take them, and for room while it is full. One that waits for neither is not
// registered, as epoll(7) would tell of its hang-up again and again.
static void watch(struct side *side) {
    uint32_t events = 0;
    if (side->fd < 0) return;
    if (side->connecting || (side->full && !toxic_to(side)->half_open)) events |= EPOLLOUT;
    if (!side->connecting && !side->ended && room(side->other) > 0) events |= EPOLLIN;
    if (side->broken) events = 0;
    if (events == side->watching) return;
    struct epoll_event event = {.events = events, .data.ptr = side};
    int change = !events ? EPOLL_CTL_DEL : side->watching ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    side->watching = epoll_ctl(side->pair->epoll, change, side->fd, &event) < 0 ? 0 : events;
    if (events && !side->watching) side->pair->unwatched = true; // no memory for it: max_user_watches of epoll(7)
}

// When the side goes on by itself.
static uint64_t due(const struct side *side) {
    const struct pair *pair = side->pair;
    uint64_t at = side == &pair->near ? pair->reset_at : NEVER;
    uint64_t send_at = NEVER;
    if (side->connecting && side->fd < 0) send_at = side->free_at;
    else if (side->first && !side->connecting && !side->full && !toxic_to(side)->half_open)
        send_at = side->first->due > side->free_at ? side->first->due : side->free_at;
    return send_at < at ? send_at : at;
}

// Sends what may be sent now; false: the connection is broken.
static bool flush(struct side *to, uint64_t now) {
    const struct toxic *toxic = toxic_to(to);
    if (to->connecting || toxic->half_open) return true;
    while (to->passed < toxic->reset_bytes) {
        struct chunk *chunk = to->first;
        if (!chunk || to->full || chunk->due > now || to->free_at > now) return true;
        if (chunk->length == 0) {
            shutdown(to->fd, SHUT_WR);
            to->finished = true;
            drop_first(to);
            continue;
        }
        size_t size = chunk->length - chunk->at;
        if (toxic->rate && size > burst(toxic)) size = burst(toxic);
        if (size > toxic->reset_bytes - to->passed) size = toxic->reset_bytes - to->passed;
        ssize_t sent = send(to->fd, chunk->bytes + chunk->at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno != EAGAIN) return false;
        to->full = sent < 0;
        if (to->full) return true;
        chunk->at += (size_t)sent;
        to->passed += (size_t)sent;
        // A timer that came late is made up for.
        uint64_t from = to->free_at + 1000000 / BURSTS_A_SECOND > now ? to->free_at : now;
        if (toxic->rate) to->free_at = from + (uint64_t)sent * 1000000 / toxic->rate;
        if (chunk->at == chunk->length) drop_first(to);
    }
    return false;
}

// The next of the targets; false where there is none that does not fail at once.
static bool connect_far(struct pair *pair) {
    struct side *far = &pair->far;
    while (pair->tried < pair->targets.count) {
        far->fd = target_connect(&pair->targets, pair->tried++);
        far->connecting = true;
        far->watching = 0;
        if (far->fd >= 0) return true;
        if (errno == EMFILE || errno == ENFILE) return false;
        if (errno != EAGAIN) continue;
        pair->tried--;
        far->free_at = now_us() + AGAIN_US;
        return true;
    }
    errno = ECONNREFUSED;
    return false;
}

static bool finish_connect(struct side *far) {
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(far->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0) error = errno;
    far->connecting = false;
    if (error == 0) return true;
    close_descriptor(&far->fd);
    return connect_far(far->pair);
}

// Does what can be done now, and waits for the rest.
static void go_on(struct pair *pair) {
    struct side *near = &pair->near, *far = &pair->far;
    const struct toxic *toxics = pair->shape->toxics;
    uint64_t now = now_us();
    bool good = now < pair->reset_at;
    if (good && far->connecting && far->fd < 0 && now >= far->free_at) good = connect_far(pair);
    good = good && flush(near, now) && flush(far, now);
    if ((near->broken || far->broken) && !toxics[UP].half_open && !toxics[DOWN].half_open) good = false;
    if (!good) return close_pair(pair, true);
    if (near->finished && far->finished) return close_pair(pair, false);
    watch(near);
    watch(far);
    if (pair->unwatched || !timer_set(&near->timer, due(near)) || !timer_set(&far->timer, due(far))) close_pair(pair, true);
}

static void follow(struct pair *pair, uint64_t now) {
    const struct toxic *toxics = pair->shape->toxics;
    uint64_t after = toxics[UP].reset_after < toxics[DOWN].reset_after ? toxics[UP].reset_after : toxics[DOWN].reset_after;
    pair->reset_at = after == NEVER ? NEVER : now + after;
}

void pairs_reshape(struct shape *shape) {
    uint64_t now = now_us();
    for (struct pair *pair = shape->pairs, *next; pair; pair = next) {
        next = pair->next;
        follow(pair, now);
        for (int k = 0; k < 2; k++) {
            struct side *to = k ? &pair->far : &pair->near;
            uint64_t latest = now + toxic_to(to)->latency;
            for (struct chunk *chunk = to->first; chunk; chunk = chunk->next)
                if (chunk->due > latest) chunk->due = latest;
            if (!to->connecting) to->free_at = 0;
            to->passed = 0;
        }
        go_on(pair);
    }
}

bool pair_open(int epoll, int accepted, const struct targets *targets, struct shape *shape, size_t *count) {
    struct pair *pair = calloc(1, sizeof *pair);
    if (!pair) {
        close(accepted);
        return false;
    }
    const int on = 1;
    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    *pair = (struct pair){
        .near = {.kind = WATCHED_SIDE, .fd = accepted, .last = &pair->near.first, .pair = pair, .other = &pair->far},
        .far = {.kind = WATCHED_SIDE, .fd = -1, .last = &pair->far.first, .pair = pair, .other = &pair->near},
        .epoll = epoll,
        .targets = *targets,
        .shape = shape,
        .count = count,
        .next = shape->pairs,
        .before = &shape->pairs,
    };
    if (shape->pairs) shape->pairs->before = &pair->next;
    shape->pairs = pair;
    if (count) ++*count;
    follow(pair, now_us());
    bool made = connect_far(pair);
    bool full = !made && (errno == EMFILE || errno == ENFILE);
    if (!made) close_pair(pair, true);
    else go_on(pair);
    return !full;
}

static uint64_t due_after(const struct toxic *toxic) {
    if (!toxic->latency && !toxic->jitter) return 0;
    uint64_t now = now_us(), spread = toxic->jitter ? (uint64_t)random() % (2 * toxic->jitter + 1) : 0;
    uint64_t at = now + toxic->latency + spread;
    return at - now < toxic->jitter ? now : at - toxic->jitter;
}

static bool keep(struct side *to, const uint8_t *bytes, size_t length) {
    struct chunk *chunk = malloc(sizeof *chunk + length);
    if (!chunk) return false;
    *chunk = (struct chunk){.due = due_after(toxic_to(to)), .length = length};
    memcpy(chunk->bytes, bytes, length);
    *to->last = chunk;
    to->last = &chunk->next;
    to->queued += sizeof *chunk + length;
    return true;
}

// Without faults the bytes are sent from where they are, and only what is left of them is kept.
static bool pass_on(struct side *from) {
    static uint8_t buffer[BUFFER_BYTES];
    struct side *to = from->other;
    const struct toxic *toxic = toxic_to(to);
    ssize_t n = recv(from->fd, buffer, room(to), 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    size_t at = 0;
    from->ended = n == 0;
    bool plain = !to->first && !toxic->latency && !toxic->jitter && !toxic->rate && toxic->reset_bytes == NEVER;
    while (plain && at < (size_t)n) {
        ssize_t sent = send(to->fd, buffer + at, (size_t)n - at, MSG_NOSIGNAL);
        if (sent >= 0) at += (size_t)sent;
        else if (errno == EAGAIN) break;
        else if (errno != EINTR) return false;
    }
    if (plain && at < (size_t)n) to->full = true;
    return (n > 0 && at == (size_t)n) || keep(to, buffer + at, (size_t)n - at);
}

void pair_serve(struct side *side, uint32_t events) {
    struct pair *pair = side->pair;
    if (pair->over) return;
    bool good = true;
    if (side->connecting) good = finish_connect(side);
    else {
        // A broken connection has an error that recv or send would give; the side may be waiting for neither.
        if (events & EPOLLERR) side->broken = true;
        if (events & EPOLLOUT) side->full = false;
        if (!side->broken && events & (EPOLLIN | EPOLLHUP) && !side->ended && room(side->other) > 0) good = pass_on(side);
    }
    if (good) go_on(pair);
    else close_pair(pair, true);
}

void pairs_serve_due(void) {
    uint64_t now = now_us();
    struct timer *timer;
    while ((timer = timer_take(now))) go_on(((struct side *)(void *)((uint8_t *)timer - offsetof(struct side, timer)))->pair);
}
