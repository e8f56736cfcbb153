// The responder for the names of all networks of a Berth. It answers the questions that containers ask on sockets in their own
// network namespaces, which it is given, with the names of the networks that the container is on and of no others. It passes on the
// questions that it cannot answer, where that is allowed. It runs as a unit of the supervisor, without capabilities, and ends with its
// control socket, which is its standard input. The messages there are text, of one or more lines, and a line of any other form changes
// nothing. A line may use the descriptors of its message:
//
//   serve ID NETWORK...              with two descriptors, a bound socket of UDP and a listening one of TCP: container ID asks there,
//                                    and sees the names of these networks, 64 at most
//   see ID NETWORK...                container ID sees the names of these networks from now on, and of no others
//   leave ID                         closes the sockets of container ID
//   name NETWORK OWNER NAMES ADDRESS...
//                                    each of the NAMES, which commas separate, has these addresses by this owner, and no others;
//                                    without any it is removed. A name may have several owners, and be on several networks: all
//                                    addresses are answered, in turns
//   forget NETWORK [OWNER]           removes all names of the owner; without one, of the network, with the servers of `forward`
//   forward NETWORK ADDRESS PORT...  asks these servers, three at most, in turns for what is unknown; without any, the answer is
//                                    NXDOMAIN
//   allow NAME PORT ...              passes on no question for other names than these from now on, in addition to those before: see
//                                    allowed.h
//   tell                             with a socket to the proxy, which is told the addresses of these names
//
// ID, NETWORK and OWNER are numbers from 1 to 4294967295.
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
#define NO_NUMBER 0

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

static uint32_t parse_number(const char *word) {
    char *end;
    if (!word || *word < '1' || *word > '9') return NO_NUMBER;
    unsigned long long number = strtoull(word, &end, 10);
    return *end || number > UINT32_MAX ? NO_NUMBER : (uint32_t)number;
}

static void set_names(uint32_t network) {
    struct address addresses[ADDRESSES_MAX];
    struct name name;
    size_t count = 0;
    uint32_t owner = parse_number(strtok(NULL, " "));
    char *names = strtok(NULL, " ");
    if (owner == NO_NUMBER || !names) return;
    for (const char *word; (word = strtok(NULL, " ")); count++)
        if (count == ADDRESSES_MAX || !address_parse(&addresses[count], word)) return;
    for (const char *word = strtok(names, ","); word; word = strtok(NULL, ","))
        if (name_parse(&name, word)) table_set(network, owner, &name, addresses, count);
}

static void forget(uint32_t network) {
    const char *word = strtok(NULL, " ");
    uint32_t owner = parse_number(word);
    if (word && owner == NO_NUMBER) return;
    table_remove(network, owner);
    if (!word) forward_set(network, NULL);
}

// The words that are left. false: they are not numbers of networks.
static bool read_view(struct view *view) {
    view->count = 0;
    for (const char *word; (word = strtok(NULL, " ")); view->count++)
        if (view->count == VIEW_MAX || (view->networks[view->count] = parse_number(word)) == NO_NUMBER) return false;
    return true;
}

static void take_message(char *text, int fds[2]) {
    struct view view;
    const char *verb = strtok(text, " ");
    if (!verb) return;
    if (!strcmp(verb, "allow")) return allowed_add(strtok(NULL, ""));
    if (!strcmp(verb, "tell")) return allowed_tell(steal_fd(&fds[0]));
    uint32_t number = parse_number(strtok(NULL, " "));
    if (number == NO_NUMBER) return;
    if (!strcmp(verb, "name")) return set_names(number);
    if (!strcmp(verb, "forget")) return forget(number);
    if (!strcmp(verb, "forward")) return forward_set(number, strtok(NULL, ""));
    if (!read_view(&view)) return;
    if (!strcmp(verb, "see")) return server_see(number, &view);
    if (!strcmp(verb, "leave") && view.count == 0) return server_close(number);
    if (!strcmp(verb, "serve") && fds[0] >= 0 && fds[1] >= 0) {
        server_open(number, &view, fds[0], fds[1]);
        fds[0] = fds[1] = -1;
    }
}

static void take_lines(char *text, int fds[2]) {
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = '\0';
        take_message(line, fds);
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
        if (strlen(text) == (size_t)length) take_lines(text, fds);
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
    table_set(EVERYWHERE, 0, &localhost, loopback, 2);
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
