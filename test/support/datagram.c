// Sends a datagram again and again until an answer comes: `datagram ADDRESS PORT SECONDS` prints the answer, or why there is none;
// `datagram ADDRESS PORT SECONDS BYTES` sends so many bytes and prints how many the answer has.
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TRIES_A_SECOND 5

int main(int count, char **arguments) {
    static char message[65536] = "hello", answer[65536];
    if (count < 4) return 2;
    size_t bytes = count > 4 ? (size_t)atoi(arguments[4]) : strlen(message);
    uint16_t port = htons((uint16_t)atoi(arguments[2]));
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = port};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = port};
    bool is4 = inet_pton(AF_INET, arguments[1], &v4.sin_addr) == 1;
    if (!is4 && inet_pton(AF_INET6, arguments[1], &v6.sin6_addr) != 1) return 2;
    int fd = socket(is4 ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, is4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6, is4 ? sizeof v4 : sizeof v6) < 0) return printf("%s\n", strerror(errno)), 0;
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    for (int left = atoi(arguments[3]) * TRIES_A_SECOND; left > 0; left--) {
        if (send(fd, message, bytes, 0) < 0) return printf("%s\n", strerror(errno)), 0;
        if (poll(&waiting, 1, 1000 / TRIES_A_SECOND) == 0) continue;
        ssize_t length = recv(fd, answer, sizeof answer, 0);
        if (length < 0) return printf("%s\n", strerror(errno)), 0;
        return count > 4 ? printf("%zd\n", length) : printf("%.*s\n", (int)length, answer), 0;
    }
    puts("no answer");
    return 0;
}
