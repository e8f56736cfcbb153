// What goes over the SOCK_SEQPACKET pair between the JavaScript process and its supervisor, one struct a message,
// in the machine's own byte order. lib/internal/supervisor/connection.ts is the other end.
#pragma once

#include "../common/failure.h"
#include <stdint.h>

#define MESSAGE_BYTES_MAX (160u << 10) // below net.core.wmem_default, so one message is always sendable

enum request_type {
    REQUEST_START = 1,   // make a unit: the plan follows, or is in a memfd that comes first among the descriptors
    REQUEST_RELEASE = 2, // kill what runs in the unit and give back all that it owns
    REQUEST_MAPPED = 3,  // the id maps of the supervisor's user namespace have been written
};

struct request {
    uint32_t type;
    uint32_t id;         // the unit, chosen by the JavaScript process
    uint32_t plan_bytes; // the length of a plan in a memfd; 0 where it follows
    uint32_t zero;
};

enum reply_type {
    REPLY_READY = 1,    // the supervisor is up; its user namespace comes along where it has one of its own
    REPLY_STARTED = 2,  // the unit is there; the pidfd of its process and its root come along, or its root alone; where
                        // they could not be sent, `failure` says why
    REPLY_FAILED = 3,   // nothing of the unit is left
    REPLY_EXITED = 4,   // the unit's process has ended
    REPLY_RELEASED = 5, // nothing of the unit is left, but for what `failure` names
    REPLY_UNMAPPED = 6, // the supervisor is in a user namespace of its own, and waits for its id maps
    REPLY_ENDED = 7,    // the unit's process has ended, and nothing of the unit is left
};

struct reply {
    uint32_t type;
    uint32_t id;
    int32_t pid;
    int32_t status;       // as wait(2) gives it
    uint64_t user_us;     // CPU time of the process and the children it waited for, in microseconds
    uint64_t system_us;
    uint64_t max_rss_kib; // peak resident set of the largest of them, in KiB
    struct failure failure;
};
