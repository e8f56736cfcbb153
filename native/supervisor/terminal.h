// A pseudo-terminal of the container's own devpts.
#pragma once

#include "../common/failure.h"

// Opens one (after the pivot, or after having joined the container), gives its other end to `socket`, and makes it the
// standard streams of this process. The operation `controlling-terminal` makes it that of the process that executes.
int terminal_open(int socket, unsigned rows, unsigned columns, unsigned uid, struct failure *failure);
