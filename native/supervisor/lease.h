// A supervisor for several JavaScript processes that know nothing of each other. Each connection to its Unix socket is a lease: the
// supervisor lives as long as one is open, and the kernel closes that of a process that dies.
//
// The gate is a file that a process locks (flock(2)) while it looks for the supervisor, or starts it. A supervisor without a lease
// takes the lock as well before it ends, and holds it until nothing of it is left: so nobody finds it while it ends, and no second
// one starts before its end.
#pragma once

#include "../common/failure.h"

#include <stdbool.h>

#define LEASE_SOCKET "lease" // in the state folder

struct lease {
    const char *gate; // the path of the file; NULL without leases
    int listener;
    int lock; // the gate, once this process has it
};

// Listens in the working directory, which is the state folder.
int lease_listen(struct lease *lease, struct failure *failure);

// The next connection of a process of this user, or -1.
int lease_accept(const struct lease *lease);

// Takes the gate without waiting. Returns false if somebody is entering.
bool lease_shut(struct lease *lease);

// Opens the gate again.
void lease_open(struct lease *lease);

// Removes the gate, which is this process's.
void lease_remove(struct lease *lease);
