// Operations for a pid namespace that several containers share.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// Makes an empty read-only mount the root of this process: in place of all mounts of its mount namespace if `path` is "/", else at
// `path`. With `proc`, a procfs of this process's pid namespace covers it. The others in the pid namespace see this process, and
// find nothing in its root.
int pid_namespace_empty_root(const char *path, int proc, struct failure *failure);

// Joins the pid namespace of the process `pidfd`, for later children (pid_namespaces(7)), and returns a copy of the procfs that this
// process has at one of `paths`. A new procfs would show the caller's own pid namespace, which the caller cannot leave.
int pid_namespace_proc(int pidfd, const union field *paths, struct failure *failure);
