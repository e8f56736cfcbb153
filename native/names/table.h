// The names of a network and their addresses. A name is in the form of a DNS message (RFC 1035, 3.1): lower case, each label after
// its length, and a zero byte at the end.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_MAX_BYTES 255

struct name {
    uint8_t bytes[NAME_MAX_BYTES];
    size_t length;
};

struct address {
    uint8_t bytes[16];
    uint8_t length; // 4 or 16
};

// One address of one name.
struct record {
    uint32_t owner;
    struct address address;
    struct record *next_of_name, *next_of_address;
    uint8_t length;
    uint8_t name[];
};

// Reads a name as a person writes it, with dots: of lower-case letters, digits, hyphens and underscores. false: the text is not a name.
bool name_parse(struct name *name, const char *text);
// Reads an address of IPv4 or IPv6. false: the text is not an address.
bool address_parse(struct address *address, const char *text);

// Has a name of a container have these addresses and no others.
void table_set(uint32_t owner, const struct name *name, const struct address *addresses, size_t count);

// Removes all names of a container.
void table_remove(uint32_t owner);

// The records of a name, or of an address, in the order in which they were made; NULL after the last.
const struct record *table_named(const uint8_t *name, size_t length);
const struct record *table_next_named(const struct record *record);
const struct record *table_addressed(const struct address *address);
const struct record *table_next_addressed(const struct record *record);
