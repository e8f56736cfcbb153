// Messages of the DNS: the question that a container asks, and the answer from the table (RFC 1035, 6891).
#pragma once

#include "table.h"

// A longer question is not read: one has 12 + 259 bytes, and its OPT record is short.
#define QUESTION_MAX_BYTES 1024
#define ANSWER_MAX_BYTES 65535
#define HEADER_BYTES 12
#define SECTION_MAX_BYTES (NAME_MAX_BYTES + 4)

enum { NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 16 };

struct question {
    uint16_t id, flags, type, class;
    struct name name; // in lower case
    // The question as it was asked: its letters may be large and small at random, and the answer repeats them.
    uint8_t section[SECTION_MAX_BYTES];
    size_t length;
    bool extended; // with an OPT record, which the answer then has too
    uint32_t extension; // its flags
    size_t limit;       // bytes of an answer by UDP
};

// Reads a message of a container. A positive result is the code of an error to answer with; a negative one: there is no answer.
int question_read(struct question *question, const uint8_t *bytes, size_t length);

// Writes the same question as a message of this id; the number of its bytes, at most QUESTION_MAX_BYTES.
size_t question_write(const struct question *question, uint16_t id, uint8_t *out);

// Whether a message is the answer to the question under this id, and no other's.
bool question_is_answered(const struct question *question, uint16_t id, const uint8_t *bytes, size_t length);

// Writes an answer without records; `truncated` tells the container to ask by TCP.
size_t answer_empty(const struct question *question, int code, bool truncated, uint8_t *out);

// Writes the answer from the names that the asker sees, of at most `limit` bytes; 0 where only others may know one.
size_t answer_from_table(const struct question *question, const struct view *view, size_t limit, bool others, uint8_t *out);
