// Asks a responder of the DNS on 127.0.0.1: `asker time PORT COUNT` prints the microseconds of a lookup of `db` at p50, at p99
// and at most; `asker flood PORT NAME` sends questions for ever and reads no answer.
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double micros(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) {
    double first = *(const double *)a, second = *(const double *)b;
    return first < second ? -1 : first > second;
}

static size_t ask(unsigned char *out, const char *name) {
    size_t length = strlen(name);
    memcpy(out, "\0\0\1\0\0\1\0\0\0\0\0\0", 12);
    out[12] = (unsigned char)length;
    memcpy(out + 13, name, length);
    memcpy(out + 13 + length, "\0\0\1\0\1", 5);
    return 18 + length;
}

int main(int count, char **arguments) {
    unsigned char question[128], answer[1024];
    if (count != 4) return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[2])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) return 1;
    if (!strcmp(arguments[1], "flood")) {
        puts("begun");
        fflush(stdout);
        for (size_t length = ask(question, arguments[3]);;) send(fd, question, length, 0);
    }
    size_t length = ask(question, "db");
    int lookups = atoi(arguments[3]);
    double *times = calloc((size_t)lookups, sizeof *times);
    const struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (int k = 0; k < lookups; k++) {
        question[0] = (unsigned char)(k >> 8);
        question[1] = (unsigned char)k;
        double begin = micros();
        if (send(fd, question, length, 0) < 0 || recv(fd, answer, sizeof answer, 0) != (ssize_t)length + 16) return 1;
        times[k] = micros() - begin;
        if (memcmp(question, answer, 2) != 0) return 1;
    }
    qsort(times, (size_t)lookups, sizeof *times, compare);
    printf("%.0f %.0f %.0f\n", times[lookups / 2], times[lookups * 99 / 100], times[lookups - 1]);
    return 0;
}
