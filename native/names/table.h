// The names of networks and their addresses. A name is in the form of a DNS message (RFC 1035, 3.1): lower case, each label after
// its length, and a zero byte at the end.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_MAX_BYTES 255
#define VIEW_MAX 64

// The network whose names everybody sees. The others are numbered from 1.
#define EVERYWHERE 0

struct name {
    uint8_t bytes[NAME_MAX_BYTES];
    size_t length;
};

struct address {
    uint8_t bytes[16];
    uint8_t length; // 4 or 16
};

// The networks that an asker is on. It sees their names, and those that are everywhere.
struct view {
    uint32_t networks[VIEW_MAX];
    size_t count;
};

// One address of one name on one network.
struct record {
    uint32_t network, owner;
    struct address address;
    struct record *next_of_name, *next_of_address;
    uint8_t length;
    uint8_t name[];
};

// Reads a name as a person writes it, with dots: of lower-case letters, digits, hyphens and underscores. false: the text is not a name.
bool name_parse(struct name *name, const char *text);
// Reads an address of IPv4 or IPv6. false: the text is not an address.
bool address_parse(struct address *address, const char *text);

// Has a name of an owner have these addresses on a network, and no others.
void table_set(uint32_t network, uint32_t owner, const struct name *name, const struct address *addresses, size_t count);

// Removes all names of an owner on a network; of all its owners where the owner is 0.
void table_remove(uint32_t network, uint32_t owner);

// The records of a name, or of an address, that are seen, in the order in which they were made; NULL after the last.
const struct record *table_named(const struct view *view, const uint8_t *name, size_t length);
const struct record *table_next_named(const struct view *view, const struct record *record);
const struct record *table_addressed(const struct view *view, const struct address *address);
const struct record *table_next_addressed(const struct view *view, const struct record *record);
