// A pseudo-terminal of the container's own devpts.
#pragma once

#include "../common/failure.h"
#include "plan.h"

// Opens a terminal, after the pivot or after a join of the container, sends its master to `socket`, and makes it the standard streams
// of this process. The operation `controlling-terminal` makes it the controlling terminal of the process that executes.
int terminal_open(int socket, const struct operation *operation, struct failure *failure);
