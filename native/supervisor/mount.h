// Mounts: made detached with the file-descriptor API, attached by descriptor, never by a path inside the root.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// An `overlay` or an `overlay-memory` as a detached mount: returns its descriptor or -1. The layers are in the order of overlayfs,
// uppermost first. The user namespace `layer_map` (or -1) translates the owners of the lower layers; the writable layer in memory
// then gets the owner of its tmpfs.
int mount_overlay(const struct operation *operation, int layer_map, struct failure *failure);
int mount_overlay_memory(const struct operation *operation, int layer_map, struct failure *failure);

// A detached copy of the tree at a path of the host.
int mount_clone(const char *path, unsigned attributes, int recursive, struct failure *failure);
int mount_root_bind(const struct operation *operation, struct failure *failure);

// A copy of an existing root. A kernel before Linux 6.15 cannot copy a detached mount; the root is then the mount itself.
int mount_reuse(int mount, struct failure *failure);

// Attaches the root over "/" of this mount namespace, for mount_pivot to make it the root.
int mount_attach_root(int root, struct failure *failure);
int mount_pivot(int root, struct failure *failure);
int mount_root_readonly(struct failure *failure);

// If the process is in a chroot(2), makes its root the root of this mount namespace, which must belong to this process alone.
// Otherwise pivot_root(2) fails, or a container with CAP_SYS_CHROOT reaches the host's root above its own.
int mount_leave_chroot(struct failure *failure);

// A mount that is kept by its descriptor: paths below its target are resolved in it, even if the target has been replaced.
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

// The content of the root. Each function resolves its target with openat2(RESOLVE_IN_ROOT), in the pinned mount above it, else in
// the root. `source` and `null_fd` are descriptors that were opened beforehand, or -1. `proc` is a procfs that `take-proc` has
// copied, or -1; it is mounted instead of a new one, and replaced by -1.
int mount_filesystem(struct root *root, int *proc, const struct operation *operation, struct failure *failure);
int mount_bind(struct root *root, int source, const struct operation *operation, struct failure *failure);
// Attaches a mount that the supervisor has made, and closes its descriptor.
int mount_place(struct root *root, int mount, const char *path, struct failure *failure);
int mount_directory(const struct root *root, const char *path, unsigned mode, struct failure *failure);
// Makes what is missing of the folders and the empty files, for mounts. Leaves out what cannot be made.
void mount_targets(int root, const struct operation *operation);
// Makes files in a folder and mounts each at its target. A symbolic link at a target is not followed: it is mounted over.
int mount_files(const struct root *root, const struct operation *operation, struct failure *failure);
int mount_symlink(const struct root *root, const char *target, const char *path, struct failure *failure);
int mount_mask(const struct root *root, int *empty, int null_fd, const struct operation *operation, struct failure *failure);
int mount_readonly(const struct root *root, const struct operation *operation, struct failure *failure);
