// berth-pack turns the writable layer of an overlay into the blob of an OCI image layer: a compressed tar.
//
//   pack.c    the program: arguments, confinement, the walk through the layer
//   member.c  the tar's headers, in the pax format of pax(1)
//   sink.c    takes the tar: hashes it, and compresses, hashes and writes it in a second thread
//
// There is no cleanup after a failure: fail() ends the process, and the caller removes the blob.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

// The kind of a failure; the report has these in lower case. IO is about the layer's files, STORAGE about the blob.
enum kind { UNSUPPORTED, HOLES, LIMIT, IO, STORAGE, CONFINE };

// Writes the line `error KIND ERRNO SYSCALL PATH MESSAGE`, with the path of the entry at work, and exits with 1. Only the main thread may
// call it.
__attribute__((noreturn)) void fail(enum kind kind, int error, const char *call, const char *message);

// fail() with errno.
__attribute__((noreturn)) void fail_io(const char *call);

// realloc that does not return NULL.
void *grow(void *memory, size_t size);

// ---- member.c

// An extended attribute. The value belongs to whoever made it.
struct attribute {
    const char *name;
    const void *value;
    size_t size;
};

struct member {
    const char *path; // without a slash at the end
    const char *link; // the target of a symlink or hard link, else ""
    char type;        // '0' file, '1' hard link, '2' symlink, '3' and '4' devices, '5' folder, '6' fifo
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
    off_t size;
    dev_t device;
    const struct attribute *attributes; // sorted by name
    size_t attribute_count;
};

// Writes the headers of a member.
void write_header(const struct member *member);

// ---- sink.c

enum compression { NONE, GZIP, ZSTD };

struct totals {
    unsigned char digest[32]; // of the blob
    unsigned char diffid[32]; // of the tar
    uint64_t size;            // of the blob
    uint64_t bytes;           // of the tar
};

// Starts the thread that writes the blob to fd 0. Called after the confinement: a thread inherits the capabilities of its creator.
void sink_start(enum compression compression, uint64_t max_bytes);

// Room for the next bytes of the tar, so that files are read into it; at least one byte.
unsigned char *sink_room(size_t *room);

// Adds bytes that have been put into the room.
void sink_take(size_t length);

void sink_write(const void *bytes, size_t length);
void sink_zeros(uint64_t length);

// Fills the last block, whose members are padded to 512 bytes.
void sink_pad(uint64_t size);

struct totals sink_finish(void);
