// The messages between the JavaScript process and its supervisor over a SOCK_SEQPACKET pair: one struct a message, in the machine's
// own byte order. lib/internal/supervisor/protocol.ts has the same numbers; test/unit/SharedNumbers.test.ts compares the two.
#pragma once

#include "../common/failure.h"
#include <stdint.h>

#define REQUEST_BYTES 16
#define REPLY_BYTES 152
#define MESSAGE_BYTES_MAX (160u << 10) // below net.core.wmem_default, so that one message can always be sent

enum request_type {
    REQUEST_START = 1,   // make a unit; the plan follows, or is in a memfd, the first of the descriptors
    REQUEST_RELEASE = 2, // kill all processes of the unit and remove everything that it owns
    REQUEST_MAPPED = 3,  // the id maps of the supervisor's user namespace have been written
    REQUEST_SHARE = 4,   // keep the unit, which other connections then can attach, until the last of them closes; carries its root
                         // and the read ends of its outputs
    REQUEST_ATTACH = 5,  // show a unit that another connection has shared
    REQUEST_RENEW = 6,   // end, with all units, unless the same request comes again within `id` milliseconds
};

struct request {
    uint32_t type;
    uint32_t id;         // the unit, chosen by the JavaScript process
    uint32_t plan_bytes; // the length of a plan in a memfd; 0 if the plan follows
    uint32_t zero;
};
_Static_assert(sizeof(struct request) == REQUEST_BYTES, "struct request");

enum reply_type {
    REPLY_READY = 1,    // the supervisor is ready; carries its user namespace if it has one of its own. With leases: to each connection,
                        // whose units have ids above `id`; carries the supervisor's pidfd first
    REPLY_STARTED = 2,  // the unit exists; carries the pidfd of its process and its root, or its root alone; if they could not be
                        // sent, `failure` has the reason
    REPLY_FAILED = 3,   // the plan failed; nothing of the unit is left
    REPLY_EXITED = 4,   // the unit's process has ended
    REPLY_RELEASED = 5, // nothing of the unit is left, except what `failure` names
    REPLY_UNMAPPED = 6, // the supervisor is in a user namespace of its own, and waits for its id maps
    REPLY_ENDED = 7,    // the unit's process has ended, and nothing of the unit is left
    REPLY_SHARED = 8,   // the unit is shared
};

struct reply {
    uint32_t type;
    uint32_t id;
    int32_t pid;
    int32_t status;       // of wait(2)
    uint64_t user_us;     // CPU time of the process and the children it waited for, in microseconds
    uint64_t system_us;
    uint64_t max_rss_kib; // peak resident set of the largest of them, in KiB
    struct failure failure;
};
_Static_assert(sizeof(struct reply) == REPLY_BYTES, "struct reply");
