// libFuzzer's target for the responder for names: control messages, questions by UDP and TCP, answers of another server and time that
// passes, in any order, over real sockets.
//
// The input is a list of steps: the kind, an argument, the length (u16), and the bytes.
#include <time.h>

#define main names_main
#define clock_gettime(clock, time) fuzz_clock(time)
static int fuzz_clock(struct timespec *time);
#include "../names/names.c"
#include "../names/table.c"
#include "../names/forward.c"
#include "../names/allowed.c"
#undef main
#undef clock_gettime

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>

#define CONTAINERS 3
#define TURNS 3

struct client {
    struct sockaddr_in address;
    int udp, tcp;
};

enum { TELL, SERVE, ASK, ASK_BY_TCP, HANG_UP, FORWARD, ANSWER, ANSWER_BY_TCP, PASS_TIME, STEPS };

static struct client clients[CONTAINERS];
static int other_udp, other_tcp, told;
static uint64_t millis;

static int fuzz_clock(struct timespec *time) {
    *time = (struct timespec){.tv_sec = (time_t)(millis / 1000), .tv_nsec = (long)(millis % 1000) * 1000000};
    return 0;
}

static int make(int type, struct sockaddr_in *address) {
    socklen_t length = sizeof *address;
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)address, length) < 0) {
        close_descriptor(&fd);
        return -1;
    }
    if (type == SOCK_STREAM && listen(fd, 16) < 0) abort();
    if (getsockname(fd, (struct sockaddr *)address, &length) < 0) abort();
    return fd;
}

// Two sockets at one port.
static struct sockaddr_in make_both(int *udp, int *tcp) {
    for (;;) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        *tcp = make(SOCK_STREAM, &address);
        *udp = make(SOCK_DGRAM, &address);
        if (*tcp >= 0 && *udp >= 0) return address;
        close_descriptor(tcp);
        close_descriptor(udp);
    }
}

// A connection that is reset leaves no port in TIME_WAIT.
static void reset(int *fd) {
    const struct linger linger = {.l_onoff = 1};
    if (*fd >= 0) setsockopt(*fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close_descriptor(fd);
}

static void hang_up(struct client *client) {
    reset(&client->tcp);
    close_descriptor(&client->udp);
}

static void serve_client(unsigned id) {
    char text[16];
    int fds[2], size = snprintf(text, sizeof text, "serve %u 1 2", id + 1);
    hang_up(&clients[id]);
    clients[id].address = make_both(&fds[0], &fds[1]);
    descriptors_send(told, text, (size_t)size, fds, 2);
    for (int k = 0; k < 2; k++) close(fds[k]);
}

static void open_client(struct client *client, int type, int *fd) {
    if (*fd >= 0 || client->address.sin_port == 0) return;
    *fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
    if (connect(*fd, (struct sockaddr *)&client->address, sizeof client->address) < 0) close_descriptor(fd);
    if (*fd >= 0) fcntl(*fd, F_SETFL, O_NONBLOCK);
}

// Serves what there is to serve, without waiting.
static void take_turns(void) {
    for (int k = 0; k < TURNS; k++) {
        look_by(now);
        if (!turn()) abort();
    }
}

static void check_answers(struct client *client) {
    uint8_t message[1 << 16];
    ssize_t n;
    while (client->udp >= 0 && (n = recv(client->udp, message, sizeof message, MSG_DONTWAIT)) >= 0)
        if (n < HEADER_BYTES || !(message[2] & 0x80)) abort();
    while (client->tcp >= 0 && recv(client->tcp, message, sizeof message, MSG_DONTWAIT) > 0) continue;
}

// The argument's bits: the answer has the id, and the question, of what was asked.
static size_t answer_like(uint8_t *out, const uint8_t *asked, size_t length, unsigned how, const uint8_t *bytes, size_t count) {
    size_t size = count < 2048 ? count : 2048, question = how & 2 ? length : how & 1 ? 2 : 0;
    memcpy(out, asked, question);
    if (question > 2) out[2] |= 0x80;
    memcpy(out + question, bytes, size);
    return question + size;
}

static void answer_udp(unsigned how, const uint8_t *bytes, size_t count) {
    uint8_t asked[QUESTION_MAX_BYTES], out[QUESTION_MAX_BYTES + 2048];
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n = recvfrom(other_udp, asked, sizeof asked, 0, (struct sockaddr *)&from, &size);
    if (n >= HEADER_BYTES) sendto(other_udp, out, answer_like(out, asked, (size_t)n, how, bytes, count), 0, (struct sockaddr *)&from, size);
}

static void answer_tcp(unsigned how, const uint8_t *bytes, size_t count) {
    uint8_t asked[2 + QUESTION_MAX_BYTES], out[2 + QUESTION_MAX_BYTES + 2048];
    int fd = accept4(other_tcp, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    take_turns();
    ssize_t n = recv(fd, asked, sizeof asked, 0);
    if (n > 2 + HEADER_BYTES) {
        size_t length = answer_like(out + 2, asked + 2, (size_t)n - 2, how, bytes, count), told_length = length + (how & 4 ? 1 : 0);
        out[0] = (uint8_t)(told_length >> 8);
        out[1] = (uint8_t)told_length;
        send(fd, out, 2 + length, MSG_NOSIGNAL);
    }
    take_turns();
    reset(&fd);
}

static void forward(void) {
    char text[64];
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    if (getsockname(other_udp, (struct sockaddr *)&address, &size) < 0) abort();
    int length = snprintf(text, sizeof text, "forward 1 127.0.0.1 %u", ntohs(address.sin_port));
    descriptors_send(told, text, (size_t)length, NULL, 0);
}

static void step(unsigned kind, unsigned argument, const uint8_t *bytes, size_t length) {
    struct client *client = &clients[argument % CONTAINERS];
    switch (kind % STEPS) {
    case TELL:
        if (length > 0) descriptors_send(told, bytes, length, NULL, 0); // an empty message means that the other end is gone
        break;
    case SERVE: serve_client(argument % CONTAINERS); break;
    case ASK:
        open_client(client, SOCK_DGRAM, &client->udp);
        if (client->udp >= 0) send(client->udp, bytes, length, MSG_NOSIGNAL);
        break;
    case ASK_BY_TCP:
        open_client(client, SOCK_STREAM, &client->tcp);
        if (client->tcp >= 0) send(client->tcp, bytes, length, MSG_NOSIGNAL);
        break;
    case HANG_UP: argument & 4 ? (void)shutdown(client->tcp, SHUT_WR) : hang_up(client); break;
    case FORWARD: forward(); break;
    case ANSWER: answer_udp(argument, bytes, length); break;
    case ANSWER_BY_TCP: answer_tcp(argument, bytes, length); break;
    case PASS_TIME: millis += argument * 50; break;
    }
    take_turns();
    for (int k = 0; k < CONTAINERS; k++) check_answers(&clients[k]);
}

static int count_descriptors(void) {
    int count = 0;
    for (int fd = 3; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void forget_all(void) {
    char text[] = "leave 1";
    for (unsigned k = 0; k < CONTAINERS; k++, text[6]++) {
        hang_up(&clients[k]);
        clients[k].address.sin_port = 0;
        step(TELL, 0, (const uint8_t *)text, strlen(text));
    }
    while (all_upstreams) forward_set(all_upstreams->network, NULL);
    for (size_t k = 0; k < BUCKETS; k++)
        while (by_name[k]) remove_at(&by_name[k]);
    if (records != 0) abort();
    for (size_t k = 0; k < BUCKETS; k++)
        if (by_address[k]) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    int pair[2], before = count_descriptors();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) abort();
    told = pair[1];
    for (int k = 0; k < CONTAINERS; k++) clients[k] = (struct client){.udp = -1, .tcp = -1};
    make_both(&other_udp, &other_tcp);
    if (!begin(pair[0])) abort();
    for (size_t at = 0; at + 4 <= length;) {
        size_t size = (size_t)bytes[at + 2] | (size_t)bytes[at + 3] << 8;
        unsigned kind = bytes[at], argument = bytes[at + 1];
        at += 4;
        if (size > length - at) size = length - at;
        step(kind, argument, bytes + at, size);
        at += size;
    }
    forget_all();
    free(patterns);
    patterns = NULL;
    pattern_count = 0;
    const int fds[] = {epoll, pair[0], pair[1], other_udp, other_tcp};
    for (size_t k = 0; k < countof(fds); k++) close(fds[k]);
    if (count_descriptors() != before) abort(); // a descriptor has leaked
    return 0;
}
