// Questions that the network does not know the answer to, passed on to other servers. Those by UDP go by UDP, those by TCP by TCP.
#pragma once

#include "server.h"

// Asks these servers from now on: words of an address and a port each. Text that is anything else changes nothing.
void forward_set(char *words);

// Whether there is any.
bool forward_exists(void);

// Passes a question on; its answer follows, or SERVFAIL after 3 s. false: too many are on their way.
bool forward_pass(const struct asker *asker, const struct question *question);

// Forgets the questions of a connection, or with NULL all that a container has asked.
void forward_forget(const struct server *server, const struct connection *connection);

struct passed;

// Goes on with one whose socket is ready.
void forward_serve(struct passed *passed, uint32_t events);

// Answers those that have waited for too long.
void forward_look(void);
