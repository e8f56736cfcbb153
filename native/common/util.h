// Small helpers in the manner of systemd and crun: descriptors that are closed on every early return.
#pragma once

#include <errno.h>
#include <stddef.h>
#include <unistd.h>

// AddressSanitizer's shadow memory needs more than a limit of memory allows.
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED __has_feature(address_sanitizer)
#else
#define SANITIZED 0
#endif

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
