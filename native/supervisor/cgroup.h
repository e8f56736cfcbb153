// cgroups as folders: makes, writes, joins, empties and removes those that the plan names.
#pragma once

#include "../common/failure.h"

int cgroup_create(const char *path, struct failure *failure);
int cgroup_write(const char *file, const char *value, size_t length, struct failure *failure);

// Replaces the eBPF program (Linux 4.15) that decides which devices the members of the cgroup may open.
int cgroup_devices(const char *path, const void *program, size_t length, struct failure *failure);

// Opens the descriptor by which a child enters: the folder for CLONE_INTO_CGROUP on version 2, its `tasks` file on version 1.
int cgroup_entrance(const char *path, int version, struct failure *failure);

// Kills all processes of the cgroup and below it: at once if there is cgroup.kill (Linux 5.14), else one by one. Thaws a cgroup of
// version 1, whose processes would not die otherwise.
void cgroup_kill(const char *path);

// Removes the cgroup and those that its members have made below it. Returns -1 with EBUSY while a process is in it.
int cgroup_remove(const char *path);
