#include "connection.h"
#include "../common/descriptor.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>

// A reply that waits for room in the socket.
struct queued {
    struct queued *next;
    struct reply reply;
    int fds[2];
};

static void watch(struct connection *connection, int operation, uint32_t wanted) {
    struct epoll_event event = {.events = wanted, .data.ptr = connection};
    epoll_ctl(connection->events, operation, connection->socket, &event);
}

struct connection *connection_make(int socket, int events, uint32_t slot) {
    struct connection *connection = malloc(sizeof *connection);
    if (!connection) abort();
    *connection = (struct connection){.socket = socket, .events = events, .slot = slot};
    connection->queue_end = &connection->queue;
    watch(connection, EPOLL_CTL_ADD, EPOLLIN);
    return connection;
}

// A reply with a failure carries no descriptors. If they cannot be sent, the JavaScript process gets the reason and releases the unit.
static bool send_now(int socket, struct reply *reply, const int *fds) {
    for (;;) {
        size_t count = reply->failure.error != 0 || fds[0] < 0 ? 0 : fds[1] < 0 ? 1 : 2;
        if (descriptors_send(socket, reply, sizeof *reply, fds, count) >= 0) return true;
        // Any other error means that the other end is gone, which the socket reports by itself.
        if (errno != ETOOMANYREFS) return errno != EAGAIN;
        // The kernel limits the descriptors in transit of one user to the number that a process may have open. Without root, the
        // processes in a container have the same user.
        fail(&reply->failure, "sendmsg");
    }
}

void connection_reply(struct connection *connection, struct reply *reply, int first, int second) {
    int fds[2] = {first, second};
    if (!connection || connection->socket < 0) return;
    if (!connection->queue && send_now(connection->socket, reply, fds)) return;
    struct queued *queued = malloc(sizeof *queued);
    if (!queued) abort(); // a lost reply would be a lost container
    *queued = (struct queued){.reply = *reply, .fds = {-1, -1}};
    for (int k = 0; k < 2; k++)
        if (fds[k] >= 0 && (queued->fds[k] = fcntl(fds[k], F_DUPFD_CLOEXEC, 3)) < 0) fail(&queued->reply.failure, "fcntl");
    if (!connection->queue) watch(connection, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    *connection->queue_end = queued;
    connection->queue_end = &queued->next;
}

static void drop_first(struct connection *connection) {
    struct queued *first = connection->queue;
    if (!(connection->queue = first->next)) connection->queue_end = &connection->queue;
    for (int k = 0; k < 2; k++) close_descriptor(&first->fds[k]);
    free(first);
}

void connection_flush(struct connection *connection) {
    while (connection->queue) {
        if (!send_now(connection->socket, &connection->queue->reply, connection->queue->fds)) return;
        drop_first(connection);
    }
    watch(connection, EPOLL_CTL_MOD, EPOLLIN);
}

void connection_close(struct connection *connection) {
    while (connection->queue) drop_first(connection);
    // A child that has not executed yet has a copy of the socket, so a close alone does not end the watch (epoll(7)).
    epoll_ctl(connection->events, EPOLL_CTL_DEL, connection->socket, NULL);
    close_descriptor(&connection->socket);
}
