// Starts the supervisor.
#pragma once

#include <sys/types.h>

// Starts the program at `path` from a sealed copy, in a session of its own. Its descriptors from 3 on are the `count` ones of
// `inherited`, then the sealed copy. Returns its pid with *pidfd, or -errno.
pid_t process_start(const char *path, char *const argv[], const int *inherited, int count, int *pidfd);
