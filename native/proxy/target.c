#include "target.h"
#include "../common/util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

#define TCP_STATE_LISTEN 0x0a

static bool parse_one(struct sockaddr_storage *out, const char *word) {
    unsigned version, port;
    char address[INET6_ADDRSTRLEN];
    if (sscanf(word, "v%u:%u:%45s", &version, &port, address) != 3 || port < 1 || port > UINT16_MAX) return false;
    memset(out, 0, sizeof *out);
    if (version == 4) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        return inet_pton(AF_INET, address, &v4->sin_addr) == 1;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    return version == 6 && inet_pton(AF_INET6, address, &v6->sin6_addr) == 1;
}

bool targets_parse(struct targets *targets, const char *text) {
    char word[64];
    int length;
    targets->count = 0;
    while (sscanf(text, "%63s%n", word, &length) == 1) {
        if (targets->count == TARGETS_MAX || !parse_one(&targets->address[targets->count++], word)) return false;
        text += length;
    }
    return targets->count > 0;
}

static in_port_t port_of(const struct sockaddr_storage *address) {
    return address->ss_family == AF_INET ? ((const struct sockaddr_in *)address)->sin_port : ((const struct sockaddr_in6 *)address)->sin6_port;
}

// A line: `  0: 0100007F:1F90 00000000:0000 0A …`, the address in hexadecimal, longer in tcp6.
static bool listens(const char *path, in_port_t wanted) {
    char line[512];
    bool found = false;
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        unsigned port, state;
        found = sscanf(line, "%*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &port, &state) == 2 && state == TCP_STATE_LISTEN && port == wanted;
    }
    if (file) fclose(file);
    return found;
}

bool targets_listen(const struct targets *targets) {
    for (unsigned k = 0; k < targets->count; k++) {
        in_port_t port = ntohs(port_of(&targets->address[k]));
        if (listens("/proc/thread-self/net/tcp", port) || listens("/proc/thread-self/net/tcp6", port)) return true;
    }
    return false;
}

int target_connect(const struct targets *targets, unsigned at) {
    const struct sockaddr_storage *address = &targets->address[at];
    int on = 1;
    cleanup_close int fd = socket(address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    socklen_t length = address->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if (connect(fd, (const struct sockaddr *)address, length) < 0 && errno != EINPROGRESS) return -1;
    return steal_fd(&fd);
}
