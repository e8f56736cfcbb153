// Packets of an interface (packet(7)) as the records of a pcap file. lib/internal/network/capture.ts has what is done with them.
#include "addon.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/socket.h>
#include <time.h>

// The header of a packet in a pcap file, in the byte order of this machine.
struct record {
    uint32_t seconds, nanoseconds, captured, length;
};

// capture(fd, interface, buffer): binds a packet socket to an interface, so that it gets what comes in and goes out there from now
// on. The buffer, in bytes, is what the kernel keeps at most; without CAP_NET_ADMIN it is no larger than net.core.rmem_max.
static napi_value capture_packets(struct call *call, napi_env env) {
    int fd, interface, buffer;
    const int on = 1;
    if (!take_fd(call, 0, &fd) || !take_fd(call, 1, &interface) || !take_fd(call, 2, &buffer)) return misuse(env);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) < 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) < 0) return number(env, -errno);
    const struct sockaddr_ll all = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = interface};
    return number(env, bind(fd, (const struct sockaddr *)&all, sizeof all) < 0 ? -errno : 0);
}
FUNCTION(capture_packets)

// One packet with its header; more than `most` bytes of it are cut off.
static ssize_t receive_packet(int fd, uint8_t *bytes, size_t most) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
    } control;
    struct iovec part = {bytes + sizeof(struct record), most};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t length = recvmsg(fd, &message, MSG_DONTWAIT | MSG_TRUNC);
    if (length < 0) return -errno;
    struct timespec time = {0};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) memcpy(&time, CMSG_DATA(c), sizeof time);
    size_t captured = (size_t)length < most ? (size_t)length : most;
    struct record record = {(uint32_t)time.tv_sec, (uint32_t)time.tv_nsec, (uint32_t)captured, (uint32_t)length};
    memcpy(bytes, &record, sizeof record);
    return (ssize_t)(sizeof record + captured);
}

// packets(fd, bytes, most): [length of the records that are written to `bytes`, why there are no more], with at most `most` bytes of
// each packet. The reason is 0 where there is no more room, or -errno: -EAGAIN where no packet is left.
static napi_value take_packets(struct call *call, napi_env env) {
    int fd;
    int64_t most;
    uint8_t *bytes;
    size_t room, used = 0;
    ssize_t n = 0;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &bytes, &room) || !take_number(call, 2, &most) || most < 0) return misuse(env);
    while (room - used >= sizeof(struct record) + (size_t)most && (n = receive_packet(fd, bytes + used, (size_t)most)) >= 0) used += (size_t)n;
    return pair(env, (int64_t)used, n < 0 ? n : 0);
}
FUNCTION(take_packets)

// packetStatistics(fd): [packets, of which dropped] since the last call (PACKET_STATISTICS), or [-errno, 0].
static napi_value packet_statistics(struct call *call, napi_env env) {
    int fd;
    struct tpacket_stats statistics;
    socklen_t length = sizeof statistics;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    if (getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &length) < 0) return pair(env, -errno, 0);
    return pair(env, statistics.tp_packets, statistics.tp_drops);
}
FUNCTION(packet_statistics)
