// Sockets of a container's network namespace (network_namespaces(7)): a socket stays in the namespace that it was made in,
// whoever has its descriptor. lib/internal/network/ has what is done with them.
#include "addon.h"
#include "as_root.h"
#include "../common/descriptor.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

// This thread enters the namespace for the one call. Not to come back would put every later socket of the program into the
// container, so the program ends rather. The environment has the way back: to open it for each call would take a third of the call.
static int socket_of_process(int home, int pidfd, int family, int type) {
    if (home < 0) return -ENOENT;
    if (setns(pidfd, CLONE_NEWNET) < 0) return -errno;
    int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int result = fd < 0 ? -errno : fd;
    if (setns(home, CLONE_NEWNET) < 0) abort();
    return result;
}

// socketIn(namespace, pidfd, family, type): a new socket(2), which does not block, in the network namespace of a process, or in that
// which a descriptor leads to. By the root of a user namespace, where this process itself may not enter; -1 is none. A pidfd of -1: this
// process's own.
static napi_value socket_in(struct call *call, napi_env env) {
    int namespace, pidfd, family, type;
    if (!take_fd(call, 0, &namespace) || !take_fd(call, 1, &pidfd) || !take_fd(call, 2, &family) || !take_fd(call, 3, &type)) return misuse(env);
    if (pidfd < 0) {
        int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        return opened(call, fd < 0 ? -errno : fd);
    }
    return opened(call, namespace < 0 ? socket_of_process(call->environment->home, pidfd, family, type) : socket_as_root(namespace, pidfd, family, type));
}
FUNCTION(socket_in)

// connect(fd, address): connect(2) to a struct sockaddr; -EINPROGRESS where it is not known yet.
static napi_value connect_socket(struct call *call, napi_env env) {
    int fd;
    uint8_t *address;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &address, &length)) return misuse(env);
    return number(env, connect(fd, (struct sockaddr *)address, (socklen_t)length) < 0 ? -errno : 0);
}
FUNCTION(connect_socket)

// connected(fd): how a connect that was in progress came out: 0, -errno, or -EINPROGRESS.
static napi_value connect_result(struct call *call, napi_env env) {
    int fd, error = 0;
    socklen_t length = sizeof error;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    if (poll(&writable, 1, 0) == 0) return number(env, -EINPROGRESS);
    return number(env, getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 ? -errno : -error);
}
FUNCTION(connect_result)

// bind(fd, address): bind(2), also where connections of an earlier socket there are not over yet; of IPv6 alone. Two datagram sockets
// with SO_REUSEADDR would share the address.
static napi_value bind_socket(struct call *call, napi_env env) {
    int fd;
    const int on = 1;
    int type = 0;
    socklen_t size = sizeof type;
    uint8_t *address;
    size_t length;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &address, &length)) return misuse(env);
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (type == SOCK_STREAM) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    return number(env, bind(fd, (struct sockaddr *)address, (socklen_t)length) < 0 ? -errno : 0);
}
FUNCTION(bind_socket)

// listen(fd): listen(2), with as long a queue as the kernel allows (net.core.somaxconn).
static napi_value listen_socket(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    return number(env, listen(fd, INT_MAX) < 0 ? -errno : 0);
}
FUNCTION(listen_socket)

// accept(fd): accept4(2) of a connection, which does not block.
static napi_value accept_socket(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return opened(call, accepted < 0 ? -errno : accepted);
}
FUNCTION(accept_socket)

// socketAddress(fd, address): getsockname(2): as many bytes as it returns.
static napi_value socket_address(struct call *call, napi_env env) {
    int fd;
    uint8_t *address;
    size_t room;
    if (!take_fd(call, 0, &fd) || !take_bytes(call, 1, &address, &room)) return misuse(env);
    socklen_t length = (socklen_t)room;
    return number(env, getsockname(fd, (struct sockaddr *)address, &length) < 0 ? -errno : (int64_t)length);
}
FUNCTION(socket_address)

// shutdown(fd): no more bytes follow (SHUT_WR of shutdown(2)).
static napi_value end_socket(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    return number(env, shutdown(fd, SHUT_WR) < 0 ? -errno : 0);
}
FUNCTION(end_socket)

// disown(fd): the runtime closes it from now on, and not the end of this environment.
static napi_value disown(struct call *call, napi_env env) {
    int fd;
    if (!take_fd(call, 0, &fd)) return misuse(env);
    return number(env, environment_note(call->environment, fd, NOT_OURS));
}
FUNCTION(disown)
