// Who the process is and what it may do: users, capabilities, limits, seccomp. The order is the plan's.
#pragma once

#include "../common/failure.h"
#include "plan.h"

int privilege_bounding(uint64_t kept, struct failure *failure);
int privilege_user(const union field *fields, struct failure *failure);
int privilege_capabilities(const union field *fields, struct failure *failure);
int privilege_no_new_privileges(struct failure *failure);
int privilege_apparmor(const union field *profile, struct failure *failure);

// Loads a BPF program: fields of the plan, and the socket that its listener is sent to, or -1.
int privilege_seccomp(const union field *fields, int socket, struct failure *failure);
int privilege_rlimit(const union field *fields, struct failure *failure);
int privilege_keyring(struct failure *failure);

// Dies with the supervisor, from here on; to be called again after a change of user, which clears it (prctl(2)).
// A supervisor that died just before is seen by its pidfd, as getppid() is 0 across a pid namespace.
int privilege_die_with(int supervisor, struct failure *failure);
