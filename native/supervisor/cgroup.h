// cgroups as folders: made, written, joined, emptied and removed. Which ones, and what is written, is the plan's.
#pragma once

#include "../common/failure.h"

int cgroup_create(const char *path, struct failure *failure);
int cgroup_write(const char *file, const char *value, size_t length, struct failure *failure);

// Has an eBPF program (Linux 4.15) decide which devices may be opened from the cgroup, in place of what decided before.
int cgroup_devices(const char *path, const void *program, size_t length, struct failure *failure);

// A descriptor by which a child enters: the folder for CLONE_INTO_CGROUP on version 2, its `tasks` file on version 1.
int cgroup_entrance(const char *path, int version, struct failure *failure);

// Kills whatever is in the cgroup and below it: at once where there is cgroup.kill (Linux 5.14), else one by one. What the
// freezer of version 1 holds is let go, as it would not die otherwise.
void cgroup_kill(const char *path);

// Removes the cgroup and those that its members have made below it; -1 with errno EBUSY while something is in it.
int cgroup_remove(const char *path);
