// Removing a folder and all below it.
#pragma once

#include <fcntl.h>

// Removes `path`, in the folder `parent` or AT_FDCWD, and everything below it, in time linear in that, without following a symbolic link and without leaving its filesystem, up to
// `budget` entries. Returns 0 when nothing is left, 1 when the budget ran out first, -1 with errno on failure.
int remove_tree(int parent, const char *path, long budget);
