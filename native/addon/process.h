// Starting the supervisor.
#pragma once

#include <sys/types.h>

// Starts the program at `path` from a sealed copy of it, in a session of its own, with `inherited` (count of them) as
// its descriptors 3 and up and the sealed copy behind them. Returns its pid with *pidfd, or -errno.
pid_t process_start(const char *path, char *const argv[], const int *inherited, int count, int *pidfd);
