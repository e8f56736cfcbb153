// The copy of the supervisor's executable that containers execute (see init.h).
#pragma once

#include "../common/failure.h"

// Makes a copy of this executable on a read-only mount, so that no container can change its bytes, mode, owner or times. A container
// with an init reaches the file as /proc/1/exe. If the root of that container owned the file and could change its mode, no other
// container could execute it any more. Returns an O_PATH descriptor.
int program_copy(int executable, struct failure *failure);
