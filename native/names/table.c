#include "table.h"
#include "../common/util.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 4096
#define RECORDS_MAX 65536
#define LABEL_MAX_BYTES 63

static struct record *by_name[BUCKETS], *by_address[BUCKETS];
static size_t records;

bool name_parse(struct name *name, const char *text) {
    size_t length = strlen(text), label = 0;
    if (length == 0 || length + 2 > NAME_MAX_BYTES) return false;
    for (size_t k = 0; k <= length; k++) {
        char c = text[k];
        if (c != '.' && c != '\0') {
            if (!(c >= 'a' && c <= 'z') && !(c >= '0' && c <= '9') && c != '-' && c != '_') return false;
            name->bytes[k + 1] = (uint8_t)c;
            continue;
        }
        if (k == label || k - label > LABEL_MAX_BYTES) return false;
        name->bytes[label] = (uint8_t)(k - label);
        label = k + 1;
    }
    name->bytes[label] = 0;
    name->length = label + 1;
    return true;
}

bool address_parse(struct address *address, const char *text) {
    *address = (struct address){.length = strchr(text, ':') ? 16 : 4};
    return inet_pton(address->length == 4 ? AF_INET : AF_INET6, text, address->bytes) == 1;
}

// FNV-1a.
static size_t bucket_of(const uint8_t *bytes, size_t length) {
    uint32_t hash = 2166136261;
    for (size_t k = 0; k < length; k++) hash = (hash ^ bytes[k]) * 16777619;
    return hash % BUCKETS;
}

static bool sees(const struct view *view, const struct record *record) {
    for (size_t k = 0; k < view->count; k++)
        if (view->networks[k] == record->network) return true;
    return record->network == EVERYWHERE;
}

static bool is_named(const struct record *record, const uint8_t *name, size_t length) {
    return record->length == length && memcmp(record->name, name, length) == 0;
}

static bool is_addressed(const struct record *record, const struct address *address) {
    return record->address.length == address->length && memcmp(record->address.bytes, address->bytes, address->length) == 0;
}

static bool is_of(const struct record *record, uint32_t network, uint32_t owner) {
    return record->network == network && (owner == 0 || record->owner == owner);
}

static void add(uint32_t network, uint32_t owner, const struct name *name, const struct address *address) {
    if (records >= RECORDS_MAX) return;
    struct record *record = malloc(sizeof *record + name->length);
    if (!record) return;
    *record = (struct record){.network = network, .owner = owner, .address = *address, .length = (uint8_t)name->length};
    memcpy(record->name, name->bytes, name->length);
    struct record **at = &by_name[bucket_of(name->bytes, name->length)];
    while (*at) at = &(*at)->next_of_name;
    *at = record;
    at = &by_address[bucket_of(address->bytes, address->length)];
    while (*at) at = &(*at)->next_of_address;
    *at = record;
    records++;
}

// Takes the record at `*at` out of both lists.
static void remove_at(struct record **at) {
    struct record *record = *at;
    struct record **other = &by_address[bucket_of(record->address.bytes, record->address.length)];
    *at = record->next_of_name;
    while (*other != record) other = &(*other)->next_of_address;
    *other = record->next_of_address;
    free(record);
    records--;
}

void table_set(uint32_t network, uint32_t owner, const struct name *name, const struct address *addresses, size_t count) {
    for (struct record **at = &by_name[bucket_of(name->bytes, name->length)]; *at;) {
        if (is_of(*at, network, owner) && is_named(*at, name->bytes, name->length)) remove_at(at);
        else at = &(*at)->next_of_name;
    }
    for (size_t k = 0; k < count; k++) add(network, owner, name, &addresses[k]);
}

void table_remove(uint32_t network, uint32_t owner) {
    for (size_t k = 0; k < BUCKETS; k++)
        for (struct record **at = &by_name[k]; *at;) {
            if (is_of(*at, network, owner)) remove_at(at);
            else at = &(*at)->next_of_name;
        }
}

static const struct record *find_named(const struct view *view, const struct record *record, const uint8_t *name, size_t length) {
    while (record && !(is_named(record, name, length) && sees(view, record))) record = record->next_of_name;
    return record;
}

static const struct record *find_addressed(const struct view *view, const struct record *record, const struct address *address) {
    while (record && !(is_addressed(record, address) && sees(view, record))) record = record->next_of_address;
    return record;
}

const struct record *table_named(const struct view *view, const uint8_t *name, size_t length) {
    return find_named(view, by_name[bucket_of(name, length)], name, length);
}

const struct record *table_next_named(const struct view *view, const struct record *record) {
    return find_named(view, record->next_of_name, record->name, record->length);
}

const struct record *table_addressed(const struct view *view, const struct address *address) {
    return find_addressed(view, by_address[bucket_of(address->bytes, address->length)], address);
}

const struct record *table_next_addressed(const struct view *view, const struct record *record) {
    return find_addressed(view, record->next_of_address, &record->address);
}
