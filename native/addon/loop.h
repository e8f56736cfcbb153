// The epoll thread: notifies JavaScript once when a descriptor is ready.
#pragma once

#include <node_api.h>

struct loop;

// Starts the thread. For each watch that has fired, `ready` is called on JavaScript's thread with (token, events). Returns NULL with
// errno on failure.
struct loop *loop_start(napi_env env, napi_value ready);

// Watches a descriptor, once, for events of epoll_ctl(2); the token is passed back with them. Returns 0 or -errno.
int loop_watch(struct loop *loop, int fd, uint32_t events, uint64_t token);

// Ends the watch of a descriptor that is about to be closed.
void loop_forget(struct loop *loop, int fd);

// Closes a descriptor on the loop's thread: the close of the last one of a mount takes down a file system. Returns -1 on failure.
int loop_close(struct loop *loop, int fd);

// Sets whether the loop keeps the JavaScript process alive.
void loop_keep_alive(struct loop *loop, int alive);
