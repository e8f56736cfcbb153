// A ring of buffers between two threads of a program: one fills them, and the other takes them in the same order.
#pragma once

#include <stddef.h>

enum {
    SLOT = 256 * 1024, // the unpacker writes straight from a slot: one write(2) for each
    SLOTS = 16,
};

// The slot to fill, once there is a free one; NULL once the taker has given up. For the filling thread.
unsigned char *ring_slot(void);

// Gives the slot with so many bytes to the taker. For the filling thread.
void ring_hand_over(size_t length);

// No slot follows. For the filling thread.
void ring_end(void);

// The next slot, which stays the taker's until the next call; NULL after the last one. For the taking thread.
unsigned char *ring_next(size_t *length);

// Takes no slot any more. For the taking thread.
void ring_give_up(void);
