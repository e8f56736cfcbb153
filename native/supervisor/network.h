// A network namespace made ahead. To make one takes some hundred microseconds of a container's start, and needs nothing
// of the container's, so that the supervisor makes the next one while it has nothing else to do.
#pragma once

#include <stdbool.h>

struct network {
    int home;    // the supervisor's own, -1 where it may not come back to it: no namespace is made ahead then
    int spare;   // -1 where there is none
    bool wanted; // whether to make one when there is time
};

void network_init(struct network *network);

// Makes the spare one. Where that fails the next container makes its own, and says why it cannot.
void network_make_spare(struct network *network);

// Makes the spare one the caller's for its next clone, which then must not ask for a new one: false where there is none.
bool network_enter(struct network *network);

// Back home, after the clone.
void network_leave(struct network *network);
