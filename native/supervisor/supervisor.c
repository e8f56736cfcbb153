// The supervisor: the single-threaded parent of every container of one Berth. When its socket closes, for whatever reason, it removes
// everything that it owns and ends.
//
//   berth-supervisor FOLDER SOCKET LOCK SELF root|single-id|ranges [GATE]
//
// FOLDER is its state folder, which it removes at the end. SOCKET, LOCK and SELF are inherited descriptors: its end of the socket
// pair, the lock of the state folder, and its own executable, which nobody can write. With `single-id` it first enters a user
// namespace in which it is root and which maps no other id; with `ranges`, one whose id maps the JavaScript process writes. With GATE,
// other processes can connect to it, and it ends with the last connection (lease.h). It is no child of the first one then.
#include "child.h"
#include "connection.h"
#include "../common/descriptor.h"
#include "init.h"
#include "lease.h"
#include "mount.h"
#include "nodes.h"
#include "plan.h"
#include "protocol.h"
#include "../common/remove.h"
#include "../common/syscalls.h"
#include "unit.h"
#include "../common/util.h"

#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

// The removal of a cgroup whose members are dying is tried again so often, and for so long.
#define RETRY_MS 5
#define PATIENCE_MS 2000

// After so long without an event the supervisor makes the next network namespace, which then does not delay a container that has
// just started.
#define QUIET_MS 10

// No unit is started with the last descriptors: the removal of units needs them.
#define DESCRIPTORS_RESERVED 64

static struct supervisor shared = {.program = -1};
static struct unit *units;
static struct connection *connections;
static struct lease lease = {.listener = -1, .lock = -1};
static int events, signals;
static bool closing;
static bool over; // a unit that was shared has ended
static bool incomplete; // something could not be removed
static int descriptors_max = INT_MAX; // descriptors from this number on are reserved

// Replies

static void send_failure(struct connection *to, enum reply_type type, uint32_t id, const struct failure *failure) {
    struct reply reply = {.type = type, .id = id, .failure = *failure};
    connection_reply(to, &reply, -1, -1);
}

static void refuse(struct connection *from, uint32_t id, const char *call) {
    struct failure failure = {.operation = NO_OPERATION};
    fail_with(&failure, call, EBADMSG);
    send_failure(from, REPLY_FAILED, id, &failure);
}

// Units

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static struct unit *find_unit(uint32_t id) {
    struct unit *unit = units;
    while (unit && unit->id != id) unit = unit->next;
    return unit;
}

static void forget(struct unit *unit) {
    struct unit **link = &units;
    while (*link != unit) link = &(*link)->next;
    *link = unit->next;
    unit_free(unit, &shared);
}

// Continues the removal of a unit after its process has been waited for.
static void give_back(struct unit *unit) {
    if (unit->pid > 0 || unit->maker > 0 || !(unit->failed || unit->releasing)) return;
    int left = unit_remove(unit);
    if (left == 1 && unit->remover == 0) {
        if (unit->deadline_ms == 0) unit->deadline_ms = now_ms() + PATIENCE_MS;
        if (now_ms() >= unit->deadline_ms) {
            unit_give_up(unit, EBUSY);
            left = unit_remove(unit);
        }
    }
    if (left == 1) return;
    if (unit->leftover.error != 0) incomplete = true;
    if (unit->failed) send_failure(unit->connection, REPLY_FAILED, unit->id, &unit->failure);
    if (unit->releasing && !unit->told) send_failure(unit->connection, REPLY_RELEASED, unit->id, &unit->leftover);
    forget(unit);
}

static void take_outcome(struct unit *unit) {
    // A child that has not executed yet has a copy of the descriptor, so a close alone does not end the watch (epoll(7)).
    epoll_ctl(events, EPOLL_CTL_DEL, unit->failures, NULL);
    if (unit->socket >= 0) epoll_ctl(events, EPOLL_CTL_DEL, unit->socket, NULL);
    if (!unit_executed(unit)) return;
    unit_find_successor(unit, &shared);
    struct reply reply = {.type = REPLY_STARTED, .id = unit->id, .pid = unit->pid, .failure = unit->failure};
    connection_reply(unit->connection, &reply, unit->pidfd, unit->mount);
    close_descriptor(&unit->mount);
}

// Waits for the end of the pipe, which epoll(7) reports for any set of events. A message of the child, such as its root, wakes the
// supervisor only if the child waits for its id maps.
static void watch_child(struct unit *unit) {
    struct epoll_event end = {.data.ptr = unit}, asked = {.events = EPOLLIN, .data.ptr = unit};
    epoll_ctl(events, EPOLL_CTL_ADD, unit->failures, &end);
    if (unit->maps) epoll_ctl(events, EPOLL_CTL_ADD, unit->socket, &asked);
}

static void hear(struct unit *unit, uint32_t happened) {
    if (unit->failures < 0) return; // both have ended
    if (happened & (EPOLLHUP | EPOLLERR)) return take_outcome(unit);
    unit_listen(unit);
    if (!unit->maps) epoll_ctl(events, EPOLL_CTL_DEL, unit->socket, NULL);
}

static void begin(struct unit *unit, const struct plan *plan, const int *descriptors) {
    bool started = unit_start(unit, &shared, plan, descriptors);
    // A new descriptor gets the lowest free number, so this one tells how many are in use.
    if (started && unit->pidfd >= descriptors_max) {
        fail_with(&unit->failure, "clone3", EMFILE);
        unit->failure.operation = NO_OPERATION;
        started = false;
    }
    if (!started) {
        unit->failed = true;
        unit_kill(unit, &shared);
        give_back(unit);
    } else if (unit->failures >= 0) {
        watch_child(unit);
    } else {
        struct reply reply = {.type = REPLY_STARTED, .id = unit->id};
        connection_reply(unit->connection, &reply, unit->mount, -1);
        close_descriptor(&unit->mount);
    }
}

static bool may_have(const struct connection *connection, uint32_t id) {
    return !lease.gate || id / SLOT_UNITS == connection->slot;
}

static void start(struct connection *from, uint32_t id, const uint8_t *bytes, size_t length, const int *descriptors, size_t count) {
    struct plan plan;
    const char *wrong = plan_decode(&plan, bytes, length, count);
    struct unit *unit = wrong || find_unit(id) || !may_have(from, id) ? NULL : malloc(sizeof *unit);
    if (unit) {
        *unit = (struct unit){.next = units, .connection = from, .id = id, .slot = -1};
        for (size_t k = 0; k < countof(unit->outputs); k++) unit->outputs[k] = -1;
        unit->pidfd = unit->failures = unit->socket = unit->mount = unit->kept_open = -1;
        units = unit;
        begin(unit, &plan, descriptors);
    } else {
        refuse(from, id, "plan");
    }
    plan_free(&plan);
}

static void release(struct unit *unit) {
    unit->releasing = true;
    unit_kill(unit, &shared);
    give_back(unit);
}

// From now on, the unit ends with the supervisor alone. Others get its root, which this takes, as it takes the outputs.
static void share(struct unit *unit, int *descriptors, size_t count) {
    struct reply reply = {.type = REPLY_SHARED, .id = unit->id};
    unit->shared = true;
    for (size_t k = 0; k < count; k++) *(k == 0 ? &unit->mount : &unit->outputs[k - 1]) = steal_fd(&descriptors[k]);
    connection_reply(unit->connection, &reply, -1, -1);
}

static void show(struct connection *to, const struct unit *unit) {
    struct reply reply = {.type = REPLY_STARTED, .id = unit->id, .pid = unit->pid};
    connection_reply(to, &reply, unit->pidfd, unit->mount);
}

// Reads the outputs of a shared unit, whose reader is gone, so that it never waits for one.
static void watch_outputs(struct unit *unit) {
    for (size_t k = 0; k < countof(unit->outputs); k++) {
        struct epoll_event written = {.events = EPOLLIN, .data.ptr = &unit->outputs[k]};
        if (unit->outputs[k] >= 0) epoll_ctl(events, EPOLL_CTL_ADD, unit->outputs[k], &written);
    }
}

// Returns whether the source of an event is such an output.
static bool drain(const void *source) {
    static char bytes[64 << 10];
    for (struct unit *unit = units; unit; unit = unit->next)
        for (size_t k = 0; k < countof(unit->outputs); k++) {
            if (source != &unit->outputs[k]) continue;
            ssize_t n = read(unit->outputs[k], bytes, sizeof bytes);
            if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) return true;
            epoll_ctl(events, EPOLL_CTL_DEL, unit->outputs[k], NULL);
            close_descriptor(&unit->outputs[k]);
            return true;
        }
    return false;
}

static struct unit *unit_of(pid_t pid) {
    for (struct unit *unit = units; unit; unit = unit->next) {
        unit_find_successor(unit, &shared);
        if (unit->pid == pid || unit->maker == pid || unit->remover == pid) return unit;
    }
    return NULL;
}

static void take_end(struct unit *unit, int status, const struct rusage *usage) {
    struct reply reply = {
        .id = unit->id,
        .pid = unit->pid,
        .status = status,
        .user_us = (uint64_t)usage->ru_utime.tv_sec * 1000000 + (uint64_t)usage->ru_utime.tv_usec,
        .system_us = (uint64_t)usage->ru_stime.tv_sec * 1000000 + (uint64_t)usage->ru_stime.tv_usec,
        .max_rss_kib = (uint64_t)usage->ru_maxrss,
    };
    // The child's end of the socket is closed by now, so all its messages can be read.
    if (unit->failures >= 0) take_outcome(unit);
    unit->pid = 0;
    if (unit->shared) over = true;
    if (unit->failed) return;
    // A unit whose process succeeded is removed at once if that is possible, and one message reports both, so that no request is needed.
    // After a failure, the JavaScript process still reads the cgroup.
    if (status == 0 && !unit->releasing && unit->maker == 0 && unit_settle(unit)) unit->releasing = unit->told = true;
    reply.type = unit->told ? REPLY_ENDED : REPLY_EXITED;
    connection_reply(unit->connection, &reply, -1, -1);
}

static void reap(void) {
    struct rusage usage;
    int status;
    for (;;) {
        siginfo_t ended = {0};
        if (waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) < 0 || ended.si_pid == 0) return;
        // The pid identifies the unit as long as the process has not been waited for.
        struct unit *unit = unit_of(ended.si_pid);
        pid_t pid = wait4(ended.si_pid, &status, WNOHANG, &usage);
        if (pid <= 0 || !unit) continue;
        if (unit->remover == pid) unit_remover_done(unit, status);
        if (unit->maker == pid) unit->maker = 0;
        if (unit->pid == pid) take_end(unit, status, &usage);
        // It may have made a successor just before it was killed.
        else if (unit->releasing || unit->failed) unit_kill(unit, &shared);
        give_back(unit);
    }
}

// Requests

static uint8_t *read_memfd(int fd, size_t length) {
    uint8_t *bytes = malloc(length);
    for (size_t done = 0; bytes && done < length;) {
        ssize_t n = pread(fd, bytes + done, length - done, (off_t)done);
        if (n <= 0) {
            free(bytes);
            return NULL;
        }
        done += (size_t)n;
    }
    return bytes;
}

// A program that is stopped, and renews nothing, is given up by those who wait for it elsewhere: its units end with its lease. The timer
// sends SIGALRM, which ends the supervisor as SIGTERM does.
static void renew(uint32_t milliseconds) {
    struct itimerval left = {.it_value = {.tv_sec = milliseconds / 1000, .tv_usec = (suseconds_t)(milliseconds % 1000) * 1000}};
    setitimer(ITIMER_REAL, &left, NULL);
}

static void handle(struct connection *from, const struct request *request, const uint8_t *body, size_t length, int *descriptors, size_t count) {
    struct unit *unit = find_unit(request->id);
    bool own = unit && unit->connection == from && !unit->shared;
    if (request->type == REQUEST_RELEASE) {
        struct failure none = {0};
        if (own) release(unit);
        else send_failure(from, REPLY_RELEASED, request->id, &none);
    } else if (request->type == REQUEST_START && request->plan_bytes == 0) {
        start(from, request->id, body, length, descriptors, count);
    } else if (request->type == REQUEST_START && count > 0 && request->plan_bytes <= PLAN_BYTES_MAX) {
        uint8_t *plan = read_memfd(descriptors[0], request->plan_bytes);
        start(from, request->id, plan, plan ? request->plan_bytes : 0, descriptors + 1, count - 1);
        if (plan) explicit_bzero(plan, request->plan_bytes);
        free(plan);
    } else if (request->type == REQUEST_SHARE && lease.gate && own && unit->pid > 0 && unit->mount < 0 && count <= 1 + countof(unit->outputs)) {
        share(unit, descriptors, count);
    } else if (request->type == REQUEST_ATTACH && unit && unit->shared) {
        show(from, unit);
    } else if (request->type == REQUEST_RENEW && !lease.gate) {
        renew(request->id);
    } else {
        refuse(from, request->id, "recvmsg");
    }
}

// Returns false once the other end is gone.
static bool receive(struct connection *from) {
    static uint8_t bytes[MESSAGE_BYTES_MAX];
    int descriptors[DESCRIPTORS_MAX];
    struct request request;

    memset(bytes, 0, sizeof request);
    ssize_t n = descriptors_receive(from->socket, bytes, sizeof bytes, descriptors, countof(descriptors));
    if (n == 0) {
        // An empty message looks like the end, and is treated as one. Its descriptors are dropped.
        for (size_t k = 0; k < countof(descriptors); k++) close_descriptor(&descriptors[k]);
        return false;
    }
    memcpy(&request, bytes, sizeof request);
    if (n < 0 && (errno == EMSGSIZE || errno == EMFILE)) {
        // A message that was truncated, or whose descriptors this process may not open, fails its unit.
        struct failure failure = {.operation = NO_OPERATION, .error = errno, .syscall = "recvmsg"};
        send_failure(from, REPLY_FAILED, request.id, &failure);
        return true;
    }
    if (n < 0) return errno == EAGAIN;
    size_t count = 0;
    while (count < countof(descriptors) && descriptors[count] >= 0) count++;
    // A message that is shorter than its head names no unit to answer for.
    if ((size_t)n >= sizeof request) handle(from, &request, bytes + sizeof request, (size_t)n - sizeof request, descriptors, count);
    for (size_t k = 0; k < count; k++) close_descriptor(&descriptors[k]);
    // A child has a copy of the supervisor's memory. It must find no plan but its own there.
    explicit_bzero(bytes, (size_t)n);
    return true;
}

// The loop

static void close_down(void) {
    closing = true;
    epoll_ctl(events, EPOLL_CTL_DEL, lease.listener, NULL);
    close_descriptor(&lease.listener);
    for (struct connection *connection = connections; connection; connection = connection->next) {
        if (connection->socket < 0) continue;
        connection_flush(connection);
        connection_close(connection);
    }
    for (struct unit *unit = units, *next; unit; unit = next) {
        next = unit->next; // release() may free the unit
        unit->connection = NULL;
        release(unit);
    }
}

// The other end of a connection is gone. What it has not shared goes as well.
static void lose(struct connection *connection) {
    if (!lease.gate) return close_down();
    connection_close(connection);
    for (struct unit *unit = units, *next; unit; unit = next) {
        next = unit->next;
        if (unit->connection != connection) continue;
        unit->connection = NULL;
        if (unit->shared) watch_outputs(unit);
        else release(unit);
    }
}

// An event of this round may name a connection until its end.
static void forget_lost(void) {
    for (struct connection **link = &connections; *link;) {
        struct connection *connection = *link;
        if (connection->socket >= 0) {
            link = &connection->next;
            continue;
        }
        *link = connection->next;
        free(connection);
    }
}

static struct connection *connection_of(const void *source) {
    struct connection *connection = connections;
    while (connection && connection != source) connection = connection->next;
    return connection;
}

// A slot without a connection, and without units that are still being removed.
static uint32_t free_slot(void) {
    static uint32_t slot;
    for (uint32_t k = 0; k < SLOTS_MAX; k++) {
        bool used = false;
        slot = (slot + 1) % SLOTS_MAX;
        for (struct connection *connection = connections; connection; connection = connection->next) used |= connection->slot == slot;
        for (struct unit *unit = units; unit; unit = unit->next) used |= unit->id / SLOT_UNITS == slot;
        if (!used) return slot;
    }
    return SLOTS_MAX;
}

static void send_ready(struct connection *to) {
    // The addon reaches files as root of the supervisor's own user namespace (as_root.h).
    cleanup_close int namespace = shared.rootless ? open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC) : -1;
    struct reply reply = {.type = REPLY_READY, .id = to->slot * SLOT_UNITS, .pid = getpid()};
    if (lease.gate) connection_reply(to, &reply, shared.pidfd, namespace);
    else connection_reply(to, &reply, namespace, -1);
}

// A process that is not let in finds its connection closed.
static void let_in(void) {
    for (int socket; (socket = lease_accept(&lease)) >= 0;) {
        uint32_t slot = socket < descriptors_max ? free_slot() : SLOTS_MAX;
        if (slot == SLOTS_MAX) {
            close(socket);
            continue;
        }
        struct connection *connection = connection_make(socket, events, slot);
        connection->next = connections;
        connections = connection;
        send_ready(connection);
    }
}

// Without a connection, the supervisor ends, unless somebody is entering: then it tries again.
static void leave(void) {
    if (!lease_shut(&lease)) return;
    let_in(); // whoever has entered before
    if (connections) lease_open(&lease);
    else close_down();
}

static void serve(struct connection *connection, uint32_t happened) {
    if (connection->socket >= 0 && happened & EPOLLOUT) connection_flush(connection);
    if (connection->socket >= 0 && !receive(connection) && !closing) lose(connection);
}

static bool retrying(void) {
    for (struct unit *unit = units; unit; unit = unit->next)
        if (unit->pid == 0 && (unit->releasing || unit->failed) && unit->remover == 0) return true;
    return false;
}

static void run(void) {
    struct epoll_event ready[64];
    struct signalfd_siginfo information[16];
    while (!closing || units) {
        bool spare_time = shared.network.wanted && !closing, left = !connections && !closing;
        int n = epoll_wait(events, ready, countof(ready), retrying() ? RETRY_MS : spare_time || left ? QUIET_MS : -1);
        if (n == 0 && spare_time) network_make_spare(&shared.network);
        bool children = false;
        for (int k = 0; k < n; k++) {
            void *source = ready[k].data.ptr;
            struct connection *connection = connection_of(source);
            if (connection) {
                serve(connection, ready[k].events);
            } else if (source == &lease) {
                if (!closing) let_in();
            } else if (source == &signals) {
                ssize_t length = read(signals, information, sizeof information);
                for (size_t s = 0; length > 0 && s < (size_t)length / sizeof *information; s++) {
                    if (information[s].ssi_signo == SIGCHLD) children = true;
                    else if (!closing) close_down();
                }
            } else if (!lease.gate || !drain(source)) {
                hear(source, ready[k].events);
            }
        }
        forget_lost();
        // Last, as it may free units that an event of this round names.
        if (children) reap();
        for (struct unit *unit = units, *next; unit; unit = next) {
            next = unit->next;
            if (unit->remover == 0) give_back(unit);
        }
        if (closing) continue;
        if (over) close_down();
        else if (!connections) leave();
    }
}

// Setting up

// Waits for newuidmap(1) and newgidmap(1) to write the id maps. They require that this process belongs to their user, so it is
// dumpable until then. The JavaScript process has not waited for this process, so its pid cannot have been reused.
static int await_id_maps(struct failure *failure) {
    struct reply unmapped = {.type = REPLY_UNMAPPED, .pid = getpid()};
    struct pollfd answer = {.fd = connections->socket, .events = POLLIN};
    struct request request;
    if (unshare(CLONE_NEWUSER) < 0) return fail(failure, "unshare");
    connection_reply(connections, &unmapped, -1, -1);
    if (poll(&answer, 1, -1) < 0) return fail(failure, "poll");
    if (recv(connections->socket, &request, sizeof request, 0) == sizeof request && request.type == REQUEST_MAPPED) return 0;
    return fail_with(failure, "recv", EPROTO);
}

static int enter_user_namespace(struct failure *failure) {
    char uid_map[64], gid_map[64];
    snprintf(uid_map, sizeof uid_map, "0 %u 1", (unsigned)geteuid());
    snprintf(gid_map, sizeof gid_map, "0 %u 1", (unsigned)getegid());
    if (unshare(CLONE_NEWUSER) < 0) return fail(failure, "unshare");
    const char *files[][2] = {{"/proc/self/uid_map", uid_map}, {"/proc/self/setgroups", "deny"}, {"/proc/self/gid_map", gid_map}};
    for (size_t k = 0; k < countof(files); k++) {
        cleanup_close int fd = open(files[k][0], O_WRONLY | O_CLOEXEC);
        if (fd < 0) return fail(failure, "open");
        if (write(fd, files[k][1], strlen(files[k][1])) < 0) return fail(failure, "write");
    }
    return 0;
}

// Among others, makes a mount namespace that receives the host's mounts and propagates none. A child inherits it, and need not change
// the propagation before its pivot.
static int set_up(const char *folder, const char *mode, struct failure *failure) {
    bool single_id = !strcmp(mode, "single-id"), ranges = !strcmp(mode, "ranges");
    char nodes[PATH_MAX];
    sigset_t handled;
    sigemptyset(&handled);
    for (int number = 1; number < 32; number++) signal(number, SIG_DFL); // the JavaScript process ignores some of them
    for (size_t k = 0; k < 5; k++) sigaddset(&handled, (int[]){SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGALRM}[k]);
    if (sigprocmask(SIG_SETMASK, &handled, NULL) < 0) return fail(failure, "sigprocmask");
    // Only a dumpable process can write its id maps or have them written.
    if ((single_id || ranges) && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0) return fail(failure, "prctl");
    if (single_id && enter_user_namespace(failure) < 0) return -1;
    if (ranges && await_id_maps(failure) < 0) return -1;
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return fail(failure, "prctl");
    // Somebody may have stopped the supervisor when the JavaScript process dies. It must continue, to remove everything.
    if (prctl(PR_SET_PDEATHSIG, SIGCONT) < 0) return fail(failure, "prctl");
    if (unshare(CLONE_NEWNS) < 0) return fail(failure, "unshare");
    if (mount_leave_chroot(failure) < 0) return -1;
    if (sys_mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) return fail(failure, "mount");
    if (lease.gate) {
        if (chdir(folder) < 0) return fail(failure, "chdir");
        if (lease_listen(&lease, failure) < 0) return -1;
        // A runner waits for all processes that have the output of one of its workers.
        if (dup2(shared.null, STDERR_FILENO) < 0) return fail(failure, "dup2");
    }
    if (chdir("/") < 0) return fail(failure, "chdir");
    snprintf(nodes, sizeof nodes, "%s/dev", folder);
    shared.rootless = single_id || ranges;
    if (nodes_make(nodes, shared.rootless, failure) < 0) return -1;
    shared.successors = mmap(NULL, SUCCESSORS_MAX * sizeof *shared.successors, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared.successors == MAP_FAILED) return fail(failure, "mmap");
    memset(shared.successors, -1, SUCCESSORS_MAX * sizeof *shared.successors);
    network_init(&shared.network);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) < 0) return fail(failure, "getrlimit");
    if (files.rlim_cur > DESCRIPTORS_RESERVED && files.rlim_cur < INT_MAX) descriptors_max = (int)files.rlim_cur - DESCRIPTORS_RESERVED;
    if ((shared.pidfd = sys_pidfd_open(getpid())) < 0) return fail(failure, "pidfd_open");
    if ((signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK)) < 0) return fail(failure, "signalfd");
    struct epoll_event from_signals = {.events = EPOLLIN, .data.ptr = &signals};
    struct epoll_event from_lease = {.events = EPOLLIN, .data.ptr = &lease};
    if (epoll_ctl(events, EPOLL_CTL_ADD, signals, &from_signals) < 0) return fail(failure, "epoll_ctl");
    if (lease.gate && epoll_ctl(events, EPOLL_CTL_ADD, lease.listener, &from_lease) < 0) return fail(failure, "epoll_ctl");
    return 0;
}

// The mount of the device nodes goes first, as remove_tree() does not cross filesystems.
static void take_down(const char *folder) {
    char nodes[PATH_MAX];
    snprintf(nodes, sizeof nodes, "%s/dev", folder);
    sys_umount2(nodes, MNT_DETACH);
    // If something is left, a sweep needs the folder to find it.
    if (!incomplete) remove_tree(AT_FDCWD, folder, __LONG_MAX__);
    lease_remove(&lease);
}

#ifdef __SANITIZE_ADDRESS__
// LeakSanitizer does not work in a process that is not dumpable.
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}
#endif

int main(int argc, char **argv) {
    struct failure failure = {0};
    init_run(argc, argv);
    if (argc < 5) {
        fputs("berth-supervisor: the berth library starts this program; it cannot be run by hand\n", stderr);
        return 2;
    }
    shared.arguments = argv[0];
    shared.arguments_length = (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) - argv[0]);
    shared.lock = atoi(argv[3]);
    shared.self = atoi(argv[4]);
    if (argc > 6) lease.gate = argv[6];
    // The end of the process, or of the thread, that started it is nothing to a supervisor with leases.
    if (lease.gate && fork() != 0) _exit(0);
    // First, as a runtime may have left standard error closed.
    if ((shared.null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0 || (events = epoll_create1(EPOLL_CLOEXEC)) < 0) return 1;
    connections = connection_make(atoi(argv[2]), events, 0);
#ifdef __SANITIZE_ADDRESS__
    shared.self = open(INSIDE, O_RDONLY | O_CLOEXEC);
#endif
    if (set_up(argv[1], argc > 5 ? argv[5] : "root", &failure) < 0) {
        send_failure(connections, REPLY_FAILED, 0, &failure);
        return 1;
    }
    send_ready(connections);
    run();
    take_down(argv[1]);
    return 0;
}
