#include "descriptor.h"
#include "util.h"

#include <errno.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

ssize_t descriptors_send(int socket, const void *bytes, size_t length, const int *fds, size_t count) {
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * DESCRIPTORS_MAX)];
    struct iovec data = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (count > 0) {
        memset(control, 0, CMSG_SPACE(sizeof(int) * count));
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
    }
    ssize_t n;
    while ((n = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL)) < 0 && errno == EINTR) continue;
    return n;
}

ssize_t descriptors_receive(int socket, void *bytes, size_t length, int *fds, size_t room) {
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * DESCRIPTORS_MAX)];
    struct iovec data = {.iov_base = bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * room)};
    for (size_t k = 0; k < room; k++) fds[k] = -1;

    ssize_t n;
    while ((n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) continue;
    if (n < 0) return n;
    bool cut = message.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    size_t count = 0, came = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t here = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t k = 0; k < here; k++, came++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + k * sizeof fd, sizeof fd);
            // The kernel pads the room for descriptors, so there may be one more than `room`.
            if (count < room && !cut) {
                fds[count++] = fd;
            } else {
                close(fd);
                cut = true;
            }
        }
    }
    if (!cut) return n;
    for (size_t k = 0; k < room; k++) close_descriptor(&fds[k]);
    // The kernel delivers as many as this process may open, and marks the message as truncated.
    errno = message.msg_flags & MSG_TRUNC || came >= room ? EMSGSIZE : EMFILE;
    return -1;
}
