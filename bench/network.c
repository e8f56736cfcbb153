// What bench/network.ts measures with, on the host and in containers:
//
//   network serve PORT                       a server, for one client after another; prints "listening"
//   network bytes ADDRESS PORT MEBIBYTES     the microseconds until the server has read so much
//   network connections ADDRESS PORT COUNT   the microseconds of a connection, with a byte there and back, at p50
//   network connect ADDRESS PORT             the microseconds of one connect(2)
//   network lookup NAME COUNT                the microseconds of an answer of the server at 127.0.0.11, at p50, and its code
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define COUNT_MAX 100000

static char buffer[256 << 10];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double micros(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) {
    double first = *(const double *)a, second = *(const double *)b;
    return first < second ? -1 : first > second;
}

static double middle(double *times, int count) {
    qsort(times, (size_t)count, sizeof *times, compare);
    return times[count / 2];
}

static struct sockaddr_in address(const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "%s is no address\n", host);
        exit(2);
    }
    return address;
}

static int connected(const struct sockaddr_in *to) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (connect(fd, (const struct sockaddr *)to, sizeof *to) < 0) fail("connect");
    return fd;
}

// Answers a single byte with one at once, and more than that at the client's end.
static void serve(int server) {
    int fd = accept(server, NULL, NULL);
    if (fd < 0) fail("accept");
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n != 1)
        while (n > 0) n = read(fd, buffer, sizeof buffer);
    if (n < 0 || write(fd, "x", 1) != 1) perror("serve");
    close(fd);
}

static double send_bytes(const struct sockaddr_in *to, long long left) {
    double begun = micros();
    int fd = connected(to);
    while (left > 0) {
        ssize_t n = write(fd, buffer, left < (long long)sizeof buffer ? (size_t)left : sizeof buffer);
        if (n < 0) fail("write");
        left -= n;
    }
    shutdown(fd, SHUT_WR);
    if (read(fd, buffer, 1) != 1) fail("read");
    close(fd);
    return micros() - begun;
}

static double talk(const struct sockaddr_in *to) {
    double begun = micros();
    int fd = connected(to);
    if (write(fd, "x", 1) != 1 || read(fd, buffer, 1) != 1) fail("talk");
    double taken = micros() - begun;
    close(fd);
    return taken;
}

// A question for the address of a name (RFC 1035).
static size_t question(unsigned char *out, const char *name) {
    unsigned char *at = out + 12;
    memcpy(out, "\0\0\1\0\0\1\0\0\0\0\0\0", 12);
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        *at++ = (unsigned char)length;
        memcpy(at, label, length);
        at += length;
        label += length + (label[length] == '.');
    }
    memcpy(at, "\0\0\1\0\1", 5);
    return (size_t)(at + 5 - out);
}

static int lookup(const char *name, int count, double *times) {
    unsigned char asked[300], answer[1024] = {0};
    struct sockaddr_in to = address("127.0.0.11", "53");
    if (strlen(name) > 200) exit(2);
    size_t length = question(asked, name);
    for (int k = 0; k < count; k++) {
        double begun = micros();
        int fd = socket(AF_INET, SOCK_DGRAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) fail("connect");
        if (send(fd, asked, length, 0) < 0 || recv(fd, answer, sizeof answer, 0) < 12) fail("lookup");
        close(fd);
        times[k] = micros() - begun;
    }
    return answer[3] & 15;
}

int main(int count, char **arguments) {
    static double times[COUNT_MAX];
    const char *what = count > 2 ? arguments[1] : "";
    int repeat = atoi(arguments[count - 1]);
    if (repeat < 1 || repeat > COUNT_MAX) return 2;
    if (!strcmp(what, "serve")) {
        const int on = 1;
        int server = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in here = address("0.0.0.0", arguments[2]);
        setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(server, (struct sockaddr *)&here, sizeof here) < 0 || listen(server, 1024) < 0) fail("listen");
        signal(SIGPIPE, SIG_IGN);
        puts("listening");
        fflush(stdout);
        for (;;) serve(server);
    }
    if (!strcmp(what, "lookup") && count == 4) {
        int code = lookup(arguments[2], repeat, times);
        printf("%.1f %d\n", middle(times, repeat), code);
        return 0;
    }
    if (count < 4) return 2;
    struct sockaddr_in to = address(arguments[2], arguments[3]);
    if (!strcmp(what, "connect")) {
        double begun = micros();
        connected(&to);
        printf("%.1f\n", micros() - begun);
    } else if (!strcmp(what, "bytes") && count == 5) {
        printf("%.1f\n", send_bytes(&to, (long long)repeat << 20));
    } else if (!strcmp(what, "connections") && count == 5) {
        for (int k = 0; k < repeat; k++) times[k] = talk(&to);
        printf("%.1f\n", middle(times, repeat));
    } else return 2;
    return 0;
}
