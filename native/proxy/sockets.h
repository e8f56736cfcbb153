// The sockets of this network namespace that have a port, as they are when they are looked at.
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct socket_address {
    uint32_t words[4]; // as IPv6 has it, which for IPv4 is the mapped form, ::ffff:127.0.0.1
    in_port_t port;    // in the byte order of the network, as the words are
};

struct sockets {
    struct socket_address *list;
    size_t count, room;
};

// Those that listen for TCP: by sock_diag(7), or of a kernel without it by proc(5), where a look takes milliseconds.
void sockets_listening(struct sockets *sockets);

// Those of UDP that are connected to no one.
void sockets_of_datagrams(struct sockets *sockets);

// Whether one has the address, or its port on every address of its family.
bool sockets_have(const struct sockets *sockets, const struct sockaddr_storage *address);

in_port_t address_port(const struct sockaddr_storage *address);
