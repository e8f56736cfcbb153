// System calls as root of a user namespace that this process's user has made (a descriptor): with all capabilities over
// files of the ids that are mapped there, and none over any other. What is opened is this process's. Each returns what the
// system call does, or -errno.
#pragma once

#include <stddef.h>
#include <stdint.h>

// openat2(2), which makes nothing.
long open_as_root(int user_namespace, int folder, const char *path, uint64_t flags, uint64_t resolve);

// getxattr(2).
long xattr_as_root(int user_namespace, const char *path, const char *name, void *value, size_t size);
