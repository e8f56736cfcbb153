// The one epoll thread: tells JavaScript, once, when a descriptor is ready.
#pragma once

#include <node_api.h>

struct loop;

// Starts the thread. `ready` is called on JavaScript's thread with (token, events) for each watch that has come in.
// NULL with errno where it cannot.
struct loop *loop_start(napi_env env, napi_value ready);

// Watches a descriptor, once, for events as of epoll_ctl(2); the token comes back with them. Returns 0 or -errno.
int loop_watch(struct loop *loop, int fd, uint32_t events, uint64_t token);

// Ends the watch of a descriptor that is about to be closed.
void loop_forget(struct loop *loop, int fd);

// Closes a descriptor on the loop's thread: the last one of a mount has a file system to take down. -1 where it cannot.
int loop_close(struct loop *loop, int fd);

// Whether the JavaScript process is kept alive by the loop.
void loop_hold(struct loop *loop, int held);
