// Small helpers in the manner of systemd and crun: descriptors that close themselves on every early return.
#pragma once

#include <stddef.h>
#include <unistd.h>

#define cleanup_close __attribute__((cleanup(close_descriptor)))
#define countof(array) (sizeof(array) / sizeof((array)[0]))

// Closes the descriptor that goes out of scope; -1 is none.
static inline void close_descriptor(int *fd) {
    if (*fd >= 0) close(*fd);
}

// Takes a descriptor out of a cleanup variable: the caller owns it from here on.
static inline int steal_fd(int *fd) {
    int stolen = *fd;
    *fd = -1;
    return stolen;
}
