// A server for tests of connections: sends back what it reads, and "bye" after the end of that. A connection whose bytes
// begin with "reset" is broken off, one whose bytes begin with "flood" gets bytes without end.
//
//   echo ADDRESS...   v4:PORT, v6:PORT (loopback), any4:PORT, any6:PORT, unix:PATH, abstract:NAME; prints "listening" once all do;
//                     udp:v4:PORT and so on: sends each datagram back
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SERVERS_MAX 16

static int serve(const char *address) {
    int type = strncmp(address, "udp:", 4) ? SOCK_STREAM : SOCK_DGRAM;
    if (type == SOCK_DGRAM) address += 4;
    struct sockaddr_storage storage = {0};
    socklen_t length;
    unsigned port;
    char text[100];
    if (sscanf(address, "v4:%u", &port) == 1) {
        struct sockaddr_in *v4 = (void *)&storage;
        *v4 = (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
        length = sizeof *v4;
    } else if (sscanf(address, "any4:%u", &port) == 1) {
        struct sockaddr_in *v4 = (void *)&storage;
        *v4 = (struct sockaddr_in){AF_INET, htons(port), {htonl(INADDR_ANY)}, {0}};
        length = sizeof *v4;
    } else if (sscanf(address, "any6:%u", &port) == 1) {
        struct sockaddr_in6 *v6 = (void *)&storage;
        *v6 = (struct sockaddr_in6){AF_INET6, htons(port), 0, IN6ADDR_ANY_INIT, 0};
        length = sizeof *v6;
    } else if (sscanf(address, "v6:%u", &port) == 1) {
        struct sockaddr_in6 *v6 = (void *)&storage;
        *v6 = (struct sockaddr_in6){AF_INET6, htons(port), 0, IN6ADDR_LOOPBACK_INIT, 0};
        length = sizeof *v6;
    } else {
        struct sockaddr_un *local = (void *)&storage;
        local->sun_family = AF_UNIX;
        int abstract = sscanf(address, "abstract:%99s", text) == 1;
        if (!abstract && sscanf(address, "unix:%99s", text) != 1) exit(2);
        strcpy(local->sun_path + abstract, text);
        length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(text));
    }
    int fd = socket(storage.ss_family, type, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, (void *)&storage, length) < 0 || (type == SOCK_STREAM && listen(fd, 4096) < 0)) {
        perror(address);
        exit(1);
    }
    return fd;
}

static void talk(int fd) {
    static char bytes[65536];
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0) {
        if (!strncmp(bytes, "reset", 5)) {
            struct linger now = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
            _exit(0);
        }
        if (!strncmp(bytes, "flood", 5))
            while (write(fd, bytes, sizeof bytes) > 0) continue;
        for (ssize_t at = 0, sent; at < n; at += sent)
            if ((sent = write(fd, bytes + at, (size_t)(n - at))) < 0) _exit(0);
    }
    if (write(fd, "bye", 3) < 0) _exit(1);
    _exit(0);
}

static void send_back(int fd) {
    static char bytes[65536];
    struct sockaddr_storage from;
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(fd, bytes, sizeof bytes, MSG_DONTWAIT, (void *)&from, &length);
    if (n >= 0) sendto(fd, bytes, (size_t)n, 0, (void *)&from, length);
}

int main(int count, char **arguments) {
    struct pollfd servers[SERVERS_MAX];
    signal(SIGCHLD, SIG_IGN);
    for (int k = 1; k < count; k++) servers[k - 1] = (struct pollfd){serve(arguments[k]), POLLIN, 0};
    puts("listening");
    fflush(stdout);
    for (;;) {
        poll(servers, (nfds_t)count - 1, -1);
        for (int k = 0; k < count - 1; k++) {
            if (!servers[k].revents) continue;
            if (!strncmp(arguments[k + 1], "udp:", 4)) {
                send_back(servers[k].fd);
                continue;
            }
            int fd = accept(servers[k].fd, NULL, NULL);
            if (fd < 0) continue;
            if (fork() == 0) talk(fd);
            close(fd);
        }
    }
}
