// System calls as root of a user namespace (a descriptor) that this process's user has made: with all capabilities over files whose
// owners the namespace maps, and none over any other. New files belong to this process's user. None of the calls blocks, as this
// process waits for it. Each function returns the result of the system call, or -errno.
#pragma once

#include <stddef.h>
#include <stdint.h>

// openat2(2), with O_NONBLOCK unless with O_PATH.
long open_as_root(int user_namespace, int folder, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode);

// getxattr(2).
long xattr_as_root(int user_namespace, const char *path, const char *name, void *value, size_t size);

// A new non-blocking inotify(7) that watches the file at a path.
long watch_as_root(int user_namespace, const char *path, uint32_t mask);

// A new socket(2) in the network namespace of a process, given by its pidfd, which does not block.
long socket_as_root(int user_namespace, int pidfd, int family, int type);

// lib/internal/files/namespaceRoot.ts has the same numbers; test/unit/SharedNumbers.test.ts compares the two. A change takes `name` in
// `folder`, and some take `text` in `other`. The last four take `name` as a path, and follow links.
enum change {
    CHANGE_MKDIR,   // a: the mode
    CHANGE_UNLINK,  // a: flags
    CHANGE_RENAME,  // to `text` in `other`
    CHANGE_LINK,    // to `text` in `other`
    CHANGE_SYMLINK, // to `text`
    CHANGE_MODE,    // a: the mode
    CHANGE_OWNER,   // a, b: uid and gid in the user namespace; -1 leaves one as it is
    CHANGE_TIMES,   // a, b: times of access and modification in microseconds
    CHANGE_NOTHING, // access(2), a: the mode
};

long change_as_root(int user_namespace, enum change which, int folder, const char *name, int other, const char *text, int64_t a, int64_t b);
