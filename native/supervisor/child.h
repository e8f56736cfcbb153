// The child: from the clone to exec.
#pragma once

#include "plan.h"

#include <stdbool.h>
#include <sys/types.h>

#define SUCCESSORS_MAX 1024

struct child {
    const struct plan *plan;
    const int *descriptors; // those that came with the message
    int failures;           // a pipe to the supervisor for a struct failure; exec closes it
    int socket;             // the child's end of a socket to the supervisor, or -1 where the plan needs none
    int lock;               // what the supervisor's state folder is locked by, which is not the child's to hold
    int supervisor;         // pidfd of the supervisor
    int null;               // /dev/null
    int root;               // the root that the supervisor has made, or -1 where the plan has the child make it
    char *arguments;        // the supervisor's own, as /proc/PID/cmdline shows them to everybody, and their length
    size_t arguments_length;
    int program;            // the supervisor's executable for containers (program.h), or -1 where the plan needs none
    bool rootless;          // the supervisor is in a user namespace of its own
    pid_t *successors;      // memory that is shared with the supervisor, a page: the pids of those that go on behind a
    size_t slot;            // `fork`, and the place for this plan's
};

// What the child says on the socket, a message each: a byte with its root's descriptor, or a byte alone when it waits for its
// id maps, which the supervisor answers with a byte. It is closed before anyone in a container sees the process: who has it
// could send the supervisor a descriptor whose close waits (SO_LINGER). The pipe is there until the command is executed, and
// who gets hold of that can say no more than that the unit has failed.

// Performs the plan's operations behind `process`. Never returns: it executes the command, or writes a struct failure
// and exits. It allocates nothing, and so does all that is below it.
_Noreturn void child_run(const struct child *child);
