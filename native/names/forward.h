// Passes questions that no network of the asker can answer on to other servers: by UDP what was asked by UDP, by TCP what was asked
// by TCP.
#pragma once

#include "server.h"

// Asks these servers for containers of a network from now on, the first three: words of an address and a port each. Without words
// it asks none. Text that is anything else changes nothing.
void forward_set(uint32_t network, char *words);

// Whether there are servers to ask for a container of these networks: those of the first network that has any.
bool forward_exists(const struct view *view);

// Passes a question on; its answer follows, or SERVFAIL after three tries of a second each. false: too many questions wait for an answer already.
bool forward_pass(const struct asker *asker, const struct question *question);

// Forgets the questions of a connection, or with NULL all that a container has asked.
void forward_forget(const struct server *server, const struct connection *connection);

struct passed;

// Goes on with a question whose socket is ready.
void forward_serve(struct passed *passed, uint32_t events);

// Tries the next server for each question that has waited for too long.
void forward_look(void);
