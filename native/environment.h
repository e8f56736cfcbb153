// What one environment of JavaScript (the program's own, or a worker's) has by this addon: given back at its end, as a worker
// can be terminated at any time, and the process goes on.
#pragma once

#include "loop.h"

#include <stddef.h>
#include <stdint.h>

struct environment {
    struct loop *loop;
    uint8_t *descriptors; // by number, what each is: an enum descriptor
    size_t size;
};

enum descriptor { NOT_OURS, OURS, OF_CHILD };

// The environment, which ends with `env`; NULL where there is no memory.
struct environment *environment_make(napi_env env);

// Notes what a descriptor is, and returns it; -1 and the like are none.
int64_t environment_note(struct environment *environment, int64_t fd, enum descriptor is);
