// Where a connection is made to: addresses in this network namespace, tried in turn.
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#define TARGETS_MAX 4

struct targets {
    struct sockaddr_storage address[TARGETS_MAX];
    unsigned count;
};

// From text, as the head of proxy.c has it; false where it is anything else.
bool targets_parse(struct targets *targets, const char *text);

// Whether something listens at one of them, by what /proc/net/tcp and tcp6 say (proc(5)): a connection would be one more
// that the server has to serve, and to refuse.
bool targets_listen(const struct targets *targets);

// A socket that is connecting to the target number `at`, without waiting; -1 where that fails at once.
int target_connect(const struct targets *targets, unsigned at);

in_port_t address_port(const struct sockaddr_storage *address);

// A UDP socket that is connected to the first target whose port a socket has; -1 where there is none.
int target_datagrams(const struct targets *targets);
