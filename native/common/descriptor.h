// Descriptors over a socket: SCM_RIGHTS, unix(7).
#pragma once

#include <stddef.h>
#include <sys/types.h>

#define DESCRIPTORS_MAX 64

// Sends one message with `count` descriptors, without waiting. Async-signal-safe.
ssize_t descriptors_send(int socket, const void *bytes, size_t length, const int *fds, size_t count);

// Receives one message, without waiting, and up to `room` descriptors, close-on-exec. The caller owns them; those that the message
// lacks are -1. A message that is longer, or has more descriptors, is lost, and the call fails with EMSGSIZE. If this process may
// not open that many files, the call fails with EMFILE: the descriptors are lost, the bytes are there.
ssize_t descriptors_receive(int socket, void *bytes, size_t length, int *fds, size_t room);

static inline ssize_t descriptor_send(int socket, const void *bytes, size_t length, int fd) {
    return descriptors_send(socket, bytes, length, &fd, 1);
}

static inline ssize_t descriptor_receive(int socket, void *bytes, size_t length, int *fd) {
    return descriptors_receive(socket, bytes, length, fd, 1);
}
