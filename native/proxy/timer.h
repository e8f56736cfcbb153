// Timers: a heap of the times at which something is due, in microseconds of CLOCK_MONOTONIC.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NEVER UINT64_MAX

// A part of what waits; zeroed before.
struct timer {
    uint64_t due;
    size_t place; // in the heap, from 1; 0: not in it
};

uint64_t now_us(void);

// Sets the time, or NEVER; false where there is no memory.
bool timer_set(struct timer *timer, uint64_t due);

// One that is due, which is set to NEVER; NULL where none is.
struct timer *timer_take(uint64_t now);

// Milliseconds until one is due, or -1.
int timer_wait(void);
