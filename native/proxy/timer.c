#include "timer.h"

#include <limits.h>
#include <stdlib.h>
#include <time.h>

static struct timer **heap; // from 1: the children of K are 2K and 2K + 1
static size_t count, room;

uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void put(struct timer *timer, size_t place) {
    heap[place] = timer;
    timer->place = place;
}

// Brings the timer to its place, from a free one.
static void settle(struct timer *timer, size_t place) {
    for (; place > 1 && heap[place / 2]->due > timer->due; place /= 2) put(heap[place / 2], place);
    for (size_t child; (child = 2 * place) <= count; place = child) {
        if (child < count && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= timer->due) break;
        put(heap[child], place);
    }
    put(timer, place);
}

static void drop(struct timer *timer) {
    size_t place = timer->place;
    struct timer *last = heap[count--];
    timer->place = 0;
    if (last != timer) settle(last, place);
}

bool timer_set(struct timer *timer, uint64_t due) {
    if (timer->place && timer->due == due) return true;
    timer->due = due;
    if (due == NEVER) {
        if (timer->place) drop(timer);
        return true;
    }
    if (timer->place) {
        settle(timer, timer->place);
        return true;
    }
    if (count + 1 >= room) {
        size_t more = room ? 2 * room : 64;
        struct timer **larger = realloc(heap, more * sizeof *heap);
        if (!larger) return false;
        heap = larger;
        room = more;
    }
    settle(timer, ++count);
    return true;
}

struct timer *timer_take(uint64_t now) {
    if (count == 0 || heap[1]->due > now) return NULL;
    struct timer *timer = heap[1];
    timer_set(timer, NEVER);
    return timer;
}

int timer_wait(void) {
    if (count == 0) return -1;
    uint64_t now = now_us(), due = heap[1]->due;
    if (due <= now) return 0;
    uint64_t wait = (due - now + 999) / 1000;
    return wait > INT_MAX ? INT_MAX : (int)wait;
}
