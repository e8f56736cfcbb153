// The device nodes that containers see.
#pragma once

#include "../common/failure.h"

// Mounts a read-only tmpfs with the standard nodes on `folder`, in this process's own mount namespace. Containers share the nodes by
// binds, and can neither change their modes nor make others beside them. In a user namespace, which allows no mknod(2), each node is
// a bind of the host's.
int nodes_make(const char *folder, int in_user_namespace, struct failure *failure);
