// The event loop that all parts of the program share, epoll(7).
#pragma once

#include <stdbool.h>
#include <stdint.h>

// What the data of each event points to begins with one of these.
enum watched { WATCHED_CONTROL, WATCHED_UDP, WATCHED_LISTENER, WATCHED_CONNECTION, WATCHED_UPSTREAM };

// Milliseconds since the machine has started, as of the last wake-up.
extern uint64_t now;

// Has events of a descriptor arrive with this data from now on; they replace those that it had. false: the kernel has no memory.
bool watch(int fd, enum watched *data, uint32_t events);

// No event arrives any more. Its closing alone does not do that for a socket that another process has as well (epoll(7)).
void unwatch(int fd);

// Wakes up at this time at the latest, so that everything that has a time limit is looked at.
void look_by(uint64_t time);

// Receives all control messages that have been sent. A container that was given a name and asks for it right away has to get it,
// so this precedes every answer.
void take_messages(void);
