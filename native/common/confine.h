// Confinement of the programs that write layers. Each function returns NULL, or the name of the system call that failed, with errno.
#pragma once

#include <stdbool.h>
#include <stdint.h>

// Makes the folder at `path` the root of a mount namespace that has nothing else; with `recursive`, the mounts below it as well. The
// process has no network then.
const char *confine_root(const char *path, bool recursive);

// Gives up all capabilities but those that writing a layer takes. `trusted` keeps the one for attributes trusted.* (xattr(7)).
const char *confine_capabilities(bool trusted);
