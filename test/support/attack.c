// What a container may try, one attempt a word: `attack WORD...` prints a line for each, with what came of it.
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define AF_ALG_FAMILY 38
#define AF_VSOCK_FAMILY 40

static void say(const char *word, long result) {
    if (result >= 0) printf("%s ok\n", word);
    else printf("%s %s\n", word, strerrorname_np(errno));
}

// In a child, as it may be what kills.
static long in_child(long (*attempt)(void)) {
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) _exit(attempt() < 0 ? errno : 0);
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
        printf("killed by %d: ", WTERMSIG(status));
        return 0;
    }
    errno = WEXITSTATUS(status);
    return errno == 0 ? 0 : -1;
}

static long clone_flags(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid((pid_t)pid, NULL, 0);
    return pid;
}

static long try_mount(void) { return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL); }
static long try_umount(void) { return syscall(SYS_umount2, "/proc/keys", 2); }
static long try_unshare(void) { return syscall(SYS_unshare, CLONE_NEWUSER); }
static long try_setns(void) { return syscall(SYS_setns, -1, 0); }
static long try_pivot(void) { return syscall(SYS_pivot_root, ".", "."); }
static long try_keyctl(void) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1); }
static long try_add_key(void) { return syscall(SYS_add_key, "user", "x", "x", 1, KEY_SPEC_PROCESS_KEYRING); }
static long try_request_key(void) { return syscall(SYS_request_key, "user", "x", NULL, 0); }
static long try_bpf(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long try_perf(void) { return syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0); }
static long try_io_uring(void) { return syscall(SYS_io_uring_setup, 1, NULL); }
static long try_userfaultfd(void) { return syscall(SYS_userfaultfd, 0); }
static long try_kexec(void) { return syscall(SYS_kexec_load, 0, 0, NULL, 0); }
static long try_module(void) { return syscall(SYS_init_module, NULL, 0, ""); }
static long try_reboot(void) { return syscall(SYS_reboot, 0, 0, 0, NULL); }
static long try_settime(void) { return syscall(SYS_clock_settime, 0, NULL); }
static long try_swapon(void) { return syscall(SYS_swapon, NULL, 0); }
static long try_handle(void) { return syscall(SYS_open_by_handle_at, -1, NULL, 0); }
static long try_fsopen(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long try_clone3(void) { return syscall(SYS_clone3, NULL, 0); }
static long try_new_user(void) { return clone_flags(CLONE_NEWUSER); }
static long try_fork(void) { return clone_flags(0); }
static long try_future(void) { return syscall(1000); }
static long try_alg(void) { return socket(AF_ALG_FAMILY, SOCK_SEQPACKET, 0); }
static long try_vsock(void) { return socket(AF_VSOCK_FAMILY, SOCK_STREAM, 0); }
static long try_unix(void) { return socket(AF_UNIX, SOCK_STREAM, 0); }
static long try_inet(void) { return socket(AF_INET, SOCK_STREAM, 0); }
static long try_packet(void) { return socket(AF_PACKET, SOCK_RAW, 0); }
static long try_personality(void) { return personality(0xffffffff); }
static long try_no_randomization(void) { return personality(ADDR_NO_RANDOMIZE); }
static long try_getpid(void) { return syscall(SYS_getpid); }
static long try_uname(void) { return syscall(SYS_uname, NULL); }
static long try_mkdir(void) { return mkdir("/tmp/made", 0755) < 0 ? -1 : rmdir("/tmp/made"); }
static long try_getcpu(void) { return syscall(SYS_getcpu, NULL, NULL, NULL); }
static long try_tiocsti(void) { return ioctl(0, TIOCSTI, "x"); }
static long try_tty(void) { return open("/dev/tty", O_RDWR); }
static long try_ptrace_self(void) { return ptrace(PTRACE_TRACEME, 0, NULL, NULL); }

// The supervisor's processes are recognized by their name, for as long as one has not executed the command.
static long ptrace_joiner(void) {
    long caught = 0;
    for (int round = 0; round < 200000; round++) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; (entry = readdir(proc));) {
            char path[64], name[32] = "";
            pid_t pid = atoi(entry->d_name);
            if (pid <= 0 || pid == getpid()) continue;
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            int fd = open(path, O_RDONLY);
            if (fd < 0) continue;
            if (read(fd, name, sizeof name - 1) < 0) name[0] = 0;
            close(fd);
            if (strncmp(name, "berth", 5)) continue;
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            if ((fd = open(path, O_RDWR)) >= 0) {
                caught++;
                close(fd);
            }
            if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0) continue;
            // It may have executed meanwhile, and be the container's own.
            snprintf(path, sizeof path, "/proc/%d/comm", pid);
            fd = open(path, O_RDONLY);
            if (fd >= 0 && read(fd, name, 5) == 5 && !strncmp(name, "berth", 5)) caught++;
            if (fd >= 0) close(fd);
            ptrace(PTRACE_INTERRUPT, pid, NULL, NULL);
            waitpid(pid, NULL, __WALL);
            ptrace(PTRACE_DETACH, pid, NULL, NULL);
        }
        closedir(proc);
        if (access("/tmp/stop", F_OK) == 0) break;
    }
    printf("ptrace-joiner %ld\n", caught);
    return 0;
}

static int parent_of(pid_t pid, char comm[32]) {
    char path[64], text[512] = "";
    int parent = -1;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return -1;
    if (read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    close(fd);
    char *name = strchr(text, '('), *end = strrchr(text, ')');
    if (!name || !end || sscanf(end + 1, " %*c %d", &parent) != 1) return -1;
    snprintf(comm, 32, "%.*s", (int)(end - name - 1), name + 1);
    return parent;
}

static long open_of(pid_t pid, const char *file, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    return open(path, flags);
}

// Children of a program that share its memory (native/addon/as_root.c) live for some microseconds: whatever has the next number
// and is the program's is tried in all the ways that lead into a process. `kill` ends them instead.
static void attack_children(pid_t program, bool kills) {
    static const char *const files[] = {"mem", "fd", "root", "cwd", "ns/mnt", "ns/user", "environ", "maps", "exe", "auxv"};
    long seen[2] = {0}, caught = 0;
    for (int round = 0; access("/tmp/stop", F_OK) < 0; round++) {
        char text[128] = "", comm[32];
        int fd = open("/proc/loadavg", O_RDONLY), last = 0;
        if (fd < 0 || read(fd, text, sizeof text - 1) < 0 || sscanf(text, "%*s %*s %*s %*s %d", &last) != 1) exit(5);
        close(fd);
        for (pid_t pid = last - 1; pid < last + 4; pid++) {
            if (parent_of(pid, comm) != program || !strncmp(comm, "berth", 5)) continue;
            size_t way = (size_t)(round % 14);
            seen[0]++;
            if (kills) {
                if (kill(pid, SIGKILL) == 0) seen[1]++;
                continue;
            }
            long result = -1;
            if (way < 10) result = open_of(pid, files[way], way == 0 ? O_RDWR : O_RDONLY);
            // One that has ended, and been waited for by nobody yet, has such files, with nothing in them.
            if (way >= 6 && way < 10 && way != 8 && result >= 0) {
                char byte;
                int file = (int)result;
                result = read(file, &byte, 1) == 1 ? 0 : -1;
                close(file);
            }
            else if (way == 10) result = ptrace(PTRACE_SEIZE, pid, NULL, NULL);
            else if (way == 11) result = ptrace(PTRACE_ATTACH, pid, NULL, NULL);
            else if (way == 12) {
                char byte;
                struct iovec to = {&byte, 1}, from = {(void *)&files, 1};
                result = process_vm_readv(pid, &to, 1, &from, 1, 0);
                if (result < 0 && errno == EFAULT) result = 0; // it could, had it known where
            } else {
                long pidfd = syscall(SYS_pidfd_open, pid, 0);
                if (pidfd >= 0) result = syscall(SYS_pidfd_getfd, pidfd, 2, 0);
                if (pidfd >= 0) close((int)pidfd);
            }
            if (result >= 0) printf("caught by %zu\n", way);
            if (result < 0 && (errno == EACCES || errno == EPERM)) seen[1]++;
            caught += result >= 0;
        }
    }
    printf("children %s %s caught %ld\n", seen[0] > 0 ? "seen" : "unseen", seen[1] > 0 ? kills ? "killed" : "refused" : "-", caught);
}

static long find_key(const char *name) { return syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_SESSION_KEYRING, "user", name, 0); }

static long connect_abstract(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    return connect(fd, (void *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}

// The interfaces that routing netlink tells of.
static void count_links(void) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {.ifi_family = AF_UNSPEC}};
    char answer[65536];
    int links = 0, fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0) return say("links", -1);
    for (;;) {
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        if (n <= 0) break;
        for (struct nlmsghdr *head = (void *)answer; NLMSG_OK(head, (size_t)n); head = NLMSG_NEXT(head, n)) {
            if (head->nlmsg_type == RTM_NEWLINK) links++;
            if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR) {
                printf("links %d\n", links);
                return;
            }
        }
    }
}

// A link that would be the host's to make.
static long add_link(void) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg body;
        struct rtattr attribute;
        char name[8];
    } request = {
        {sizeof request, RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0},
        {.ifi_family = AF_UNSPEC, .ifi_index = 1, .ifi_change = 1, .ifi_flags = 0},
        {sizeof(struct rtattr) + 8, IFLA_IFALIAS},
        "berth",
    };
    char answer[4096];
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 || recv(fd, answer, sizeof answer, 0) < 0) return -1;
    errno = -((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)answer))->error;
    return errno == 0 ? 0 : -1;
}

// Files that say themselves that they can be written, and can: one by one, without writing.
static int writable_found;
static void find_writable(const char *folder, int depth) {
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[4096];
        struct stat status;
        // Processes' own files are no matter of the host's.
        if (entry->d_name[0] == '.' || (!strcmp(folder, "/proc") && (atoi(entry->d_name) > 0 || strstr(entry->d_name, "self")))) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (lstat(path, &status) < 0) continue;
        if (S_ISDIR(status.st_mode) && depth < 24) find_writable(path, depth + 1);
        if (!S_ISREG(status.st_mode) || !(status.st_mode & 0222)) continue;
        int fd = open(path, O_WRONLY | O_NONBLOCK);
        if (fd < 0) continue;
        close(fd);
        if (writable_found++ < 20) printf("%s%s", writable_found == 1 ? "writable " : ",", path);
    }
    closedir(dir);
}

static long add_session_key(const char *name) { return syscall(SYS_add_key, "user", name, "secret", 6, KEY_SPEC_SESSION_KEYRING); }

static void listen_abstract(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    if (bind(fd, (void *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name))) < 0 || listen(fd, 8) < 0) exit(1);
    puts("listening");
    fflush(stdout);
    pause();
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? -1 : close(fd);
}

// Where nothing says whose it is: without its parent-death signal, in a mount namespace with one empty file system.
static int hide(void) {
    char map[32];
    snprintf(map, sizeof map, "0 %u 1", getuid());
    prctl(PR_SET_PDEATHSIG, 0);
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) return -1;
    if (write_file("/proc/self/setgroups", "deny") < 0 || write_file("/proc/self/uid_map", map) < 0) return -1;
    if (syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL) < 0 || chdir("/tmp") < 0) return -1;
    if (syscall(SYS_pivot_root, ".", ".") < 0 || syscall(SYS_umount2, ".", 2) < 0) return -1;
    if (fork() == 0) setsid();
    return 0;
}

static const struct {
    const char *word;
    long (*attempt)(void);
} attempts[] = {
    {"mount", try_mount}, {"umount", try_umount}, {"unshare", try_unshare}, {"setns", try_setns}, {"pivot_root", try_pivot},
    {"keyctl", try_keyctl}, {"add_key", try_add_key}, {"request_key", try_request_key}, {"bpf", try_bpf},
    {"perf_event_open", try_perf}, {"io_uring_setup", try_io_uring}, {"userfaultfd", try_userfaultfd},
    {"kexec_load", try_kexec}, {"init_module", try_module}, {"reboot", try_reboot}, {"clock_settime", try_settime},
    {"swapon", try_swapon}, {"open_by_handle_at", try_handle}, {"fsopen", try_fsopen}, {"clone3", try_clone3},
    {"clone-user", try_new_user}, {"fork", try_fork}, {"future", try_future}, {"alg", try_alg}, {"vsock", try_vsock},
    {"unix", try_unix}, {"inet", try_inet}, {"packet", try_packet}, {"personality", try_personality},
    {"no-randomization", try_no_randomization}, {"getpid", try_getpid}, {"uname", try_uname}, {"mkdir", try_mkdir},
    {"getcpu", try_getcpu}, {"tiocsti", try_tiocsti}, {"tty", try_tty}, {"traceme", try_ptrace_self}, {"set-link", add_link},
};

int main(int argc, char **argv) {
    for (int k = 1; k < argc; k++) {
        const char *word = argv[k];
        if (!strcmp(word, "ptrace-joiner")) ptrace_joiner();
        else if (!strncmp(word, "children:", 9)) attack_children(atoi(word + 9), false);
        else if (!strncmp(word, "kill-children:", 14)) attack_children(atoi(word + 14), true);
        else if (!strncmp(word, "key:", 4)) say("key", find_key(word + 4));
        else if (!strncmp(word, "abstract:", 9)) say("abstract", connect_abstract(word + 9));
        else if (!strcmp(word, "links")) count_links();
        else if (!strncmp(word, "add-key:", 8)) say("add-key", add_session_key(word + 8));
        else if (!strncmp(word, "listen:", 7)) listen_abstract(word + 7);
        else if (!strcmp(word, "stay")) {
            say("stay", prctl(PR_SET_PDEATHSIG, 0));
            fflush(stdout);
            pause();
        } else if (!strcmp(word, "hide")) {
            say("hide", hide());
            fflush(stdout);
            pause();
        }
        else if (!strncmp(word, "writable:", 9)) {
            writable_found = 0;
            find_writable(word + 9, 0);
            puts(writable_found == 0 ? "writable none" : "");
        } else if (!strncmp(word, "in-session:", 11)) {
            // A session keyring with a key in it, in which the rest of the words are executed.
            if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 || add_session_key(word + 11) < 0) return 3;
            execvp(argv[k + 1], argv + k + 1);
            return 4;
        }
        else {
            size_t a = 0;
            while (a < sizeof attempts / sizeof *attempts && strcmp(attempts[a].word, word)) a++;
            if (a == sizeof attempts / sizeof *attempts) return 2;
            say(word, in_child(attempts[a].attempt));
        }
        fflush(stdout);
    }
    return 0;
}
