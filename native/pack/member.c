#include "pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

enum {
    BLOCK = 512,
    // What readers keep in memory: a member's long names and attributes.
    EXTENDED_MAX = 1 << 20,
};

static char *extended;
static size_t extended_length, extended_room;

static void add(const void *bytes, size_t length) {
    if (extended_length + length > EXTENDED_MAX) fail(UNSUPPORTED, 0, "-", "has more extended attributes than fit into a tar");
    if (extended_length + length > extended_room) extended = grow(extended, extended_room = 2 * (extended_length + length));
    memcpy(extended + extended_length, bytes, length);
    extended_length += length;
}

// `LENGTH KEY=VALUE\n`, where the length includes its own digits.
static void add_record(const char *prefix, const char *key, const void *value, size_t size) {
    char digits[32];
    size_t rest = strlen(prefix) + strlen(key) + size + 3;
    size_t length = rest + (size_t)snprintf(digits, sizeof digits, "%zu", rest);
    // The digits may make the number one digit longer.
    length = rest + (size_t)snprintf(digits, sizeof digits, "%zu", length);
    add(digits, (size_t)snprintf(digits, sizeof digits, "%zu", length));
    add(" ", 1);
    add(prefix, strlen(prefix));
    add(key, strlen(key));
    add("=", 1);
    if (size > 0) add(value, size);
    add("\n", 1);
}

static void add_text(const char *key, const char *value) { add_record("", key, value, strlen(value)); }

static bool fits(int64_t value, int digits) { return value >= 0 && value < 1ll << 3 * digits; }

static void add_number(const char *key, int64_t value, int digits) {
    char text[32];
    snprintf(text, sizeof text, "%jd", (intmax_t)value);
    if (!fits(value, digits)) add_text(key, text);
}

// The fraction has the sign of the number: half a second before 1970 is -0.5.
static void add_time(const struct timespec *time) {
    char text[64];
    bool negative = time->tv_sec < 0 && time->tv_nsec > 0;
    intmax_t whole = negative ? time->tv_sec + 1 : time->tv_sec;
    long fraction = negative ? 1000000000 - time->tv_nsec : time->tv_nsec;
    if (fraction == 0 && fits(time->tv_sec, 11)) return;
    int length = snprintf(text, sizeof text, "%s%jd", negative && whole == 0 ? "-" : "", whole);
    if (fraction > 0) {
        length += snprintf(text + length, sizeof text - (size_t)length, ".%09ld", fraction);
        while (text[length - 1] == '0') text[--length] = '\0';
    }
    add_text("mtime", text);
}

// A number that does not fit is in the extended header, and 0 here.
static void put(unsigned char *field, int64_t value, int digits) {
    uint64_t rest = fits(value, digits) ? (uint64_t)value : 0;
    for (int k = digits - 1; k >= 0; k--, rest >>= 3) field[k] = (unsigned char)('0' + (rest & 7));
}

static void write_block(const struct member *member, const char *name, size_t name_length) {
    unsigned char block[BLOCK] = {0};
    size_t link_length = strnlen(member->link, 100);
    memcpy(block, name, name_length < 100 ? name_length : 100);
    put(block + 100, member->mode, 7);
    put(block + 108, member->uid, 7);
    put(block + 116, member->gid, 7);
    put(block + 124, member->size, 11);
    put(block + 136, member->mtime.tv_sec, 11);
    memset(block + 148, ' ', 8);
    block[156] = (unsigned char)member->type;
    memcpy(block + 157, member->link, link_length);
    memcpy(block + 257, "ustar\00000", 8);
    if (member->type == '3' || member->type == '4') {
        put(block + 329, major(member->device), 7);
        put(block + 337, minor(member->device), 7);
    }
    int64_t sum = 0;
    for (size_t k = 0; k < sizeof block; k++) sum += block[k];
    put(block + 148, sum, 6);
    block[154] = '\0';
    sink_write(block, sizeof block);
}

// Whether the text fits into a field of 100 bytes, and is ASCII.
static bool is_plain(const char *text, size_t length) {
    if (length > 100) return false;
    for (size_t k = 0; k < length; k++)
        if ((unsigned char)text[k] >= 0x80) return false;
    return true;
}

void write_header(const struct member *member) {
    static char name[8192];
    int length = snprintf(name, sizeof name, "%s%s", member->path, member->type == '5' ? "/" : "");
    extended_length = 0;
    if (!is_plain(name, (size_t)length)) add_text("path", name);
    if (!is_plain(member->link, strlen(member->link))) add_text("linkpath", member->link);
    add_number("size", member->size, 11);
    add_number("uid", member->uid, 7);
    add_number("gid", member->gid, 7);
    add_time(&member->mtime);
    for (const struct attribute *one = member->attributes; one < member->attributes + member->attribute_count; one++)
        add_record("SCHILY.xattr.", one->name, one->value, one->size);
    if (extended_length > 0) {
        const struct member header = {.link = "", .type = 'x', .mode = 0644, .size = (off_t)extended_length};
        write_block(&header, "PaxHeader", strlen("PaxHeader"));
        sink_write(extended, extended_length);
        sink_pad(extended_length);
    }
    write_block(member, name, (size_t)length);
}
