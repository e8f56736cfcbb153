// The mounts that volumes are made of.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// A `filesystem` or a `tree` as a detached mount: returns its descriptor or -1. `layer_map` is the user namespace that translates
// the owners of a mapped tree.
int volume_filesystem(const struct operation *operation, struct failure *failure);
int volume_tree(const struct operation *operation, int layer_map, struct failure *failure);

// Drops what an ext4 at this path has not written yet, before its last unmount; other file systems stay as they are.
void volume_discard(const char *path);
