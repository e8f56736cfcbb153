// System calls as root of a user namespace that this process's user has made (a descriptor): with all capabilities over
// files of the ids that are mapped there, and none over any other. What is opened or made is this process's user's. None
// of them waits for anybody, as this process does so meanwhile. Each returns what the system call does, or -errno.
#pragma once

#include <stddef.h>
#include <stdint.h>

// openat2(2), with O_NONBLOCK where it opens for more than O_PATH.
long open_as_root(int user_namespace, int folder, const char *path, uint64_t flags, uint64_t resolve, uint64_t mode);

// getxattr(2).
long xattr_as_root(int user_namespace, const char *path, const char *name, void *value, size_t size);

// A new inotify(7) of what is at a path, which does not block.
long watch_as_root(int user_namespace, const char *path, uint32_t mask);

// A new socket(2) in the network namespace of a process, given by its pidfd, which does not block.
long socket_as_root(int user_namespace, int pidfd, int family, int type);

// The numbers are those of lib/internal/files/namespaceRoot.ts. What `name` is in `folder`, `text` is in `other`. The last four are of
// a path, which is followed.
enum change {
    CHANGE_MKDIR,   // a: the mode
    CHANGE_UNLINK,  // a: flags
    CHANGE_RENAME,  // to `text` in `other`
    CHANGE_LINK,    // the same
    CHANGE_SYMLINK, // to `text`
    CHANGE_MODE,    // a: the mode
    CHANGE_OWNER,   // a, b: the ids, of the user namespace; -1 for none
    CHANGE_TIMES,   // a, b: of access and modification, microseconds
    CHANGE_NOTHING, // access(2), a: the mode
};

long change_as_root(int user_namespace, enum change change, int folder, const char *name, int other, const char *text, int64_t a, int64_t b);
