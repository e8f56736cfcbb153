// berth-unpack turns one OCI layer blob into a folder that overlayfs can take as a layer.
//
//   unpack.c         the program: arguments, confinement, the tar reader's loop, the report
//   unpack_source.c  the other thread: reads, hashes and decompresses the blob
//   unpack_path.c    resolves paths in the folder; remove.c removes what is in the way
//   unpack_tree.c    writes the entries, with the folder as the whole world
//
// Nothing here cleans up after a failure: fail() ends the process, and the folder is the caller's.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
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

// Counts a file or folder that is made; more than allowed are a failure of kind LIMIT.
void count_entry(void);

// Counts lookups of folders beyond the one call that most paths need: more than are in proportion to the tar's length
// are a failure of kind LIMIT.
void spend(size_t lookups);

// Gives the processor time for another piece of work; see allow_time() in unpack.c.
void allow_time(void);

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

// ---- unpack_path.c

enum slot { OWN, TARGET }; // the folder of the entry at hand, and that of a hard link's target

// An open folder, kept for the next entry: a tar names the children of a folder one after the other.
struct folder {
    int fd; // O_PATH
    char *asked, *path;
    bool stale;
};

extern const char *blame; // the path a failure names

// fail() with errno and the path to blame.
__attribute__((noreturn)) void fail_io(const char *call);

#define cleanup_free __attribute__((cleanup(free_text)))
static inline void free_text(char **text) { free(*text); }

char *join(const char *folder, const char *name);

// Cuts `path` at its last slash, which becomes the end of *folder.
const char *split(char *path, const char **folder);

// The path without leading, doubled and trailing slashes and without `.`: "" is the root. An absolute path is taken
// from the root, as every unpacker does; `..` is refused even where it would stay inside.
char *clean(const char *raw, const char *what);

// The last entry of a name wins: removes what an earlier one made.
void clear_way(int dir, const char *name);

// Opens the process' root, from which every path goes, and returns it.
int path_start(void);

// The folder at `path`, valid until the slot's next use; NULL and errno where there is none. `create` makes
// what is missing of it.
const struct folder *folder_at(enum slot slot, const char *path, bool create);

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

// ---- unpack_tree.c, for unpack_path.c

// A folder without an entry: 0755 and root's, until the caller gives it what a lower layer says.
void make_implicit(int dir, const char *name, const char *path);

// ---- unpack.c, for unpack_tree.c

// The next run of data of the current entry, false at its end. Between the runs are holes.
bool entry_data(const void **data, size_t *size, off_t *offset);

// The next extended attribute of the current entry that a layer may set, false after the last.
bool entry_xattr(const char **name, const void **value, size_t *size);
