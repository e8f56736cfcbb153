#include "ring.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

// Slots [taken, filled) hold data. Both numbers only grow; the index of a slot is its number modulo SLOTS.
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t filled, taken;
    bool ended, given_up;
    size_t length[SLOTS];
    unsigned char data[SLOTS][SLOT];
} ring = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

unsigned char *ring_slot(void) {
    pthread_mutex_lock(&ring.lock);
    while (ring.filled - ring.taken == SLOTS && !ring.given_up) pthread_cond_wait(&ring.changed, &ring.lock);
    unsigned char *slot = ring.given_up ? NULL : ring.data[ring.filled % SLOTS];
    pthread_mutex_unlock(&ring.lock);
    return slot;
}

void ring_hand_over(size_t length) {
    pthread_mutex_lock(&ring.lock);
    ring.length[ring.filled % SLOTS] = length;
    ring.filled++;
    pthread_cond_signal(&ring.changed);
    pthread_mutex_unlock(&ring.lock);
}

static void set(bool *flag) {
    pthread_mutex_lock(&ring.lock);
    *flag = true;
    pthread_cond_signal(&ring.changed);
    pthread_mutex_unlock(&ring.lock);
}

void ring_end(void) { set(&ring.ended); }

void ring_give_up(void) { set(&ring.given_up); }

unsigned char *ring_next(size_t *length) {
    static bool holding;
    pthread_mutex_lock(&ring.lock);
    if (holding) {
        ring.taken++;
        pthread_cond_signal(&ring.changed);
    }
    while (ring.filled == ring.taken && !ring.ended) pthread_cond_wait(&ring.changed, &ring.lock);
    holding = ring.filled != ring.taken;
    unsigned char *slot = holding ? ring.data[ring.taken % SLOTS] : NULL;
    *length = holding ? ring.length[ring.taken % SLOTS] : 0;
    pthread_mutex_unlock(&ring.lock);
    return slot;
}
