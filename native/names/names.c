// The responder for the names of one network. It answers the questions that containers ask on sockets in their own network
// namespaces, which it is given, and passes on the questions that it cannot answer, where that is allowed. It runs as a unit of the
// supervisor, without capabilities, and ends with its control socket, which is its standard input. The messages there are text, and
// a message of any other form changes nothing:
//
//   serve ID                  with two descriptors, a bound socket of UDP and a listening one of TCP: container ID asks there
//   leave ID                  closes these, and removes all names of the container
//   name ID NAME ADDRESS...   NAME of container ID has these addresses, and no others; without any it is removed. Several containers
//                             may have one name: all addresses are answered, in turns
//   domain NAME               the containers' search domain: X.NAME is known as X; without a name there is none
//   forward ADDRESS PORT ...  asks these servers, three at most, in turns for what is unknown; without any, the answer is NXDOMAIN
//   allow NAME PORT ...       passes on no question for other names than these from now on, in addition to those before: see allowed.h
//   tell                      with a socket to the proxy, which is told the addresses of these names
//
// An ID is a number from 1 to 4294967295.
#include "../common/descriptor.h"
#include "../common/util.h"
#include "allowed.h"
#include "forward.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64
#define MESSAGE_MAX 8192
#define ADDRESSES_MAX 64
#define OWN_ID 0

uint64_t now;
static uint64_t look_at = UINT64_MAX;
static int epoll, control;
static enum watched control_kind = WATCHED_CONTROL;

bool watch(int fd, enum watched *data, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0 || (errno == ENOENT && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0);
}

void unwatch(int fd) {
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

void look_by(uint64_t time) {
    if (time < look_at) look_at = time;
}

static uint32_t parse_id(const char *word) {
    char *end;
    if (!word || *word < '1' || *word > '9') return OWN_ID;
    unsigned long long id = strtoull(word, &end, 10);
    return *end || id > UINT32_MAX ? OWN_ID : (uint32_t)id;
}

static void set_name(void) {
    struct address addresses[ADDRESSES_MAX];
    struct name name;
    size_t count = 0;
    uint32_t id = parse_id(strtok(NULL, " "));
    const char *text = strtok(NULL, " ");
    if (id == OWN_ID || !text || !name_parse(&name, text)) return;
    for (const char *word; (word = strtok(NULL, " ")); count++)
        if (count == ADDRESSES_MAX || !address_parse(&addresses[count], word)) return;
    table_set(id, &name, addresses, count);
}

static void set_domain(void) {
    struct name name;
    const char *text = strtok(NULL, " ");
    if (!text) answer_domain(NULL);
    else if (name_parse(&name, text)) answer_domain(&name);
}

static void take_message(char *text, int fds[2]) {
    const char *verb = strtok(text, " ");
    if (!verb) return;
    if (!strcmp(verb, "name")) return set_name();
    if (!strcmp(verb, "domain")) return set_domain();
    if (!strcmp(verb, "forward")) return forward_set(strtok(NULL, ""));
    if (!strcmp(verb, "allow")) return allowed_add(strtok(NULL, ""));
    if (!strcmp(verb, "tell")) return allowed_tell(steal_fd(&fds[0]));
    uint32_t id = parse_id(strtok(NULL, " "));
    if (id == OWN_ID || strtok(NULL, " ")) return;
    if (!strcmp(verb, "serve") && fds[0] >= 0 && fds[1] >= 0) {
        server_open(id, fds[0], fds[1]);
        fds[0] = fds[1] = -1;
    } else if (!strcmp(verb, "leave")) {
        server_close(id);
        table_remove(id);
    }
}

void take_messages(void) {
    char text[MESSAGE_MAX + 1];
    for (;;) {
        int fds[2];
        ssize_t length = descriptors_receive(control, text, MESSAGE_MAX, fds, 2);
        if (length < 0 && errno == EAGAIN) return;
        if (length < 0 && (errno == EMFILE || errno == EMSGSIZE)) continue; // the message is lost
        if (length <= 0) exit(0);
        text[length] = '\0';
        if (strlen(text) == (size_t)length) take_message(text, fds);
        for (int k = 0; k < 2; k++) close_descriptor(&fds[k]);
    }
}

static void serve(enum watched *data, uint32_t events) {
    switch (*data) {
    case WATCHED_CONTROL: return take_messages();
    case WATCHED_UDP: return server_take_datagrams((struct server *)((char *)data - offsetof(struct server, udp_kind)));
    case WATCHED_LISTENER: return server_take_connections((struct server *)((char *)data - offsetof(struct server, listener_kind)));
    case WATCHED_CONNECTION: return connection_serve((struct connection *)data, events);
    case WATCHED_UPSTREAM: return forward_serve((struct passed *)data, events);
    }
}

static void read_clock(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    now = (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

// Waits for events and serves them. false: it cannot wait.
static bool turn(void) {
    struct epoll_event events[EVENTS_MAX];
    int wait = look_at == UINT64_MAX ? -1 : look_at <= now ? 0 : (int)(look_at - now);
    int count = epoll_wait(epoll, events, EVENTS_MAX, wait);
    if (count < 0 && errno != EINTR) return false;
    read_clock();
    for (int k = 0; k < count; k++) serve(events[k].data.ptr, events[k].events);
    if (look_at <= now) {
        look_at = UINT64_MAX;
        servers_look();
        forward_look();
    }
    servers_free();
    return true;
}

static bool begin(int socket) {
    struct name localhost;
    struct address loopback[2];
    control = socket;
    read_clock();
    name_parse(&localhost, "localhost");
    address_parse(&loopback[0], "127.0.0.1");
    address_parse(&loopback[1], "::1");
    table_set(OWN_ID, &localhost, loopback, 2);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    return epoll >= 0 && watch(control, &control_kind, EPOLLIN);
}

static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(void) {
    raise_limit();
    if (!begin(STDIN_FILENO)) return 1;
    while (turn()) continue;
    return 1;
}
