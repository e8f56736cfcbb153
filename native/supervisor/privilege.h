// The user, capabilities, limits and filters of a process. The plan has their order.
#pragma once

#include "../common/failure.h"
#include "plan.h"

int privilege_bounding(uint64_t kept, struct failure *failure);
int privilege_user(const struct operation *operation, struct failure *failure);
int privilege_capabilities(const struct operation *operation, struct failure *failure);
int privilege_no_new_privileges(struct failure *failure);
int privilege_apparmor(const union field *profile, struct failure *failure);

// Loads a BPF program, and sends its listener to `socket`, or to nobody if that is -1.
int privilege_seccomp(const struct operation *operation, int socket, struct failure *failure);
int privilege_rlimit(const struct operation *operation, struct failure *failure);
int privilege_keyring(struct failure *failure);

// Has the kernel kill this process when the supervisor dies. A change of user clears that (prctl(2)), so it is called again then.
// The pidfd tells whether the supervisor has died just before; getppid() cannot, as it is 0 across a pid namespace.
int privilege_die_with(int supervisor, struct failure *failure);
