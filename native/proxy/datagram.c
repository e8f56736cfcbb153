#include "datagram.h"
#include "watched.h"
#include "../common/util.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#define DATAGRAM_MAX 65536
#define BUCKETS 256
// Peers of one port; the one that has been idle for longest makes room for another.
#define PEERS_MAX 1024
// nf_conntrack_udp_timeout_stream is 120 s, and 60 s in newer kernels.
#define IDLE_MS 60000
// Others have their turn after so many.
#define DATAGRAMS_MAX 64

struct peer {
    enum watched kind;
    int fd; // connected to the server, in this network namespace
    struct bound *bound;
    struct sockaddr_storage address;
    socklen_t length;
    // The host's address that the peer has sent to, as it comes from the kernel: answers have it as their source.
    struct in_pktinfo to4;
    struct in6_pktinfo to6;
    uint64_t used;
    struct peer *next;          // of its bucket, or of those that have been removed
    struct peer *newer, *older; // by their last use
};

struct bound {
    enum watched kind;
    int fd, epoll;
    struct targets targets;
    unsigned target; // where the server is; TARGETS_MAX: not known
    unsigned count;
    struct peer *buckets[BUCKETS];
    struct peer *newest, *oldest;
    struct bound *next;
};

static struct bound *all;
static struct peer *removed_peers;
static uint8_t buffer[DATAGRAM_MAX];

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static struct peer **bucket_of(struct bound *bound, const struct sockaddr_storage *address) {
    return &bound->buckets[ntohs(address_port(address)) % BUCKETS];
}

static void unlink_use(struct peer *peer) {
    *(peer->newer ? &peer->newer->older : &peer->bound->newest) = peer->older;
    *(peer->older ? &peer->older->newer : &peer->bound->oldest) = peer->newer;
}

static void link_use(struct peer *peer) {
    struct bound *bound = peer->bound;
    peer->used = now_ms();
    peer->newer = NULL;
    peer->older = bound->newest;
    *(bound->newest ? &bound->newest->newer : &bound->oldest) = peer;
    bound->newest = peer;
}

static void touch(struct peer *peer) {
    unlink_use(peer);
    link_use(peer);
}

static void forget(struct peer *peer) {
    struct peer **at = bucket_of(peer->bound, &peer->address);
    while (*at != peer) at = &(*at)->next;
    *at = peer->next;
    unlink_use(peer);
    peer->bound->count--;
    close_descriptor(&peer->fd);
    peer->next = removed_peers;
    removed_peers = peer;
}

// An error is one of an earlier datagram, such as ECONNREFUSED by ICMP: a server that has started anew may be elsewhere.
static void give_up(struct peer *peer) {
    peer->bound->target = TARGETS_MAX;
    forget(peer);
}

static struct peer *find(struct bound *bound, const struct sockaddr_storage *address, socklen_t length) {
    struct peer *peer = *bucket_of(bound, address);
    while (peer && (peer->length != length || memcmp(&peer->address, address, length) != 0)) peer = peer->next;
    return peer;
}

// NULL where no socket has the server's port, or no descriptor can be had: the datagram is lost, as on any network.
static struct peer *introduce(struct bound *bound, const struct sockaddr_storage *address, socklen_t length) {
    if (bound->count == PEERS_MAX) forget(bound->oldest);
    int fd = target_datagrams(&bound->targets, &bound->target);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && bound->oldest) {
        forget(bound->oldest);
        fd = target_datagrams(&bound->targets, &bound->target);
    }
    struct peer *peer = fd < 0 ? NULL : calloc(1, sizeof *peer);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
    if (!peer || epoll_ctl(bound->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        close_descriptor(&fd);
        free(peer);
        return NULL;
    }
    struct peer **bucket = bucket_of(bound, address);
    *peer = (struct peer){.kind = WATCHED_PEER, .fd = fd, .bound = bound, .address = *address, .length = length, .next = *bucket};
    *bucket = peer;
    bound->count++;
    link_use(peer);
    return peer;
}

bool datagrams_open(int epoll, int fd, const struct targets *targets) {
    const int on = 1;
    struct bound *bound = calloc(1, sizeof *bound);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = bound};
    if (!bound || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        close_descriptor(&fd);
        free(bound);
        return false;
    }
    setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
    *bound = (struct bound){.kind = WATCHED_BOUND, .fd = fd, .epoll = epoll, .targets = *targets, .target = TARGETS_MAX, .next = all};
    all = bound;
    return true;
}

static void note_destination(struct peer *peer, struct msghdr *message) {
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_PKTINFO) {
            memcpy(&peer->to4, CMSG_DATA(header), sizeof peer->to4);
            peer->to4.ipi_ifindex = 0;
        } else if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_PKTINFO) {
            memcpy(&peer->to6, CMSG_DATA(header), sizeof peer->to6);
            if (!IN6_IS_ADDR_LINKLOCAL(&peer->to6.ipi6_addr)) peer->to6.ipi6_ifindex = 0;
        }
    }
}

static void to_server(struct bound *bound, struct msghdr *message, size_t length) {
    const struct sockaddr_storage *from = message->msg_name;
    for (int attempt = 0; attempt < 2; attempt++) {
        struct peer *peer = find(bound, from, message->msg_namelen);
        if (peer) touch(peer);
        else if (!(peer = introduce(bound, from, message->msg_namelen))) return;
        note_destination(peer, message);
        if (send(peer->fd, buffer, length, MSG_NOSIGNAL) >= 0 || errno == EAGAIN || errno == EMSGSIZE) return;
        give_up(peer);
    }
}

void datagrams_serve_bound(struct bound *bound) {
    for (int k = 0; k < DATAGRAMS_MAX; k++) {
        struct sockaddr_storage from = {0};
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct iovec bytes = {.iov_base = buffer, .iov_len = sizeof buffer};
        struct msghdr message = {
            .msg_name = &from,
            .msg_namelen = sizeof from,
            .msg_iov = &bytes,
            .msg_iovlen = 1,
            .msg_control = control,
            .msg_controllen = sizeof control,
        };
        ssize_t length = recvmsg(bound->fd, &message, MSG_DONTWAIT);
        if (length < 0) return;
        to_server(bound, &message, (size_t)length);
    }
}

static void to_peer(struct peer *peer, size_t length) {
    bool v4 = peer->address.ss_family == AF_INET;
    const void *info = v4 ? (const void *)&peer->to4 : &peer->to6;
    size_t size = v4 ? sizeof peer->to4 : sizeof peer->to6;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct in6_pktinfo))] = {0};
    struct iovec bytes = {.iov_base = buffer, .iov_len = length};
    struct msghdr message = {
        .msg_name = &peer->address,
        .msg_namelen = peer->length,
        .msg_iov = &bytes,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = CMSG_SPACE(size),
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
    header->cmsg_type = v4 ? IP_PKTINFO : IPV6_PKTINFO;
    header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), info, size);
    sendmsg(peer->bound->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void datagrams_serve_peer(struct peer *peer) {
    for (int k = 0; k < DATAGRAMS_MAX && peer->fd >= 0; k++) {
        ssize_t length = recv(peer->fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (length < 0 && errno != EAGAIN && errno != EINTR) give_up(peer);
        if (length < 0) return;
        touch(peer);
        to_peer(peer, (size_t)length);
    }
}

int datagrams_tidy(void) {
    uint64_t now = all ? now_ms() : 0, first = UINT64_MAX;
    for (struct bound *bound = all; bound; bound = bound->next) {
        while (bound->oldest && bound->oldest->used + IDLE_MS <= now) forget(bound->oldest);
        if (bound->oldest && bound->oldest->used + IDLE_MS < first) first = bound->oldest->used + IDLE_MS;
    }
    while (removed_peers) {
        struct peer *peer = removed_peers;
        removed_peers = peer->next;
        free(peer);
    }
    return first == UINT64_MAX ? -1 : (int)(first - now);
}
