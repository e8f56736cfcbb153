// Mounts: made detached with the file-descriptor API, attached by descriptor, never by a path inside the root.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// A composed root as a detached mount; returns its descriptor or -1. `lower` is in overlayfs' order, uppermost first; its
// owners are those that the user namespace `layer_map` (-1 for none) gives them.
int mount_overlay(const union field *lower, const char *upper, const char *work, const union field *options,
                  unsigned attributes, int layer_map, struct failure *failure);

// The same with the writable layer on a tmpfs of its own, whose upper folder gets `mode`, and the tmpfs's owner where
// there is a `layer_map`.
int mount_overlay_memory(const union field *lower, unsigned mode, const union field *tmpfs, const union field *options,
                         unsigned attributes, int layer_map, struct failure *failure);

// A detached copy of the tree at a host path.
int mount_clone(const char *path, unsigned attributes, int recursive, struct failure *failure);

// A root that is made already: a copy of it where the kernel can copy a detached mount (since Linux 6.15) or the
// mount is attached somewhere, else the mount itself.
int mount_reuse(int mount, struct failure *failure);

// Attaches the root over "/" of this mount namespace, for pivot to make it the root.
int mount_attach_root(int root, struct failure *failure);
int mount_pivot(int root, struct failure *failure);
int mount_root_readonly(struct failure *failure);

// A mount that is kept by its descriptor: paths below its target are resolved in it, whatever has become of the target.
struct pinned {
    const char *target;
    int mount;
};

// A root that is being composed.
struct root {
    int mount;
    size_t count;
    struct pinned pinned[8];
};

// What goes into the root: each resolves its target with openat2(RESOLVE_IN_ROOT), in the pinned mount that it is below,
// else in the root. `source` and `null_fd` are what has been opened already, or -1.
// A procfs that has been taken already is mounted, and -1 left in its place.
int mount_filesystem(struct root *root, int *proc, const union field *fields, struct failure *failure);
int mount_bind(struct root *root, int source, const union field *fields, struct failure *failure);
int mount_directory(const struct root *root, const char *path, unsigned mode, struct failure *failure);
int mount_symlink(const struct root *root, const char *target, const char *path, struct failure *failure);
int mount_mask(const struct root *root, int *empty, int null_fd, const union field *fields, struct failure *failure);
int mount_readonly(const struct root *root, const union field *fields, struct failure *failure);
