// Two connected sockets: what one receives the other sends, with ends, resets and full buffers passed on.
#pragma once

#include "target.h"

#include <stdbool.h>
#include <stdint.h>

struct side;

// Connects to a target, and takes the accepted socket; false where no descriptor can be had, and the socket is closed.
bool pair_open(int epoll, int accepted, const struct targets *targets);

// Goes on with one whose socket is ready, by events of epoll(7).
void pair_serve(struct side *side, uint32_t events);

// Frees those that have ended, once no event that was received can be theirs any more.
void pairs_free(void);
