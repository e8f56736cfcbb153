// The sockets on which one container asks.
#pragma once

#include "loop.h"
#include "message.h"

#include <netinet/in.h>

#define CONNECTIONS_MAX 16

struct connection {
    enum watched kind;
    int fd; // -1: there is none
    uint64_t until;
    struct server *server;
};

struct server {
    enum watched udp_kind, listener_kind;
    uint32_t id;
    struct view view; // the networks whose names the container sees
    int udp, listener;
    bool removed, paused;
    unsigned passed_on; // questions that other servers are to answer
    struct connection connections[CONNECTIONS_MAX];
    struct server *next;
};

// Whoever waits for an answer: a socket of the container.
struct asker {
    struct server *server;
    struct connection *connection; // NULL: it has asked by UDP, from this address
    struct sockaddr_storage from;
    socklen_t from_length;
};

// Answers a container on these two sockets from now on, and owns them: one of UDP and a listening one of TCP. It closes any others.
void server_open(uint32_t id, const struct view *view, int udp, int listener);

// Has a container see the names of these networks from now on, and of no others.
void server_see(uint32_t id, const struct view *view);

// Closes a container's sockets, if it has any. Its memory is freed by servers_free, as an event that has been received may be for it.
void server_close(uint32_t id);
void servers_free(void);

// Goes on with a socket that is ready.
void server_take_datagrams(struct server *server);
void server_take_connections(struct server *server);
void connection_serve(struct connection *connection, uint32_t events);

// Closes the connections that have been idle for too long.
void servers_look(void);

// Sends an answer. An asker that does not receive it harms itself alone.
void asker_reply(const struct asker *asker, const uint8_t *bytes, size_t length);
