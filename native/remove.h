// Removing a folder and all below it.
#pragma once

// Removes `path` and everything below it, without following a symbolic link and without leaving its filesystem, up to
// `budget` entries. Returns 0 when nothing is left, 1 when the budget ran out first, -1 with errno on failure.
int remove_tree(const char *path, long budget);
