// Two connected sockets: what one receives the other sends, with ends, resets and full buffers passed on, and with the faults of a
// shape.
#pragma once

#include "target.h"
#include "toxic.h"

#include <stdbool.h>
#include <stdint.h>

struct side;

// Connects to a target, and takes the accepted socket; false where no descriptor can be had, and the socket is closed. `count` is NULL, or
// counts the pair as long as there is one.
bool pair_open(int epoll, int accepted, const struct targets *targets, struct shape *shape, size_t *count);

// Goes on with one whose socket is ready, by events of epoll(7).
void pair_serve(struct side *side, uint32_t events);

// Goes on with those whose time has come.
void pairs_serve_due(void);

// Has the connections of a shape follow its faults, which have changed.
void pairs_reshape(struct shape *shape);

// Frees those that have ended, once no event that was received can be theirs any more.
void pairs_free(void);
