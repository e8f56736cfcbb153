#include "forward.h"
#include "allowed.h"
#include "../common/util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>

#define UPSTREAMS_MAX 3
#define PASSED_MAX 512
#define PASSED_OF_CONTAINER_MAX 64
#define TRIES 3
#define TRY_MS 1000
#define PORT_FIRST 1024
#define BINDS_MAX 8

// The servers that are asked for the containers of a network.
struct upstreams {
    uint32_t network;
    size_t count; // at least one
    size_t first; // is asked first: the others have not answered in time
    struct sockaddr_storage address[UPSTREAMS_MAX];
    struct upstreams *next;
};

struct passed {
    enum watched kind;
    bool used; // otherwise this place is free
    bool connecting;
    uint32_t network;
    int fd;
    uint16_t id;
    unsigned tried; // so often; the servers take turns
    size_t asked;   // the place of the last one
    uint64_t until;  // the next try
    struct asker asker;
    struct question question;
};

static struct upstreams *all_upstreams;
static struct passed passed_on[PASSED_MAX];
static uint8_t bytes[2 + ANSWER_MAX_BYTES];

static socklen_t size_of(const struct sockaddr_storage *address) {
    return address->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

// In both kinds of addresses the port is at the same place.
static void set_port(struct sockaddr_storage *address, uint16_t port) {
    ((struct sockaddr_in *)address)->sin_port = htons(port);
}

static bool parse(struct sockaddr_storage *out, const char *text, const char *port) {
    struct address address;
    char *end;
    unsigned long number = port ? strtoul(port, &end, 10) : 0;
    if (number < 1 || number > UINT16_MAX || *end || !address_parse(&address, text)) return false;
    *out = (struct sockaddr_storage){.ss_family = address.length == 4 ? AF_INET : AF_INET6};
    if (address.length == 4) memcpy(&((struct sockaddr_in *)out)->sin_addr, address.bytes, 4);
    else memcpy(&((struct sockaddr_in6 *)out)->sin6_addr, address.bytes, 16);
    set_port(out, (uint16_t)number);
    return true;
}

static struct upstreams **find(uint32_t network) {
    struct upstreams **at = &all_upstreams;
    while (*at && (*at)->network != network) at = &(*at)->next;
    return at;
}

void forward_set(uint32_t network, char *words) {
    struct upstreams parsed = {.network = network}, **at = find(network);
    for (char *word = words ? strtok(words, " ") : NULL; word && parsed.count < UPSTREAMS_MAX; word = strtok(NULL, " "), parsed.count++)
        if (!parse(&parsed.address[parsed.count], word, strtok(NULL, " "))) return;
    struct upstreams *old = *at, *new = parsed.count == 0 ? NULL : malloc(sizeof *new);
    if (parsed.count > 0 && !new) return;
    if (old) *at = old->next;
    free(old);
    if (!new) return;
    *new = parsed;
    new->next = all_upstreams;
    all_upstreams = new;
}

static const struct upstreams *find_of(const struct view *view) {
    const struct upstreams *found = NULL;
    for (size_t k = 0; k < view->count && !found; k++) found = *find(view->networks[k]);
    return found;
}

bool forward_exists(const struct view *view) {
    return find_of(view) != NULL;
}

static uint16_t random16(void) {
    uint16_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value) abort();
    return value;
}

// An attacker who forges an answer has to guess the port and the id. Where each of some ports is taken, the kernel chooses one.
static void bind_at_random(int fd, int family) {
    struct sockaddr_storage any = {.ss_family = (sa_family_t)family};
    for (int k = 0; k < BINDS_MAX; k++) {
        uint16_t port = random16();
        if (port < PORT_FIRST) continue;
        set_port(&any, port);
        if (bind(fd, (struct sockaddr *)&any, size_of(&any)) == 0) return;
    }
}

static void release(struct passed *passed) {
    close_descriptor(&passed->fd);
    passed->used = false;
    passed->asker.server->passed_on--;
}

static bool send_question(const struct passed *passed) {
    size_t length = question_write(&passed->question, passed->id, bytes + 2), prefix = passed->asker.connection ? 2 : 0;
    bytes[0] = (uint8_t)(length >> 8);
    bytes[1] = (uint8_t)length;
    return send(passed->fd, bytes + 2 - prefix, prefix + length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)(prefix + length);
}

static bool ask(struct passed *passed, const struct sockaddr_storage *upstream) {
    bool stream = passed->asker.connection;
    close_descriptor(&passed->fd);
    passed->fd = socket(upstream->ss_family, (stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (passed->fd < 0) return false;
    if (!stream) bind_at_random(passed->fd, upstream->ss_family);
    if (connect(passed->fd, (const struct sockaddr *)upstream, size_of(upstream)) < 0 && errno != EINPROGRESS) return false;
    passed->id = random16();
    passed->connecting = stream;
    return (stream || send_question(passed)) && watch(passed->fd, &passed->kind, stream ? EPOLLOUT : EPOLLIN);
}

static void fail(struct passed *passed) {
    const struct asker asker = passed->asker;
    size_t length = answer_empty(&passed->question, SERVFAIL, false, bytes);
    release(passed);
    asker_reply(&asker, bytes, length);
}

static void ask_next(struct passed *passed) {
    const struct upstreams *upstreams = *find(passed->network);
    while (upstreams && passed->tried < TRIES) {
        passed->asked = (upstreams->first + passed->tried++) % upstreams->count;
        if (ask(passed, &upstreams->address[passed->asked])) {
            passed->until = now + TRY_MS;
            return look_by(passed->until);
        }
    }
    fail(passed);
}

// A place for a question. Where all are taken, one of the container that has most of them is answered with SERVFAIL, unless it
// is the asking one: no container can keep the others from theirs.
static struct passed *take_place(const struct server *server) {
    struct passed *most = &passed_on[0];
    if (server->passed_on >= PASSED_OF_CONTAINER_MAX) return NULL;
    for (size_t k = 0; k < PASSED_MAX; k++) {
        if (!passed_on[k].used) return &passed_on[k];
        if (passed_on[k].asker.server->passed_on > most->asker.server->passed_on) most = &passed_on[k];
    }
    if (most->asker.server->passed_on <= server->passed_on + 1) return NULL;
    fail(most);
    return most;
}

bool forward_pass(const struct asker *asker, const struct question *question) {
    const struct upstreams *upstreams = find_of(&asker->server->view);
    struct passed *passed = upstreams ? take_place(asker->server) : NULL;
    if (!passed) return false;
    *passed = (struct passed){.kind = WATCHED_UPSTREAM, .used = true, .network = upstreams->network, .fd = -1, .asker = *asker, .question = *question};
    asker->server->passed_on++;
    if (asker->connection) watch(asker->connection->fd, &asker->connection->kind, 0); // one question at a time
    ask_next(passed);
    return true;
}

void forward_forget(const struct server *server, const struct connection *connection) {
    if (server->passed_on == 0) return;
    for (size_t k = 0; k < PASSED_MAX; k++) {
        struct passed *passed = &passed_on[k];
        if (passed->used && passed->asker.server == server && (!connection || passed->asker.connection == connection)) release(passed);
    }
}

// The asker gets its own id and its own spelling of the question, and no more bytes than it takes.
static void pass_back(struct passed *passed, uint8_t *message, size_t length) {
    if (!allowed_learn(&passed->question, message, length)) return fail(passed);
    const struct asker asker = passed->asker;
    const struct question *question = &passed->question;
    if (!asker.connection && length > question->limit) {
        length = answer_empty(question, NOERROR, true, message);
    } else {
        message[0] = (uint8_t)(question->id >> 8);
        message[1] = (uint8_t)question->id;
        memcpy(message + HEADER_BYTES, question->section, question->length);
    }
    release(passed);
    asker_reply(&asker, message, length);
}

// A datagram that does not answer the question is ignored: somebody may have guessed the port, and goes on guessing the id.
static void take_datagram(struct passed *passed) {
    ssize_t n = recv(passed->fd, bytes, ANSWER_MAX_BYTES, 0);
    if (n < 0 && errno != EAGAIN) ask_next(passed);
    else if (n >= 0 && question_is_answered(&passed->question, passed->id, bytes, (size_t)n)) pass_back(passed, bytes, (size_t)n);
}

// An answer is left in the kernel's buffer until all of it is there.
static void take_stream(struct passed *passed, uint32_t events) {
    ssize_t n = recv(passed->fd, bytes, sizeof bytes, MSG_PEEK);
    if (n < 0 && errno == EAGAIN) return;
    size_t length = n < 2 ? 0 : 2 + (size_t)(bytes[0] << 8 | bytes[1]);
    if (n >= 2 && (size_t)n >= length && question_is_answered(&passed->question, passed->id, bytes + 2, length - 2))
        return pass_back(passed, bytes + 2, length - 2);
    if (n <= 0 || (length && (size_t)n >= length) || events & EPOLLRDHUP) return ask_next(passed);
    int needed = length ? (int)length : 2;
    setsockopt(passed->fd, SOL_SOCKET, SO_RCVLOWAT, &needed, sizeof needed);
}

void forward_serve(struct passed *passed, uint32_t events) {
    if (!passed->used) return;
    if (!passed->asker.connection) return take_datagram(passed);
    if (!passed->connecting) return take_stream(passed, events);
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return;
    passed->connecting = false;
    if (!send_question(passed) || !watch(passed->fd, &passed->kind, EPOLLIN | EPOLLRDHUP)) ask_next(passed);
}

// The next question goes to another server at once: an asker that waits no longer than this would never get to it.
static void give_up(struct passed *passed) {
    struct upstreams *upstreams = *find(passed->network);
    if (upstreams && upstreams->first == passed->asked) upstreams->first = (upstreams->first + 1) % upstreams->count;
    ask_next(passed);
}

void forward_look(void) {
    for (size_t k = 0; k < PASSED_MAX; k++) {
        struct passed *passed = &passed_on[k];
        if (!passed->used) continue;
        if (passed->until <= now) give_up(passed);
        else look_by(passed->until);
    }
}
