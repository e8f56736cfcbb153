// berth-unpack turns one OCI layer blob into a folder that overlayfs can take as a layer.
//
//   unpack.c         the program: arguments, confinement, the tar reader's loop, the report
//   unpack_source.c  the other thread: reads, hashes and decompresses the blob
//   unpack_tree.c    writes the entries, with the folder as the whole world
//
// Nothing here cleans up after a failure: fail() ends the process, and the folder is the caller's.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

// What a failure is about; the report spells these in lower case.
enum kind { CORRUPT, ESCAPE, UNSUPPORTED, LIMIT, IO, CONFINE };

// Writes the one line `error KIND ERRNO SYSCALL PATH MESSAGE`, drops whatever was reported before it, and exits
// with 1. For the main thread. `call` and `path` may be NULL, `error` 0.
__attribute__((noreturn, format(printf, 5, 6))) void fail(enum kind kind, int error, const char *call,
                                                          const char *path, const char *format, ...);

// Adds the line `KEY FIRST [SECOND]`, both percent-encoded, to the report of a success.
void report(const char *key, const char *first, const char *second);

// realloc and strndup that cannot return NULL: too little memory is a failure of kind LIMIT.
void *grow(void *memory, size_t size);
char *copy(const char *text, size_t length);

// ---- unpack_source.c

enum compression { NONE, GZIP, ZSTD };

struct totals {
    unsigned char digest[32]; // of the blob as it came
    unsigned char diffid[32]; // of the tar stream in it
    uint64_t bytes;           // length of the tar stream
};

// Loads what OpenSSL loads lazily. To call before the confinement: no file of the host can be opened after it.
void source_prepare(void);

// Starts the thread that reads fd 0. To call after the confinement: a thread inherits its creator's capabilities,
// and capset(2) reaches no other thread later.
void source_start(enum compression compression, uint64_t max_bytes);

// The next piece of the tar stream, valid until the next call; 0 at its end.
size_t source_next(const void **data);

// Reads what is left, so that the digests are those of the whole blob.
struct totals source_finish(void);

// ---- unpack_tree.c

struct member {
    const char *path; // as the tar has it
    const char *link; // the target of a symlink or a hard link
    mode_t type;      // S_IF*, or 0 for a hard link
    mode_t mode;      // within 07777
    uid_t uid;
    gid_t gid;
    struct timespec mtime;
    off_t size;
    dev_t device;
};

struct tree_options {
    bool trusted;      // mark opaque folders with trusted.overlay.opaque rather than user.overlay.opaque
    bool ignore_chown; // an owner that cannot be set is no error: a user namespace that maps a single id
};

// The process' root must be the folder to fill already.
void tree_start(struct tree_options options);
void tree_add(const struct member *member);

// Does what must wait for the last entry: links to later files, whiteouts, folder times.
void tree_finish(void);

// ---- unpack.c, for unpack_tree.c

// The next run of data of the current entry, false at its end. Between the runs are holes.
bool entry_data(const void **data, size_t *size, off_t *offset);

// The next extended attribute of the current entry that a layer may set, false after the last.
bool entry_xattr(const char **name, const void **value, size_t *size);
