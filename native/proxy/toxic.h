// Faults of a listener's connections, by direction, which change while the connections run.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct toxic {
    uint64_t latency, jitter; // microseconds
    uint64_t rate;            // bytes a second; 0: no limit
    uint64_t reset_bytes;     // of a connection, from now on, that pass before it breaks; UINT64_MAX: it does not
    uint64_t reset_after;     // microseconds until it breaks; UINT64_MAX: it does not
    bool half_open;           // nothing passes, neither bytes nor ends
};

enum direction { UP, DOWN }; // from who has connected, and back

struct pair;

// What the connections of a listener share. All live as long as the program.
struct shape {
    struct toxic toxics[2];
    struct pair *pairs;
};

#define NO_TOXIC {.reset_bytes = UINT64_MAX, .reset_after = UINT64_MAX}
#define NO_SHAPE {.toxics = {NO_TOXIC, NO_TOXIC}}

// From text, as the head of proxy.c has it; false where it is anything else.
bool toxics_parse(struct toxic toxics[2], const char *text);
