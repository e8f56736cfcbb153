// The supervisor's executable as containers execute it (see init.h).
#pragma once

#include "../common/failure.h"

// A copy of this executable that no container can change: nothing of it can be written, and neither can its mode, its owner or
// its times, as its mount is read-only. A container with an init reaches it as /proc/1/exe, and where its root is the file's
// owner it could otherwise make it one that nobody can execute. Returns an O_PATH descriptor.
int program_copy(int executable, struct failure *failure);
