// Mounts: made detached with the file-descriptor API, attached by descriptor, never by a path inside the root.
#pragma once

#include "failure.h"
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

// What goes into the root: each resolves its target with openat2(RESOLVE_IN_ROOT) below `root`. `source` and `null_fd`
// are what has been opened already, or -1.
int mount_filesystem(int root, const union field *fields, struct failure *failure);
int mount_bind(int root, int source, const union field *fields, struct failure *failure);
int mount_directory(int root, const char *path, unsigned mode, struct failure *failure);
int mount_symlink(int root, const char *target, const char *path, struct failure *failure);
int mount_mask(int root, int *empty, int null_fd, const char *null, const union field *paths, struct failure *failure);
int mount_readonly(int root, const union field *paths, struct failure *failure);
