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

// Of tcp(7), as proc(5) has them.
#define STATE_LISTEN 0x0a
#define STATE_UNCONNECTED 0x07

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

in_port_t address_port(const struct sockaddr_storage *address) {
    return address->ss_family == AF_INET ? ((const struct sockaddr_in *)address)->sin_port : ((const struct sockaddr_in6 *)address)->sin6_port;
}

// The words of an address as IPv6 has it, which for IPv4 is the mapped form, ::ffff:127.0.0.1.
static void words_of(uint32_t words[4], const struct sockaddr_storage *address) {
    const uint32_t mapped[4] = {0, 0, htonl(0xffff), ((const struct sockaddr_in *)address)->sin_addr.s_addr};
    memcpy(words, address->ss_family == AF_INET ? mapped : ((const struct sockaddr_in6 *)address)->sin6_addr.s6_addr32, sizeof mapped);
}

// Whether a socket of a file of proc(5) has the address, or its port on every address of its family, in the state. A line:
// `  0: 0100007F:1F90 00000000:0000 0A …`; each word of the address is in the machine's own byte order, one for IPv4 and four for IPv6.
static bool has_socket(const char *path, const struct sockaddr_storage *wanted, unsigned state) {
    const uint32_t every[4] = {0, 0, wanted->ss_family == AF_INET ? htonl(0xffff) : 0, 0};
    uint32_t words[4];
    char line[512];
    bool found = false;
    FILE *file = fopen(path, "re");
    words_of(words, wanted);
    while (file && !found && fgets(line, sizeof line, file)) {
        uint32_t its[4] = {0, 0, htonl(0xffff), 0};
        char host[33];
        unsigned port, its_state;
        if (sscanf(line, "%*d: %32[0-9A-F]:%x %*[0-9A-F]:%*x %x", host, &port, &its_state) != 3) continue;
        if (its_state != state || port != ntohs(address_port(wanted))) continue;
        if (sscanf(host, "%8x%8x%8x%8x", &its[0], &its[1], &its[2], &its[3]) == 1) {
            its[3] = its[0];
            its[0] = 0;
        }
        found = memcmp(its, words, sizeof its) == 0 || memcmp(its, every, sizeof its) == 0;
    }
    if (file) fclose(file);
    return found;
}

// Whether a socket has one of the addresses, of the files of a protocol for both families: those of IPv6 also have the mapped form.
static bool bound(const struct sockaddr_storage *address, const char *of4, const char *of6, unsigned state) {
    return has_socket(of4, address, state) || has_socket(of6, address, state);
}

static bool is_unix(const struct targets *targets) {
    return targets->path || targets->address[0].ss_family == AF_UNIX;
}

bool targets_listen(const struct targets *targets) {
    if (is_unix(targets)) {
        cleanup_close int fd = target_connect(targets, 0);
        return fd >= 0;
    }
    for (unsigned k = 0; k < targets->count; k++)
        if (bound(&targets->address[k], "/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6", STATE_LISTEN)) return true;
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

int target_datagrams(const struct targets *targets) {
    for (unsigned k = 0; k < targets->count; k++) {
        const struct sockaddr_storage *address = &targets->address[k];
        if (!bound(address, "/proc/thread-self/net/udp", "/proc/thread-self/net/udp6", STATE_UNCONNECTED)) continue;
        return begin_connect(address, SOCK_DGRAM);
    }
    errno = ECONNREFUSED;
    return -1;
}
