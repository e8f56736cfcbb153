#include "allowed.h"
#include "../common/descriptor.h"
#include "../common/util.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERNS_MAX 4096
#define RECORD_BYTES 10 // of a record between its name and its data
#define POINTER 0xc0

enum { TYPE_A = 1, TYPE_AAAA = 28, CLASS_IN = 1 };

struct pattern {
    struct name name;
    bool below; // not the name itself, but all below it
    uint16_t port; // 0: every one
};

static struct pattern *patterns;
static size_t pattern_count;
static int proxy = -1;

void allowed_add(char *words) {
    for (char *word = strtok(words, " "); word && pattern_count < PATTERNS_MAX; word = strtok(NULL, " ")) {
        struct pattern pattern = {.below = !strncmp(word, "*.", 2)};
        char *port = strtok(NULL, " "), *end;
        unsigned long number = port ? strtoul(port, &end, 10) : 0;
        if (!port || *end || number > UINT16_MAX || !name_parse(&pattern.name, word + (pattern.below ? 2 : 0))) return;
        struct pattern *more = realloc(patterns, (pattern_count + 1) * sizeof pattern);
        if (!more) abort(); // without any pattern every name would be allowed
        pattern.port = (uint16_t)number;
        patterns = more;
        patterns[pattern_count++] = pattern;
    }
}

void allowed_tell(int fd) {
    close_descriptor(&proxy);
    proxy = fd;
}

static bool matches(const struct pattern *pattern, const struct name *name) {
    size_t at = 0;
    if (pattern->below) {
        if (name->length <= pattern->name.length) return false;
        while (name->length - at > pattern->name.length) at += 1u + name->bytes[at];
        if (at == 0) return false;
    }
    return name->length - at == pattern->name.length && memcmp(name->bytes + at, pattern->name.bytes, pattern->name.length) == 0;
}

bool allowed_matches(const struct name *name) {
    for (size_t k = 0; k < pattern_count; k++)
        if (matches(&patterns[k], name)) return true;
    return pattern_count == 0;
}

static uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

// The place after a name, which a pointer to an earlier one may end; 0: it is not whole.
static size_t skip_name(const uint8_t *bytes, size_t length, size_t at) {
    while (at < length) {
        if ((bytes[at] & POINTER) == POINTER) return at + 2;
        if (bytes[at] & POINTER) return 0;
        if (bytes[at] == 0) return at + 1;
        at += 1u + bytes[at];
    }
    return 0;
}

static bool tell(const struct name *name, int family, const uint8_t *address) {
    char text[64], printed[INET6_ADDRSTRLEN];
    inet_ntop(family, address, printed, sizeof printed);
    for (size_t k = 0; k < pattern_count; k++) {
        if (!matches(&patterns[k], name)) continue;
        int length = snprintf(text, sizeof text, "%s %u", printed, patterns[k].port);
        if (descriptors_send(proxy, text, (size_t)length, NULL, 0) < 0) return false;
    }
    return true;
}

bool allowed_learn(const struct question *question, const uint8_t *message, size_t length) {
    size_t at = HEADER_BYTES + question->length;
    unsigned count = length < at ? 0 : get16(message + 6);
    if (pattern_count == 0 || proxy < 0) return true;
    for (; count > 0; count--) {
        at = skip_name(message, length, at);
        if (at == 0 || at > length || length - at < RECORD_BYTES) return true; // whoever reads it finds nothing there either
        unsigned type = get16(message + at), class = get16(message + at + 2), size = get16(message + at + 8);
        at += RECORD_BYTES;
        if (length - at < size) return true;
        bool v4 = type == TYPE_A && size == 4, v6 = type == TYPE_AAAA && size == 16;
        if (class == CLASS_IN && (v4 || v6) && !tell(&question->name, v4 ? AF_INET : AF_INET6, message + at)) return false;
        at += size;
    }
    return true;
}
