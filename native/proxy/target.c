#include "target.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>


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

// The name of an abstract socket begins with a NUL (unix(7)), and belongs to the network namespace.
static bool parse_abstract(struct sockaddr_storage *out, const char *name) {
    struct sockaddr_un *local = (struct sockaddr_un *)out;
    *local = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(name) >= sizeof local->sun_path) return false;
    memcpy(local->sun_path + 1, name, strlen(name));
    return true;
}

bool targets_parse(struct targets *targets, const char *text, int *root) {
    char word[64];
    int length;
    *targets = (struct targets){.root = -1};
    if (strncmp(text, "unix:/", 6) == 0) {
        if (*root < 0 || !(targets->path = strdup(text + 5))) return false;
        targets->root = steal_fd(root);
        targets->count = 1;
        return true;
    }
    if (strncmp(text, "abstract:", 9) == 0) {
        targets->count = 1;
        return parse_abstract(&targets->address[0], text + 9);
    }
    while (sscanf(text, "%63s%n", word, &length) == 1) {
        if (targets->count == TARGETS_MAX || !parse_one(&targets->address[targets->count++], word)) return false;
        text += length;
    }
    return targets->count > 0;
}

static bool is_unix(const struct targets *targets) {
    return targets->path || targets->address[0].ss_family == AF_UNIX;
}

bool targets_listen(const struct targets *targets, const struct sockets *listening) {
    if (is_unix(targets)) {
        cleanup_close int fd = target_connect(targets, 0);
        return fd >= 0;
    }
    for (unsigned k = 0; k < targets->count; k++)
        if (sockets_have(listening, &targets->address[k])) return true;
    return false;
}

static socklen_t address_length(const struct sockaddr_storage *address) {
    const struct sockaddr_un *local = (const struct sockaddr_un *)address;
    switch (address->ss_family) {
    case AF_INET: return sizeof(struct sockaddr_in);
    case AF_INET6: return sizeof(struct sockaddr_in6);
    default: return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(local->sun_path + !local->sun_path[0]));
    }
}

static int begin_connect(const struct sockaddr_storage *address, int type) {
    cleanup_close int fd = socket(address->ss_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (const struct sockaddr *)address, address_length(address)) < 0 && errno != EINPROGRESS) return -1;
    return steal_fd(&fd);
}

// No link leads out of the root, and the descriptor is of the socket that was found there, whatever is renamed meanwhile.
static int connect_path(int root, const char *path) {
    struct sockaddr_storage address = {.ss_family = AF_UNIX};
    struct sockaddr_un *local = (struct sockaddr_un *)&address;
    cleanup_close int found = sys_openat2(root, path, O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (found < 0) return -1;
    snprintf(local->sun_path, sizeof local->sun_path, "/proc/self/fd/%d", found);
    return begin_connect(&address, SOCK_STREAM);
}

int target_connect(const struct targets *targets, unsigned at) {
    const int on = 1;
    if (targets->path) return connect_path(targets->root, targets->path);
    int fd = begin_connect(&targets->address[at], SOCK_STREAM);
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

int target_datagrams(const struct targets *targets, unsigned *at) {
    static struct sockets sockets;
    if (*at < targets->count) return begin_connect(&targets->address[*at], SOCK_DGRAM);
    sockets_of_datagrams(&sockets);
    for (unsigned k = 0; k < targets->count; k++) {
        if (!sockets_have(&sockets, &targets->address[k])) continue;
        *at = k;
        return begin_connect(&targets->address[k], SOCK_DGRAM);
    }
    errno = ECONNREFUSED;
    return -1;
}
