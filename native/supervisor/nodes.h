// The device nodes that containers see.
#pragma once

#include "../common/failure.h"

// Mounts a tmpfs on `folder`, in this process's own mount namespace, with the standard nodes in it, read-only: containers
// share them by binds, and can neither change their modes nor make others beside them. In a user namespace, where no
// node can be made, each is a bind of the host's.
int nodes_make(const char *folder, int in_user_namespace, struct failure *failure);
