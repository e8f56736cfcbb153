// Removal of a folder and everything below it.
#pragma once

#include <fcntl.h>

// Removes `path`, in the folder `parent` or AT_FDCWD, and everything below it, up to `budget` entries. The time is linear in the
// number of entries. Does not follow symbolic links and does not leave the filesystem. Returns 0 when nothing is left, 1 when the
// budget ran out first, -1 with errno on failure.
int remove_tree(int parent, const char *path, long budget);
