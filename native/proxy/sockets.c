#include "sockets.h"
#include "../common/util.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Of tcp(7), as the kernel numbers them.
#define STATE_UNCONNECTED 7
#define STATE_LISTEN 10
#define DUMP_BYTES (32 << 10)

in_port_t address_port(const struct sockaddr_storage *address) {
    return address->ss_family == AF_INET ? ((const struct sockaddr_in *)address)->sin_port : ((const struct sockaddr_in6 *)address)->sin6_port;
}

// Without memory for it, it is as if it were not there.
static void add(struct sockets *sockets, bool v4, const uint32_t *words, in_port_t port) {
    if (sockets->count == sockets->room) {
        size_t room = sockets->room ? 2 * sockets->room : 64;
        struct socket_address *larger = realloc(sockets->list, room * sizeof *larger);
        if (!larger) return;
        sockets->list = larger;
        sockets->room = room;
    }
    struct socket_address *added = &sockets->list[sockets->count++];
    *added = (struct socket_address){.words = {0, 0, htonl(0xffff), words[0]}, .port = port};
    if (!v4) memcpy(added->words, words, sizeof added->words);
}

// A line: `  0: 0100007F:1F90 00000000:0000 0A …`; each word of the address is in the machine's own byte order.
static void add_of_proc(struct sockets *sockets, const char *path, unsigned state) {
    char line[512];
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        uint32_t words[4];
        char host[33];
        unsigned port, its_state;
        if (sscanf(line, "%*d: %32[0-9A-F]:%x %*[0-9A-F]:%*x %x", host, &port, &its_state) != 3 || its_state != state) continue;
        int count = sscanf(host, "%8x%8x%8x%8x", &words[0], &words[1], &words[2], &words[3]);
        if (count == 1 || count == 4) add(sockets, count == 1, words, htons((uint16_t)port));
    }
    if (file) fclose(file);
}

// The end of the dump: 1, an error of it: -1, or 0 while there is more.
static int add_of_dump(struct sockets *sockets, const struct nlmsghdr *message, int length) {
    for (; NLMSG_OK(message, length); message = NLMSG_NEXT(message, length)) {
        const struct inet_diag_msg *found = NLMSG_DATA(message);
        if (message->nlmsg_type == NLMSG_DONE) return 1;
        if (message->nlmsg_type == NLMSG_ERROR || message->nlmsg_len < NLMSG_LENGTH(sizeof *found)) return -1;
        add(sockets, found->idiag_family == AF_INET, found->id.idiag_src, found->id.idiag_sport);
    }
    return 0;
}

// false where the kernel cannot say.
static bool add_of_diag(struct sockets *sockets, uint8_t family) {
    static _Alignas(struct nlmsghdr) uint8_t buffer[DUMP_BYTES];
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 request;
    } message = {
        .header = {.nlmsg_len = sizeof message, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .request = {.sdiag_family = family, .sdiag_protocol = IPPROTO_TCP, .idiag_states = 1 << STATE_LISTEN},
    };
    cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0 || send(fd, &message, sizeof message, 0) < 0) return false;
    for (int result = 0; result == 0;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        result = n <= 0 ? -1 : add_of_dump(sockets, (const struct nlmsghdr *)buffer, (int)n);
        if (result < 0) return false;
    }
    return true;
}

void sockets_listening(struct sockets *sockets) {
    sockets->count = 0;
    if (add_of_diag(sockets, AF_INET) && add_of_diag(sockets, AF_INET6)) return;
    sockets->count = 0;
    add_of_proc(sockets, "/proc/thread-self/net/tcp", STATE_LISTEN);
    add_of_proc(sockets, "/proc/thread-self/net/tcp6", STATE_LISTEN);
}

void sockets_of_datagrams(struct sockets *sockets) {
    sockets->count = 0;
    add_of_proc(sockets, "/proc/thread-self/net/udp", STATE_UNCONNECTED);
    add_of_proc(sockets, "/proc/thread-self/net/udp6", STATE_UNCONNECTED);
}

bool sockets_have(const struct sockets *sockets, const struct sockaddr_storage *address) {
    bool v4 = address->ss_family == AF_INET;
    const uint32_t mapped[4] = {0, 0, htonl(0xffff), ((const struct sockaddr_in *)address)->sin_addr.s_addr};
    const uint32_t every[4] = {0, 0, v4 ? htonl(0xffff) : 0, 0};
    const uint32_t *wanted = v4 ? mapped : ((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr32;
    for (size_t k = 0; k < sockets->count; k++) {
        const struct socket_address *has = &sockets->list[k];
        if (has->port != address_port(address)) continue;
        if (memcmp(has->words, wanted, sizeof every) == 0 || memcmp(has->words, every, sizeof every) == 0) return true;
    }
    return false;
}
