// A bound UDP socket whose datagrams go on to a container: each peer has a socket of its own there, so that the server's answers find
// their way back.
#pragma once

#include "target.h"

#include <stdbool.h>
#include <stdint.h>

struct bound;
struct peer;

// Takes the bound socket; false where it cannot be watched, and the socket is closed.
bool datagrams_open(int epoll, int fd, const struct targets *targets);

// Passes on what has come to the bound socket, or from the container to a peer.
void datagrams_serve_bound(struct bound *bound);
void datagrams_serve_peer(struct peer *peer);

// Forgets the peers that have been idle for long; milliseconds until the next one is, or -1. To be called when no event that was
// received can be theirs any more.
int datagrams_tidy(void);
