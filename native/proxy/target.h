// Where a connection is made to: addresses in this network namespace, tried in turn, or a Unix socket in the root of a container.
#pragma once

#include "sockets.h"

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

#define TARGETS_MAX 4

struct targets {
    struct sockaddr_storage address[TARGETS_MAX];
    unsigned count;
    // A path, resolved in the root for each connection: a server that starts anew makes another socket. NULL for addresses.
    char *path;
    int root;
};

// From text, as the head of proxy.c has it, and the descriptor of a root, which it takes where there is a path; false where the text is
// anything else.
bool targets_parse(struct targets *targets, const char *text, int *root);

// Whether something listens at one of them, by the sockets that listen: a connection would be one more that the server has to serve,
// and to refuse. Of a Unix socket nothing says so but a connection, which ends at once.
bool targets_listen(const struct targets *targets, const struct sockets *listening);

// A socket that is connecting to the target number `at`, without waiting; -1 where that fails at once.
int target_connect(const struct targets *targets, unsigned at);

// A UDP socket that is connected to the target number `at`, or with TARGETS_MAX to the first whose port a socket has, whose number it
// sets; -1 where there is none.
int target_datagrams(const struct targets *targets, unsigned *at);
