// Looks up names by getaddrinfo(3): `lookup FAMILY NAME...` prints a line for each name, with its addresses in their order as text, or the
// error, for the family 4, 6 or 0 for both. `lookup many THREADS TIMES NAME...` looks up all names so many times in so many threads, and prints
// how often a name had another result than that of the first lookup, and the last of these.
#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { LINE = 8192, ADDRESSES = 128, NAMES = 16 };

static int compare(const void *a, const void *b) {
    return strcmp(a, b);
}

static void look_up(const char *name, int family, char *line) {
    struct addrinfo hints = {.ai_family = family, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(name, NULL, &hints, &found);
    int length = snprintf(line, LINE, "%s", name);
    if (error != 0) {
        snprintf(line + length, LINE - (size_t)length, " %s", error == EAI_NONAME ? "EAI_NONAME" : error == EAI_AGAIN ? "EAI_AGAIN" : gai_strerror(error));
        return;
    }
    char addresses[ADDRESSES][INET6_ADDRSTRLEN];
    size_t count = 0;
    for (struct addrinfo *at = found; at != NULL && count < ADDRESSES; at = at->ai_next) {
        const void *bytes = at->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr : &((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
        inet_ntop(at->ai_family, bytes, addresses[count++], INET6_ADDRSTRLEN);
    }
    freeaddrinfo(found);
    qsort(addresses, count, sizeof *addresses, compare);
    for (size_t k = 0; k < count; k++) length += snprintf(line + length, LINE - (size_t)length, " %s", addresses[k]);
}

static char **names;
static int name_count, times;
static char expected[NAMES][LINE], other[LINE];
static int others;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *repeat(void *unused) {
    char line[LINE];
    for (int k = 0; k < times * name_count; k++) {
        look_up(names[k % name_count], AF_UNSPEC, line);
        if (!strcmp(line, expected[k % name_count])) continue;
        pthread_mutex_lock(&lock);
        others++;
        strcpy(other, line);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

int main(int count, char **arguments) {
    char line[LINE];
    if (count < 3) return 2;
    if (strcmp(arguments[1], "many") != 0) {
        int family = *arguments[1] == '4' ? AF_INET : *arguments[1] == '6' ? AF_INET6 : AF_UNSPEC;
        for (int k = 2; k < count; k++) {
            look_up(arguments[k], family, line);
            puts(line);
        }
        return 0;
    }
    int thread_count = atoi(arguments[2]);
    times = atoi(arguments[3]);
    names = arguments + 4;
    name_count = count - 4;
    if (name_count > NAMES) return 2;
    for (int k = 0; k < name_count; k++) look_up(names[k], AF_UNSPEC, expected[k]);
    pthread_t threads[thread_count];
    for (int k = 0; k < thread_count; k++)
        if (pthread_create(&threads[k], NULL, repeat, NULL) != 0) return 1;
    for (int k = 0; k < thread_count; k++) pthread_join(threads[k], NULL);
    printf("%d%s%s\n", others, others > 0 ? " " : "", other);
    return 0;
}
