// The child: from the clone to exec.
#pragma once

#include "plan.h"

struct child {
    const struct plan *plan;
    const int *descriptors; // those that came with the message
    int failures;           // the child's end of the socket for its root and for a struct failure; exec closes it
    int gate[2];            // a socket pair, the child's end first: a byte says that the id maps can be written, and one
                            // back that they are; -1 where there are none
    int supervisor;         // pidfd of the supervisor
    int null;               // /dev/null
    int root;               // the root that the supervisor has made, or -1 where the plan has the child make it
    int self;               // the supervisor's own executable
};

// Performs the plan's operations behind `process`. Never returns: it executes the command, or writes a struct failure
// and exits. Nothing in here, or below it, allocates or calls what signal-safety(7) does not list: the memory may be
// the supervisor's own.
_Noreturn void child_run(const struct child *child);
