#include "server.h"
#include "../common/util.h"
#include "allowed.h"
#include "forward.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

// A container that floods its socket gets this many answers before others have their turn.
#define DATAGRAMS_MAX 16
#define IDLE_MS 10000
// Where a connection cannot be accepted, as there are no descriptors or no memory left, the next try is after this time.
#define PAUSE_MS 50

static struct server *servers;
static uint8_t answer[ANSWER_MAX_BYTES];

static bool is_socket(int fd, int type, int listens) {
    int its_type = 0, its_listens = 0;
    socklen_t length = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &its_type, &length) < 0 || its_type != type) return false;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &its_listens, &length) == 0 && its_listens == listens;
}

void server_open(uint32_t id, const struct view *view, int udp, int listener) {
    cleanup_close int datagrams = udp, connections = listener;
    struct server *server = is_socket(udp, SOCK_DGRAM, 0) && is_socket(listener, SOCK_STREAM, 1) ? calloc(1, sizeof *server) : NULL;
    if (!server) return;
    server_close(id);
    fcntl(udp, F_SETFL, O_NONBLOCK);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    *server = (struct server){.udp_kind = WATCHED_UDP, .listener_kind = WATCHED_LISTENER, .id = id, .view = *view, .udp = udp, .listener = listener, .next = servers};
    for (size_t k = 0; k < CONNECTIONS_MAX; k++)
        server->connections[k] = (struct connection){.kind = WATCHED_CONNECTION, .fd = -1, .server = server};
    if (!watch(udp, &server->udp_kind, EPOLLIN) || !watch(listener, &server->listener_kind, EPOLLIN)) {
        unwatch(udp);
        free(server);
        return;
    }
    datagrams = connections = -1;
    servers = server;
}

void server_see(uint32_t id, const struct view *view) {
    for (struct server *server = servers; server; server = server->next)
        if (server->id == id && !server->removed) server->view = *view;
}

static void close_connection(struct connection *connection) {
    if (connection->fd < 0) return;
    forward_forget(connection->server, connection);
    close_descriptor(&connection->fd);
}

void server_close(uint32_t id) {
    for (struct server *server = servers; server; server = server->next) {
        if (server->id != id || server->removed) continue;
        for (size_t k = 0; k < CONNECTIONS_MAX; k++) close_connection(&server->connections[k]);
        forward_forget(server, NULL);
        unwatch(server->udp);
        unwatch(server->listener);
        close_descriptor(&server->udp);
        close_descriptor(&server->listener);
        server->removed = true;
    }
}

void servers_free(void) {
    for (struct server **at = &servers; *at;) {
        struct server *server = *at;
        if (!server->removed) {
            at = &server->next;
            continue;
        }
        *at = server->next;
        free(server);
    }
}

void asker_reply(const struct asker *asker, const uint8_t *bytes, size_t length) {
    struct connection *connection = asker->connection;
    if (!connection) {
        sendto(asker->server->udp, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL, (const struct sockaddr *)&asker->from, asker->from_length);
        return;
    }
    uint8_t size[2] = {(uint8_t)(length >> 8), (uint8_t)length};
    struct iovec parts[2] = {{size, sizeof size}, {(void *)(uintptr_t)bytes, length}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    bool sent = sendmsg(connection->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)(sizeof size + length);
    connection->until = now + IDLE_MS;
    if (!sent || !watch(connection->fd, &connection->kind, EPOLLIN | EPOLLRDHUP)) close_connection(connection);
}

static void answer_message(const struct asker *asker, const uint8_t *bytes, size_t length) {
    struct question question;
    size_t size;
    int code = question_read(&question, bytes, length);
    if (code < 0) return;
    take_messages();
    if (asker->server->removed) return;
    if (code > 0) {
        size = answer_empty(&question, code, false, answer);
    } else {
        const struct view *view = &asker->server->view;
        bool forwards = forward_exists(view) && allowed_matches(&question.name);
        size = answer_from_table(&question, view, asker->connection ? ANSWER_MAX_BYTES : question.limit, forwards, answer);
        if (size == 0 && forward_pass(asker, &question)) return;
        if (size == 0) size = answer_empty(&question, SERVFAIL, false, answer);
    }
    asker_reply(asker, answer, size);
}

// An answer to any other address would leave the container, and reach somebody who has not asked.
static bool is_loopback(const struct sockaddr_storage *from) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;
    if (from->ss_family == AF_INET) return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return from->ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

void server_take_datagrams(struct server *server) {
    uint8_t bytes[QUESTION_MAX_BYTES];
    for (int k = 0; k < DATAGRAMS_MAX && !server->removed; k++) {
        struct asker asker = {.server = server, .from_length = sizeof asker.from};
        ssize_t n = recvfrom(server->udp, bytes, sizeof bytes, MSG_DONTWAIT | MSG_TRUNC, (struct sockaddr *)&asker.from, &asker.from_length);
        if (n < 0) return;
        if ((size_t)n <= sizeof bytes && is_loopback(&asker.from)) answer_message(&asker, bytes, (size_t)n);
    }
}

// A place for a connection; where all are taken, the one that has been idle for longest is closed.
static struct connection *take_place(struct server *server) {
    struct connection *place = &server->connections[0];
    for (size_t k = 0; k < CONNECTIONS_MAX && place->fd >= 0; k++) {
        struct connection *other = &server->connections[k];
        if (other->fd < 0 || other->until < place->until) place = other;
    }
    close_connection(place);
    return place;
}

void server_take_connections(struct server *server) {
    for (int k = 0; k < CONNECTIONS_MAX && !server->removed; k++) {
        int fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
            unwatch(server->listener);
            server->paused = true;
            look_by(now + PAUSE_MS);
            return;
        }
        // Room for the longest answer.
        const int room = ANSWER_MAX_BYTES;
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
        struct connection *connection = take_place(server);
        connection->fd = fd;
        connection->until = now + IDLE_MS;
        look_by(connection->until);
        if (!watch(fd, &connection->kind, EPOLLIN | EPOLLRDHUP)) close_connection(connection);
    }
}

// One question at a time. A part of one stays in the kernel's buffer until the rest is there, so that it takes no memory here.
void connection_serve(struct connection *connection, uint32_t events) {
    uint8_t bytes[2 + QUESTION_MAX_BYTES];
    if (connection->fd < 0) return;
    ssize_t n = events & (EPOLLERR | EPOLLHUP) ? 0 : recv(connection->fd, bytes, sizeof bytes, MSG_PEEK);
    if (n < 0 && errno == EAGAIN) return;
    size_t length = n < 2 ? 0 : 2 + (size_t)(bytes[0] << 8 | bytes[1]);
    bool whole = n >= 2 && (size_t)n >= length;
    int needed = whole ? 1 : length ? (int)length : 2;
    if (n <= 0 || length > sizeof bytes || (!whole && events & EPOLLRDHUP)) return close_connection(connection);
    setsockopt(connection->fd, SOL_SOCKET, SO_RCVLOWAT, &needed, sizeof needed);
    if (!whole) return;
    recv(connection->fd, bytes, length, 0);
    connection->until = now + IDLE_MS;
    const struct asker asker = {.server = connection->server, .connection = connection};
    answer_message(&asker, bytes + 2, length - 2);
}

void servers_look(void) {
    for (struct server *server = servers; server; server = server->next) {
        if (server->removed) continue;
        if (server->paused) server->paused = !watch(server->listener, &server->listener_kind, EPOLLIN);
        if (server->paused) look_by(now + PAUSE_MS);
        for (size_t k = 0; k < CONNECTIONS_MAX; k++) {
            struct connection *connection = &server->connections[k];
            if (connection->fd < 0) continue;
            if (connection->until <= now) close_connection(connection);
            else look_by(connection->until);
        }
    }
}
