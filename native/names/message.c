#include "message.h"
#include "../common/util.h"

#include <string.h>

#define LENGTH_MASK 0xc0 // of a label's length: a pointer, or reserved
#define QR 0x8000
#define OPCODE 0x7800
#define AA 0x0400
#define TC 0x0200
#define RD 0x0100
#define RA 0x0080
#define AD 0x0020
#define CD 0x0010
#define DO 0x8000

#define CLASS_IN 1
#define OPT_BYTES 11
#define UDP_LEAST 512
#define UDP_MOST 4096

enum { TYPE_A = 1, TYPE_SOA = 6, TYPE_PTR = 12, TYPE_AAAA = 28, TYPE_OPT = 41, TYPE_META_FIRST = 251, TYPE_META_LAST = 255 };

static const uint8_t localhost[] = "\011localhost";
static const uint8_t loopback[] = "\003127\007in-addr\004arpa";
static const uint8_t of_v4[] = "\007in-addr\004arpa";
static const uint8_t of_v6[] = "\003ip6\004arpa";

static uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint8_t *put16(uint8_t *at, unsigned value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
    return at + 2;
}

static uint8_t *put32(uint8_t *at, uint32_t value) {
    return put16(put16(at, value >> 16), value & 0xffff);
}

// Lengths of labels are below the letters, so that they stay as they are.
static uint8_t lower(uint8_t c) {
    return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

// The bytes of the name in front, or 0: it is not whole, too long or has a pointer.
static size_t name_length(const uint8_t *bytes, size_t length) {
    for (size_t at = 0; at < length && at < NAME_MAX_BYTES; at += 1 + bytes[at]) {
        if (bytes[at] & LENGTH_MASK) return 0;
        if (bytes[at] == 0) return at + 1;
    }
    return 0;
}

// The one record behind the question may be OPT, of version 0.
static int read_extension(struct question *question, const uint8_t *at, size_t length) {
    if (length < OPT_BYTES || at[0] != 0 || get16(at + 1) != TYPE_OPT || get16(at + 9) != length - OPT_BYTES) return FORMERR;
    question->extended = true;
    question->limit = get16(at + 3) < UDP_LEAST ? UDP_LEAST : get16(at + 3) > UDP_MOST ? UDP_MOST : get16(at + 3);
    question->extension = get16(at + 7) & DO;
    return at[6] == 0 ? NOERROR : BADVERS;
}

int question_read(struct question *question, const uint8_t *bytes, size_t length) {
    if (length < HEADER_BYTES || get16(bytes + 2) & QR) return -1;
    question->id = get16(bytes);
    question->flags = get16(bytes + 2);
    question->length = 0;
    question->extended = false;
    question->extension = 0;
    question->limit = UDP_LEAST;
    if (question->flags & OPCODE) return NOTIMP;
    unsigned additional = get16(bytes + 10);
    if (get16(bytes + 4) != 1 || get16(bytes + 6) != 0 || get16(bytes + 8) != 0 || additional > 1) return FORMERR;

    const uint8_t *name = bytes + HEADER_BYTES, *end = bytes + length;
    size_t size = name_length(name, (size_t)(end - name));
    if (size == 0 || (size_t)(end - name) < size + 4) return FORMERR;
    const uint8_t *after = name + size + 4;
    question->type = get16(name + size);
    question->class = get16(name + size + 2);
    question->name.length = size;
    for (size_t k = 0; k < size; k++) question->name.bytes[k] = lower(name[k]);
    question->length = size + 4;
    memcpy(question->section, name, question->length);

    int code = additional == 1 ? read_extension(question, after, (size_t)(end - after)) : after == end ? NOERROR : FORMERR;
    if (code != NOERROR) return code;
    if (question->class != CLASS_IN) return REFUSED;
    return question->type == TYPE_OPT || (question->type >= TYPE_META_FIRST && question->type <= TYPE_META_LAST) ? NOTIMP : NOERROR;
}

static uint8_t *put_extension(uint8_t *at, const struct question *question, size_t limit, int code) {
    if (!question->extended) return at;
    *at++ = 0;
    at = put16(put16(at, TYPE_OPT), (unsigned)limit);
    at = put32(at, (uint32_t)code >> 4 << 24 | question->extension);
    return put16(at, 0);
}

static void put_header(uint8_t *out, uint16_t id, unsigned flags, const struct question *question) {
    put16(put16(out, id), flags);
    put16(out + 4, question->length > 0);
    memset(out + 6, 0, 4);
    put16(out + 10, question->extended);
    memcpy(out + HEADER_BYTES, question->section, question->length);
}

size_t question_write(const struct question *question, uint16_t id, uint8_t *out) {
    put_header(out, id, question->flags & (RD | AD | CD), question);
    return (size_t)(put_extension(out + HEADER_BYTES + question->length, question, question->limit, 0) - out);
}

bool question_is_answered(const struct question *question, uint16_t id, const uint8_t *bytes, size_t length) {
    if (length < HEADER_BYTES + question->length || get16(bytes) != id || !(get16(bytes + 2) & QR) || get16(bytes + 4) != 1) return false;
    size_t name = question->name.length;
    for (size_t k = 0; k < name; k++)
        if (lower(bytes[HEADER_BYTES + k]) != question->name.bytes[k]) return false;
    return memcmp(bytes + HEADER_BYTES + name, question->section + name, 4) == 0;
}

size_t answer_empty(const struct question *question, int code, bool truncated, uint8_t *out) {
    unsigned flags = QR | (question->flags & (OPCODE | RD)) | RA | (truncated ? TC : 0) | (code & 0xf);
    put_header(out, question->id, flags, question);
    return (size_t)(put_extension(out + HEADER_BYTES + question->length, question, UDP_MOST, code) - out);
}

// An answer that is being written.
struct writer {
    uint8_t *out, *at, *end;
    unsigned answers;
    bool full;
};

// A record of the name in the question; no resolver may keep it, as containers come and go.
static void put_record(struct writer *writer, unsigned type, const uint8_t *data, size_t length) {
    writer->full |= (size_t)(writer->end - writer->at) < 12 + length;
    if (writer->full) return;
    uint8_t *at = put16(writer->at, 0xc000 | HEADER_BYTES);
    at = put32(put16(put16(at, type), CLASS_IN), 0);
    at = put16(at, (unsigned)length);
    memcpy(at, data, length);
    writer->at = at + length;
    writer->answers++;
}

// Says how long it may be kept that there is nothing: not at all (RFC 2308). Its owner, its server and its mailbox are the root.
static void put_authority(struct writer *writer) {
    static const uint8_t record[1 + 10 + 22] = {[2] = TYPE_SOA, [4] = CLASS_IN, [10] = 22};
    memcpy(writer->at, record, sizeof record);
    writer->at += sizeof record;
    put16(writer->out + 8, 1);
}

// Where in a name another begins that it ends with, at the start of a label; -1: it does not.
static ssize_t find_ending(const struct name *name, const uint8_t *ending, size_t length) {
    for (size_t at = 0; name->bytes[at] != 0; at += 1 + name->bytes[at])
        if (name->length - at == length && memcmp(name->bytes + at, ending, length) == 0) return (ssize_t)at;
    return -1;
}

// The records of a name, or of localhost, of which every name below is one (RFC 6761, 6.3). `ours`: no other server is to be asked.
static const struct record *find_name(const struct view *view, const struct name *asked, bool *ours) {
    bool local = find_ending(asked, localhost, sizeof localhost) >= 0;
    const struct record *found = local ? table_named(view, localhost, sizeof localhost) : table_named(view, asked->bytes, asked->length);
    *ours = found || local || find_ending(asked, loopback, sizeof loopback) >= 0;
    return found;
}

// Reads labels of one to three digits, the last byte of the address first.
static bool read_v4(const struct name *name, struct address *address) {
    const uint8_t *at = name->bytes;
    for (int k = 3; k >= 0; k--, at += 1 + at[0]) {
        unsigned value = 0;
        if (at[0] < 1 || at[0] > 3 || (at[0] > 1 && at[1] == '0')) return false;
        for (size_t digit = 1; digit <= at[0]; digit++) {
            if (at[digit] < '0' || at[digit] > '9') return false;
            value = value * 10 + (at[digit] - '0');
        }
        if (value > UINT8_MAX) return false;
        address->bytes[k] = (uint8_t)value;
    }
    return (size_t)(at - name->bytes) + sizeof of_v4 == name->length;
}

static bool read_v6(const struct name *name, struct address *address) {
    if (name->length != 32 * 2 + sizeof of_v6) return false;
    for (size_t k = 0; k < 32; k++) {
        uint8_t length = name->bytes[2 * k], c = name->bytes[2 * k + 1];
        bool digit = c >= '0' && c <= '9';
        if (length != 1 || (!digit && !(c >= 'a' && c <= 'f'))) return false;
        address->bytes[15 - k / 2] |= (uint8_t)((digit ? c - '0' : c - 'a' + 10) << (k % 2 ? 4 : 0));
    }
    return true;
}

// The address that a question of type PTR names, if it names one.
static bool read_address(const struct name *name, struct address *address) {
    bool v4 = find_ending(name, of_v4, sizeof of_v4) > 0, v6 = find_ending(name, of_v6, sizeof of_v6) > 0;
    *address = (struct address){.length = v4 ? 4 : 16};
    return (v4 && read_v4(name, address)) || (v6 && read_v6(name, address));
}

// All addresses of the name, from another one each time, so that its containers take turns.
static void put_addresses(struct writer *writer, const struct view *view, const struct record *first, unsigned type) {
    static unsigned turn;
    uint8_t length = type == TYPE_A ? 4 : 16;
    unsigned count = 0, at = 0;
    for (const struct record *record = first; record; record = table_next_named(view, record)) count += record->address.length == length;
    if (count == 0) return;
    unsigned start = turn++ % count;
    for (unsigned pass = 0; pass < 2; pass++, at = 0)
        for (const struct record *record = first; record; record = table_next_named(view, record)) {
            if (record->address.length != length) continue;
            bool before = at++ < start;
            if (before == (pass == 1)) put_record(writer, type, record->address.bytes, length);
        }
}

size_t answer_from_table(const struct question *question, const struct view *view, size_t limit, bool others, uint8_t *out) {
    bool ours;
    struct address address;
    const struct record *named = find_name(view, &question->name, &ours), *addressed = NULL;
    if (!named && read_address(&question->name, &address)) addressed = table_addressed(view, &address);
    if (!named && !addressed && !ours && others) return 0;

    struct writer writer = {.out = out, .at = out + HEADER_BYTES + question->length};
    writer.end = out + limit - (question->extended ? OPT_BYTES : 0);
    put_header(out, question->id, 0, question);
    if (named && (question->type == TYPE_A || question->type == TYPE_AAAA)) put_addresses(&writer, view, named, question->type);
    if (question->type == TYPE_PTR)
        for (const struct record *record = addressed; record; record = table_next_addressed(view, record))
            put_record(&writer, TYPE_PTR, record->name, record->length);
    if (writer.answers == 0 && !writer.full) put_authority(&writer);
    unsigned code = named || addressed ? NOERROR : NXDOMAIN;
    put16(out + 2, QR | AA | RA | (question->flags & RD) | (writer.full ? TC : 0) | code);
    put16(out + 6, writer.answers);
    return (size_t)(put_extension(writer.at, question, UDP_MOST, 0) - out);
}
