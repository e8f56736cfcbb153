// What pid namespaces that several containers are in ask for.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// An empty read-only mount as this process's root: in place of all mounts of its mount namespace where `path` is "/", else
// at `path`. A procfs of this process's pid namespace lies over it, if asked for. For a process that others in its pid
// namespace see, and which has nothing to show them.
int pid_namespace_empty_root(const char *path, int proc, struct failure *failure);

// Joins the pid namespace of a process for its own children (pid_namespaces(7)), and returns a copy of the procfs that this
// process has at one of `paths`. A new one would be of the caller's own pid namespace, which it cannot leave.
int pid_namespace_proc(int pidfd, const union field *paths, struct failure *failure);
