// What a failed operation reports: which system call said which errno. The operation's index is the caller's to add.
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define NO_OPERATION UINT32_MAX // what has failed is no operation of the plan

struct failure {
    uint32_t operation; // index in the plan
    int32_t error;      // errno
    char syscall[24];
};

// Notes the failure of `call` with the current errno and returns -1, for `return fail(f, "fsopen")`.
// Nothing here allocates or is unsafe in a signal handler.
static inline int fail(struct failure *failure, const char *call) {
    failure->error = errno;
    size_t length = 0;
    for (; call[length] && length < sizeof failure->syscall - 1; length++) failure->syscall[length] = call[length];
    failure->syscall[length] = '\0';
    return -1;
}
