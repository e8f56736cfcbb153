// Which names outside of a network its containers may ask for, where not every one is allowed, and the addresses of these names, of which
// the proxy of the network is told (native/proxy/outbound.c).
#pragma once

#include "message.h"

// Allows names, from words: each a name, or `*.` and a name for all names below it, and a port. Text that is anything else allows those
// in front of it.
void allowed_add(char *words);

// Takes the socket to the proxy.
void allowed_tell(int fd);

// Whether the name may be asked for. Without any `allowed_add`, every name may.
bool allowed_matches(const struct name *name);

// Tells the proxy the addresses in an answer, with the ports of the names that the question matches, before anybody can use them. false: it
// cannot be told now.
bool allowed_learn(const struct question *question, const uint8_t *message, size_t length);
