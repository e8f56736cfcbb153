// Messages of netlink(7) that TypeScript has encoded (lib/internal/network/netlink.ts), and their acknowledgements.
#pragma once

#include "../common/failure.h"

#include <sys/types.h>

#define NO_PID (-1) // no message names a process

// Sends messages over a netlink socket of any network namespace, and reads an acknowledgement for each that asks for one, which the kernel
// has ready by then: nothing is waited for. `pid` is written at `pid_at` first, unless that is NO_PID. The syscall of a failure is `netlink(N)`,
// with the number of the message, counted from 0, and its text is what the kernel says about it.
int netlink_request(int socket, void *messages, size_t length, int64_t pid_at, pid_t pid, struct failure *failure);

// The same in this process's own network namespace, over a socket of its own: NETLINK_ROUTE or NETLINK_NETFILTER.
int netlink_request_here(int protocol, void *messages, size_t length, struct failure *failure);
