// Which addresses outside of a network its containers may connect to. A redirected connection says where it was going to
// (SO_ORIGINAL_DST); an ordered list of rules decides, and the first that matches the address and the port does.
#pragma once

#include "target.h"

#include <stdbool.h>
#include <stddef.h>

// Adds rules to the end of the list, from words; text that is anything else adds those in front of it:
//
//   allow ADDRESS/BITS PORT     a port of 0 is every port
//   refuse ADDRESS/BITS PORT
//   refuse-own                  the addresses of this machine, and those that are not one machine's: broadcast, anycast, multicast
//   allow-learned               the addresses of allowed names, of which the responder tells
//
// What no rule matches is refused.
void outbound_rules(char *words);

// Takes the socket on which the responder tells addresses of allowed names, as `ADDRESS PORT`, before it answers with them.
void outbound_learn_from(int epoll, int fd);

// Receives what it has told.
void outbound_learn(void);

enum outbound { OUTBOUND_ALLOWED, OUTBOUND_REFUSED, OUTBOUND_FULL };

// Decides about an accepted connection: where it was going to, and with which others it is counted. It is refused by the rules, or as its
// container has too many already. `text` says where it comes from and was going to, as `FROM ADDRESS PORT`, or nothing where nobody knows.
enum outbound outbound_decide(int accepted, struct targets *target, size_t **count, char text[static 128]);
