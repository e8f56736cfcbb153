// The report of a failed operation: the system call, its errno, and the kernel's own words where it has some. The caller adds the index of the operation.
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define NO_OPERATION UINT32_MAX // the failure belongs to no operation of the plan

struct failure {
    uint32_t operation; // index in the plan
    int32_t error;      // errno
    char syscall[24];
    char text[80]; // the kernel's words, NETLINK_EXT_ACK of netlink(7), or empty
};

// Notes the failure of `call` with the current errno and returns -1, for `return fail(f, "fsopen")`.
// Does not allocate, and is safe in a signal handler.
static inline int fail(struct failure *failure, const char *call) {
    failure->error = errno;
    failure->text[0] = '\0';
    size_t length = 0;
    for (; call[length] && length < sizeof failure->syscall - 1; length++) failure->syscall[length] = call[length];
    failure->syscall[length] = '\0';
    return -1;
}

// The same with an errno that no system call has set.
static inline int fail_with(struct failure *failure, const char *call, int error) {
    errno = error;
    return fail(failure, call);
}
