// A network namespace that is made in advance. A new one takes some hundred microseconds of a container's start and does not depend
// on the container, so the supervisor makes the next one while it is idle.
#pragma once

#include <stdbool.h>

struct network {
    int home;    // the supervisor's own namespace; -1 if it cannot return there, and then none is made in advance
    int spare;   // the namespace for the next container, or -1
    bool wanted; // whether to make a spare one when the supervisor is idle
};

void network_init(struct network *network);

// Makes the spare namespace. If that fails, the next container tries to make its own, and reports the error.
void network_make_spare(struct network *network);

// Enters the spare namespace, so that the next clone is in it and must not ask for a new one. Returns false without a spare one.
bool network_enter(struct network *network);

// Returns home, after the clone.
void network_leave(struct network *network);
