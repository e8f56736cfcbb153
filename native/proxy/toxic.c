#include "toxic.h"

#include <inttypes.h>
#include <stdio.h>

bool toxics_parse(struct toxic toxics[2], const char *text) {
    for (int k = 0; k < 2; k++) {
        struct toxic *toxic = &toxics[k];
        unsigned half_open;
        int length;
        if (sscanf(text, " %" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%u%n", &toxic->latency, &toxic->jitter, &toxic->rate,
                   &toxic->reset_bytes, &toxic->reset_after, &half_open, &length) != 6)
            return false;
        toxic->half_open = half_open;
        text += length;
    }
    return *text == '\0';
}
