#include "outbound.h"
#include "../common/descriptor.h"
#include "../common/util.h"
#include "watched.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define RULES_MAX 4096
#define LEARNED_MAX 4096
// Of one container, for each version of IP: the memory of a connection here is not its container's.
#define CONNECTIONS_MAX 1024
#define ORIGINAL_DST 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST of linux/netfilter

struct address {
    uint8_t bytes[16];
    uint8_t length; // 4 or 16
};

struct rule {
    enum verdict { ALLOW, REFUSE, REFUSE_OWN, ALLOW_LEARNED } verdict;
    struct address address;
    unsigned bits;
    uint16_t port;
};

struct learned {
    struct address address;
    uint16_t port;
};

// Whose connections are counted together. There are as many as the network has addresses, at most.
struct source {
    struct address address;
    size_t count;
    struct source *next;
};

static struct source *sources;
static struct rule *rules;
static size_t rule_count;
// The newest ones: each replaces the oldest.
static struct learned learned[LEARNED_MAX];
static size_t learned_count, learned_next;
static int teacher = -1;
static enum watched teacher_kind = WATCHED_TEACHER;

static bool parse_address(struct address *address, const char *text) {
    *address = (struct address){.length = strchr(text, ':') ? 16 : 4};
    return inet_pton(address->length == 4 ? AF_INET : AF_INET6, text, address->bytes) == 1;
}

static bool parse_number(unsigned *out, const char *text, unsigned most) {
    char *end;
    if (!text || *text < '0' || *text > '9') return false;
    unsigned long value = strtoul(text, &end, 10);
    *out = (unsigned)value;
    return *end == '\0' && value <= most;
}

static bool parse_range(struct rule *rule, char *range, const char *port_text) {
    unsigned port;
    char *slash = range ? strchr(range, '/') : NULL;
    if (!slash) return false;
    *slash = '\0';
    if (!parse_address(&rule->address, range) || !parse_number(&rule->bits, slash + 1, rule->address.length * 8u)) return false;
    if (!parse_number(&port, port_text, UINT16_MAX)) return false;
    rule->port = (uint16_t)port;
    return true;
}

void outbound_rules(char *words) {
    for (char *word = strtok(words, " "); word && rule_count < RULES_MAX; word = strtok(NULL, " ")) {
        struct rule rule = {0};
        if (!strcmp(word, "refuse-own")) rule.verdict = REFUSE_OWN;
        else if (!strcmp(word, "allow-learned")) rule.verdict = ALLOW_LEARNED;
        else if (!strcmp(word, "allow")) rule.verdict = ALLOW;
        else if (!strcmp(word, "refuse")) rule.verdict = REFUSE;
        else return;
        if (rule.verdict == ALLOW || rule.verdict == REFUSE) {
            char *range = strtok(NULL, " ");
            if (!parse_range(&rule, range, strtok(NULL, " "))) return;
        }
        struct rule *more = realloc(rules, (rule_count + 1) * sizeof rule);
        if (!more) abort(); // a list that lacks a rule could allow what is refused
        rules = more;
        rules[rule_count++] = rule;
    }
}

void outbound_learn_from(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &teacher_kind};
    close_descriptor(&teacher);
    teacher = fd;
    epoll_ctl(epoll, EPOLL_CTL_ADD, teacher, &event);
}

static bool is_same(const struct address *a, const struct address *b) {
    return a->length == b->length && memcmp(a->bytes, b->bytes, a->length) == 0;
}

static bool is_learned(const struct address *address, uint16_t port) {
    for (size_t k = 0; k < learned_count; k++)
        if ((learned[k].port == 0 || learned[k].port == port) && is_same(&learned[k].address, address)) return true;
    return false;
}

void outbound_learn(void) {
    char text[64], word[INET6_ADDRSTRLEN];
    struct address address;
    unsigned port;
    int fd;
    ssize_t n;
    while (teacher >= 0 && (n = descriptor_receive(teacher, text, sizeof text - 1, &fd)) != 0) {
        if (n < 0 && errno != EMSGSIZE) return;
        close_descriptor(&fd);
        if (n < 0) continue;
        text[n] = '\0';
        if (sscanf(text, "%45s %u", word, &port) != 2 || port > UINT16_MAX || !parse_address(&address, word)) continue;
        bool known = false;
        for (size_t k = 0; k < learned_count && !known; k++) known = learned[k].port == port && is_same(&learned[k].address, &address);
        if (known) continue;
        learned[learned_next] = (struct learned){.address = address, .port = (uint16_t)port};
        learned_next = (learned_next + 1) % LEARNED_MAX;
        if (learned_count < LEARNED_MAX) learned_count++;
    }
    close_descriptor(&teacher);
}

static bool is_within(const struct address *address, const struct rule *rule) {
    if (address->length != rule->address.length) return false;
    size_t whole = rule->bits / 8;
    unsigned rest = rule->bits % 8;
    if (memcmp(address->bytes, rule->address.bytes, whole) != 0) return false;
    return rest == 0 || (address->bytes[whole] ^ rule->address.bytes[whole]) >> (8 - rest) == 0;
}

// Asks the kernel for the route (RTM_GETROUTE of rtnetlink(7)): its type says whose the address is, also where it is a second one of
// an interface, or one of a range that is routed to this machine. An address without a route is nobody's.
static bool is_of_this_machine(const struct address *address) {
    struct {
        struct nlmsghdr head;
        struct rtmsg route;
        struct rtattr attribute;
        uint8_t bytes[16];
    } request = {
        .head = {.nlmsg_type = RTM_GETROUTE, .nlmsg_flags = NLM_F_REQUEST},
        .route = {.rtm_family = address->length == 4 ? AF_INET : AF_INET6, .rtm_dst_len = (uint8_t)(address->length * 8)},
        .attribute = {.rta_type = RTA_DST, .rta_len = (uint16_t)RTA_LENGTH(address->length)},
    };
    union {
        struct nlmsghdr head;
        uint8_t bytes[4096];
    } reply;
    request.head.nlmsg_len = (uint32_t)(offsetof(typeof(request), bytes) + address->length);
    memcpy(request.bytes, address->bytes, address->length);
    cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, request.head.nlmsg_len, 0) < 0) return true;
    ssize_t n = recv(fd, &reply, sizeof reply, MSG_DONTWAIT);
    if (n >= (ssize_t)NLMSG_LENGTH(sizeof(struct rtmsg)) && reply.head.nlmsg_type == RTM_NEWROUTE) {
        const struct rtmsg *route = NLMSG_DATA(&reply.head);
        return route->rtm_type != RTN_UNICAST && route->rtm_type != RTN_UNREACHABLE;
    }
    return n < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || reply.head.nlmsg_type != NLMSG_ERROR;
}

static bool is_allowed(const struct address *address, uint16_t port) {
    for (size_t k = 0; k < rule_count; k++) {
        const struct rule *rule = &rules[k];
        bool here = rule->port == 0 || rule->port == port;
        switch (rule->verdict) {
        case ALLOW:
            if (here && is_within(address, rule)) return true;
            break;
        case REFUSE:
            if (here && is_within(address, rule)) return false;
            break;
        case REFUSE_OWN:
            if (is_of_this_machine(address)) return false;
            break;
        case ALLOW_LEARNED:
            if (is_learned(address, port)) return true;
            break;
        }
    }
    return false;
}

static bool read_address(const struct sockaddr_storage *from, struct address *address, uint16_t *port) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;
    if (from->ss_family != AF_INET && from->ss_family != AF_INET6) return false;
    *address = (struct address){.length = from->ss_family == AF_INET ? 4 : 16};
    if (address->length == 4) memcpy(address->bytes, &v4->sin_addr, 4);
    else memcpy(address->bytes, &v6->sin6_addr, 16);
    *port = ntohs(address->length == 4 ? v4->sin_port : v6->sin6_port);
    return true;
}

static void print(const struct address *address, char text[static INET6_ADDRSTRLEN]) {
    inet_ntop(address->length == 4 ? AF_INET : AF_INET6, address->bytes, text, INET6_ADDRSTRLEN);
}

static struct source *find_source(const struct address *address) {
    struct source *source = sources;
    while (source && !is_same(&source->address, address)) source = source->next;
    if (source || !(source = malloc(sizeof *source))) return source;
    *source = (struct source){.address = *address, .next = sources};
    return sources = source;
}

enum outbound outbound_decide(int accepted, struct targets *target, size_t **count, char text[static 128]) {
    struct sockaddr_storage own = {0}, peer = {0};
    struct sockaddr_storage *to = &target->address[0];
    socklen_t own_size = sizeof own, peer_size = sizeof peer;
    struct address from, address, listening;
    uint16_t from_port, port, listening_port;
    char from_text[INET6_ADDRSTRLEN], address_text[INET6_ADDRSTRLEN];
    *target = (struct targets){.count = 1};
    text[0] = '\0';
    if (getsockname(accepted, (struct sockaddr *)&own, &own_size) < 0 || !read_address(&own, &listening, &listening_port)) return OUTBOUND_REFUSED;
    if (getpeername(accepted, (struct sockaddr *)&peer, &peer_size) < 0 || !read_address(&peer, &from, &from_port)) return OUTBOUND_REFUSED;
    bool v4 = own.ss_family == AF_INET;
    socklen_t size = v4 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    // The kernel's record of the connection may be gone; then nobody knows where it was going to.
    if (getsockopt(accepted, v4 ? IPPROTO_IP : IPPROTO_IPV6, ORIGINAL_DST, to, &size) < 0 || !read_address(to, &address, &port)) return OUTBOUND_REFUSED;
    print(&from, from_text);
    print(&address, address_text);
    snprintf(text, 128, "%s %s %u", from_text, address_text, port);
    // A connection to this socket itself was not redirected.
    if (port == listening_port && is_same(&address, &listening)) return OUTBOUND_REFUSED;
    if (!is_allowed(&address, port)) {
        outbound_learn();
        if (!is_allowed(&address, port)) return OUTBOUND_REFUSED;
    }
    struct source *source = find_source(&from);
    if (!source || source->count >= CONNECTIONS_MAX) return OUTBOUND_FULL;
    *count = &source->count;
    return OUTBOUND_ALLOWED;
}
