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
    int socket;             // the child's end of a socket to the supervisor, or -1 if the plan needs none
    int lock;               // the lock of the supervisor's state folder, which the child must not hold
    int supervisor;         // pidfd of the supervisor
    int null;               // /dev/null
    const int *given; // mounts to be placed in the root
    size_t given_count;
    int root;               // the root that the supervisor has made, or -1 if the child makes it
    char *arguments;        // the supervisor's own, which everybody can read in /proc/PID/cmdline
    size_t arguments_length;
    int program;            // the supervisor's executable for containers (program.h), or -1 if the plan needs none
    bool netlink_sent;      // the supervisor sends the messages to other network namespaces
    bool rootless;          // the supervisor is in a user namespace of its own
    pid_t *successors;      // a page that is shared with the supervisor: for each `fork` in progress, the pid of the process
    size_t slot;            // that continues the plan, and the place for this plan's
};

// The child's messages on the socket are a byte with the descriptor of its root, or a byte alone while it waits for its id maps,
// which the supervisor answers with a byte. The child closes the socket before anyone in a container can see it: an attacker with
// the socket could send the supervisor a descriptor whose close waits (SO_LINGER). The pipe stays open until the command is
// executed. An attacker with the pipe can only report that the unit has failed.

// Performs the operations of the plan after `process`. Never returns: it executes the command, or writes a struct failure
// and exits. It does not allocate, and neither does any function that it calls.
_Noreturn void child_run(const struct child *child);
