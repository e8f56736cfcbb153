#include "netlink.h"
#include "../common/util.h"

#include <linux/netlink.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define MESSAGES_MAX 256

// The kernel's words are in the attributes behind a `struct nlmsgerr`, which has the refused message as well where the socket has no
// NETLINK_CAP_ACK.
static void read_text(struct failure *failure, const struct nlmsghdr *head, const struct nlmsgerr *result, size_t length) {
    size_t at = NLMSG_LENGTH(sizeof *result);
    if (!(head->nlmsg_flags & NLM_F_ACK_TLVS)) return;
    if (!(head->nlmsg_flags & NLM_F_CAPPED)) at += NLMSG_ALIGN(result->msg.nlmsg_len) - sizeof result->msg;
    for (struct nlattr attribute; at + sizeof attribute <= length; at += NLA_ALIGN(attribute.nla_len)) {
        memcpy(&attribute, (const uint8_t *)head + at, sizeof attribute);
        if (attribute.nla_len < sizeof attribute || attribute.nla_len > length - at) return;
        if ((attribute.nla_type & NLA_TYPE_MASK) != NLMSGERR_ATTR_MSG) continue;
        snprintf(failure->text, sizeof failure->text, "%.*s", (int)(attribute.nla_len - sizeof attribute), (const char *)head + at + sizeof attribute);
        return;
    }
}

static int failed(struct failure *failure, const struct nlmsghdr *head, const struct nlmsgerr *result, size_t length) {
    char call[sizeof failure->syscall];
    snprintf(call, sizeof call, "netlink(%u)", head->nlmsg_seq);
    fail_with(failure, call, -result->error);
    read_text(failure, head, result, length);
    return -1;
}

// Numbers the messages, whose lengths may be wrong; returns how many of them ask for an acknowledgement, or -1. The first and the last
// message of a batch ask for none: kernels before 6.10 give them none.
static int number(uint8_t *bytes, size_t length) {
    int count = 0, asking = 0;
    for (size_t at = 0; at < length; count++) {
        struct nlmsghdr head;
        if (length - at < sizeof head || count == MESSAGES_MAX) return -1;
        memcpy(&head, bytes + at, sizeof head);
        if (head.nlmsg_len < sizeof head || head.nlmsg_len > length - at) return -1;
        head.nlmsg_seq = (uint32_t)count;
        head.nlmsg_flags |= NLM_F_REQUEST;
        if (head.nlmsg_flags & NLM_F_ACK) asking++;
        memcpy(bytes + at, &head, sizeof head);
        at += NLMSG_ALIGN(head.nlmsg_len);
    }
    return asking;
}

static int read_acknowledgements(int socket, int count, struct failure *failure) {
    union {
        struct nlmsghdr head;
        uint8_t bytes[8192];
    } reply;
    for (int k = 0; k < count;) {
        ssize_t n = recv(socket, &reply, sizeof reply, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(failure, "recv");
        if ((size_t)n < NLMSG_LENGTH(sizeof(struct nlmsgerr)) || reply.head.nlmsg_type != NLMSG_ERROR) continue; // an answer that nobody needs
        const struct nlmsgerr *result = NLMSG_DATA(&reply.head);
        if (result->error != 0) return failed(failure, &reply.head, result, (size_t)n);
        k++;
    }
    return 0;
}

int netlink_request(int socket, void *messages, size_t length, int64_t pid_at, pid_t pid, struct failure *failure) {
    const struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    uint32_t process = (uint32_t)pid;
    const int on = 1;
    if (pid_at != NO_PID) {
        if (pid_at < 0 || (uint64_t)pid_at + sizeof process > length) return fail_with(failure, "netlink", EINVAL);
        memcpy((uint8_t *)messages + pid_at, &process, sizeof process);
    }
    // Since Linux 4.12 and 4.3: the kernel's words in a failure, and no copy of the refused message.
    setsockopt(socket, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
    setsockopt(socket, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    int count = number(messages, length);
    if (count < 0) return fail_with(failure, "netlink", EBADMSG);
    if (sendto(socket, messages, length, MSG_NOSIGNAL, (const struct sockaddr *)&kernel, sizeof kernel) < 0) return fail(failure, "sendto");
    return read_acknowledgements(socket, count, failure);
}

int netlink_request_here(int protocol, void *messages, size_t length, struct failure *failure) {
    cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0) return fail(failure, "socket");
    return netlink_request(fd, messages, length, NO_PID, 0, failure);
}
