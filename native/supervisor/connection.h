// A connection to a JavaScript process: the replies to it, and those that wait for room in its socket.
#pragma once

#include "protocol.h"

// The ids of a connection's units begin at its slot, times this, if the supervisor has more than one connection.
#define SLOT_UNITS (1u << 20)
#define SLOTS_MAX (1u << 12)

struct queued;

struct connection {
    struct connection *next;
    int socket; // -1 once the other end is gone
    int events; // the epoll that watches the socket
    uint32_t slot;
    struct queued *queue, **queue_end;
};

// Makes a connection that takes the socket, and has `events` watch it.
struct connection *connection_make(int socket, int events, uint32_t slot);

// Sends a reply with up to two descriptors, or -1, which the caller keeps. Without a connection it does nothing.
void connection_reply(struct connection *connection, struct reply *reply, int first, int second);

// Sends the replies that wait, as far as there is room.
void connection_flush(struct connection *connection);

// Closes the socket, and drops the replies that wait.
void connection_close(struct connection *connection);
