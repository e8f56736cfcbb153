// libFuzzer's target for the supervisor's input: messages over a real socket, with descriptors, in any order. Plans are decoded, but
// not performed.
//
// The input is a list of messages: the number of descriptors, the length (u16), and the bytes. Each descriptor is a memfd with the rest
// of the input, for plans that are too large for a message.
#define main supervisor_main
#include "../supervisor/supervisor.c"
#undef main

#include <sys/mman.h>

void init_run(int argc, char **argv) { (void)argc, (void)argv; }
int nodes_make(const char *folder, int in_user_namespace, struct failure *failure) {
    (void)folder, (void)in_user_namespace, (void)failure;
    return 0;
}
int remove_tree(int parent, const char *path, long budget) {
    (void)parent, (void)path, (void)budget;
    return 0;
}
int mount_leave_chroot(struct failure *failure) {
    (void)failure;
    return 0;
}
void network_init(struct network *network) { (void)network; }
void network_make_spare(struct network *network) { (void)network; }

// Every other plan fails, so that both replies are tested.
bool unit_start(struct unit *unit, struct supervisor *supervisor, const struct plan *plan, const int *descriptors) {
    (void)supervisor, (void)descriptors;
    for (size_t k = 0; k < plan->count; k++)
        if (plan->operations[k].code >= sizeof operation_kinds / sizeof *operation_kinds) abort();
    unit->pid = unit->id % 4 == 0; // only a process can be shared
    return unit->id % 2 == 0;
}
void unit_listen(struct unit *unit) { (void)unit; }
bool unit_executed(struct unit *unit) { return !unit->failed; }
void unit_find_successor(struct unit *unit, struct supervisor *supervisor) { (void)unit, (void)supervisor; }
void unit_kill(struct unit *unit, struct supervisor *supervisor) { (void)unit, (void)supervisor; }
bool unit_settle(struct unit *unit) { return !unit->owned; }
int unit_remove(struct unit *unit) {
    (void)unit;
    return 0;
}
void unit_remover_done(struct unit *unit, int status) { (void)unit, (void)status; }
void unit_give_up(struct unit *unit, int error) { (void)unit, (void)error; }
void unit_free(struct unit *unit, struct supervisor *supervisor) {
    (void)supervisor;
    close_descriptor(&unit->mount);
    for (size_t k = 0; k < countof(unit->outputs); k++) close_descriptor(&unit->outputs[k]);
    free(unit);
}

static int count_descriptors(void) {
    int count = 0;
    for (int fd = 3; fd < 256; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    int pair[2], before = count_descriptors();
    lease.gate = length > 0 && bytes[0] % 2 ? "gate" : NULL;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) abort();
    int watch = epoll_create1(EPOLL_CLOEXEC);
    if (watch < 0) abort();
    connections = connection_make(pair[0], watch, 0);
    for (size_t at = 0; at + 3 <= length;) {
        int fds[DESCRIPTORS_MAX];
        size_t count = bytes[at] % 5, size = (size_t)bytes[at + 1] | (size_t)bytes[at + 2] << 8;
        at += 3;
        if (size > length - at) size = length - at;
        if (size == 0) continue; // an empty message means that the other end is gone
        for (size_t k = 0; k < count; k++) {
            fds[k] = memfd_create("plan", MFD_CLOEXEC);
            if (fds[k] < 0 || write(fds[k], bytes + at, length - at) < 0) abort();
        }
        if (descriptors_send(pair[1], bytes + at, size, fds, count) < 0) break; // the socket is full
        for (size_t k = 0; k < count; k++) close(fds[k]);
        if (!receive(connections)) abort();
        at += size;
        struct reply reply;
        int received[2];
        while (descriptors_receive(pair[1], &reply, sizeof reply, received, 2) > 0)
            for (size_t k = 0; k < 2; k++)
                if (received[k] >= 0) close(received[k]);
    }
    while (units) forget(units);
    connection_close(connections);
    forget_lost();
    close(watch);
    close(pair[1]);
    if (count_descriptors() != before) abort(); // a descriptor has leaked
    return 0;
}
