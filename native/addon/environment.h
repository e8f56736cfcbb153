// The resources of one JavaScript environment (the program's own, or a worker's). They are released at its end: a worker can be
// terminated at any time while the process continues.
#pragma once

#include "loop.h"

#include <stddef.h>
#include <stdint.h>

struct environment {
    struct loop *loop;
    uint8_t *descriptors; // by number, an enum descriptor for each
    size_t size;
    int home; // the network namespace of its thread, or -1
};

enum descriptor { NOT_OURS, OURS, OF_CHILD };

// Makes the environment, which ends with `env`. Returns NULL if there is no memory.
struct environment *environment_make(napi_env env);

// Notes the owner of a descriptor, and returns the descriptor. Ignores negative numbers.
int64_t environment_note(struct environment *environment, int64_t fd, enum descriptor is);
