// berth-unpack turns one OCI layer blob into a folder that overlayfs can use as a layer.
//
//   unpack.c  the program: arguments, confinement, the tar reader's loop, the report
//   source.c  the second thread: reads, hashes and decompresses the blob
//   path.c    resolves paths in the folder; remove.c removes an earlier entry of a name
//   tree.c    writes the entries; the folder is the root of the process
//
// There is no cleanup after a failure: fail() ends the process, and the caller removes the folder.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>

// The kind of a failure; the report has these in lower case.
enum kind { CORRUPT, ESCAPE, UNSUPPORTED, LIMIT, IO, CONFINE, FORMAT };

// Writes the line `error KIND ERRNO SYSCALL PATH MESSAGE`, drops all earlier lines of the report, and exits with 1. Only the main thread
// may call it. `call` and `path` may be NULL, `error` may be 0.
__attribute__((noreturn, format(printf, 5, 6))) void fail(enum kind kind, int error, const char *call,
                                                          const char *path, const char *format, ...);

// Adds the line `KEY FIRST [SECOND]`, with both values percent-encoded, to the report of a success.
void report(const char *key, const char *first, const char *second);

// Counts a new file or folder; more than the maximum are a failure of kind LIMIT.
void count_entry(void);

// Counts lookups of folders beyond the one call that most paths need. A number out of proportion to the length of the tar is a failure of
// kind LIMIT.
void spend(size_t lookups);

// Allows processor time for another piece of work; see allow_time() in unpack.c.
void allow_time(void);

// realloc and strndup that do not return NULL: a lack of memory is a failure of kind LIMIT.
void *grow(void *memory, size_t size);
char *copy(const char *text, size_t length);

// ---- source.c

enum compression { NONE, GZIP, ZSTD, XZ, BZIP2 }; // layers have the first three

struct totals {
    unsigned char digest[32]; // of the blob
    unsigned char diffid[32]; // of the tar stream in the blob
    uint64_t bytes;           // length of the tar stream
};

// Starts the thread that reads fd 0. Called after the confinement: a thread inherits the capabilities of its creator, and a later
// capset(2) does not affect it.
void source_start(enum compression compression, uint64_t max_bytes);

// The next piece of the tar stream, valid until the next call; 0 at its end.
size_t source_next(const void **data);

// Reads the rest, so that the digests are those of the whole blob.
struct totals source_finish(void);

// ---- path.c

enum slot { OWN, TARGET }; // the folder of the current entry, and the folder of a hard link's target

// An open folder, kept for the next entry: in a tar, the children of a folder usually follow each other.
struct folder {
    int fd; // O_PATH
    char *asked, *path;
    bool stale;
};

extern const char *blame; // the path that a failure reports

// fail() with errno and `blame`.
__attribute__((noreturn)) void fail_io(const char *call);

#define cleanup_free __attribute__((cleanup(free_text)))
static inline void free_text(char **text) { free(*text); }

char *join(const char *folder, const char *name);

// Cuts `path` at its last slash, which becomes the end of *folder.
const char *split(char *path, const char **folder);

// The path without `.` and without leading, doubled and trailing slashes; "" is the root. An absolute path starts at the root, as in
// every unpacker. `..` is refused even if it would stay inside.
char *clean(const char *raw, const char *what);

// Removes the file of an earlier entry with this name: the last entry of a name wins.
void clear_way(int dir, const char *name);

// Opens the process's root, where every path starts, and returns it.
int path_start(void);

// The folder at `path`, valid until the next use of the slot, or NULL with errno. `create` makes missing folders.
const struct folder *folder_at(enum slot slot, const char *path, bool create);

// ---- tree.c

struct member {
    const char *path; // as in the tar
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
    bool trusted;      // mark opaque folders with trusted.overlay.opaque, else with user.overlay.opaque
    bool plain;        // an archive that is no layer: names of whiteouts are refused
    bool ignore_chown; // ignore an owner that cannot be set, in a user namespace that maps a single id
};

// Called when the folder to fill is the root of the process.
void tree_start(struct tree_options options);
void tree_add(const struct member *member);

// Does the work that must wait for the last entry: links to later files, whiteouts, times of folders.
void tree_finish(void);

// ---- tree.c, for path.c

// Makes a folder that has no entry, with mode 0755 and owned by root. The caller later copies the metadata of a lower layer.
void make_implicit(int dir, const char *name, const char *path);

// ---- unpack.c, for tree.c

// The next run of data of the current entry, or false at its end. There are holes between the runs.
bool entry_data(const void **data, size_t *size, off_t *offset);

// The next extended attribute of the current entry that a layer may set, or false after the last.
bool entry_xattr(const char **name, const void **value, size_t *size);
