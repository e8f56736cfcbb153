// Small helpers in the manner of systemd and crun: descriptors that are closed on every early return.
#pragma once

#include <errno.h>
#include <stddef.h>
#include <unistd.h>

#define cleanup_close __attribute__((cleanup(close_descriptor)))
#define countof(array) (sizeof(array) / sizeof((array)[0]))

// Closes the descriptor, if there is one, and sets it to -1. errno stays as it is.
static inline void close_descriptor(int *fd) {
    int error = errno;
    if (*fd >= 0) close(*fd);
    *fd = -1;
    errno = error;
}

// Takes a descriptor out of a cleanup variable: the caller owns it from here on.
static inline int steal_fd(int *fd) {
    int stolen = *fd;
    *fd = -1;
    return stolen;
}
