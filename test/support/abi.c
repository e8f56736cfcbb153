// System calls by other ways than a program of this machine takes, one a word: `int80:NAME` by the 32-bit table, `x32:NAME`
// by a number with the bit of x32, `high:NAME` with bits above those that the kernel looks at. Tells what came of each.
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define X32 0x40000000
#define HIGH (1L << 32)
#define AF_ALG_FAMILY 38
#define AF_VSOCK_FAMILY 40
#define SYS_SOCKET 1

// Pointers of a static program that is at a fixed place fit into 32 bits.
static unsigned alg[] = {AF_ALG_FAMILY, SOCK_SEQPACKET, 0}, vsock[] = {AF_VSOCK_FAMILY, SOCK_STREAM, 0}, inet[] = {AF_INET, SOCK_STREAM, 0};
static char none[] = "none", tmp[] = "/tmp", tmpfs[] = "tmpfs";
#define AT(object) ((long)(object))

static const struct {
    const char *word;
    long number, a, b, c, d;
} calls[] = {
    {"int80:getpid", 20, 0, 0, 0, 0},
    {"int80:inet", 359, AF_INET, SOCK_STREAM, 0, 0},
    {"int80:mount", 21, AT(none), AT(tmp), AT(tmpfs), 0},
    {"int80:umount", 22, AT(tmp), 0, 0, 0},
    {"int80:umount2", 52, AT(tmp), 2, 0, 0},
    {"int80:unshare", 310, CLONE_NEWUSER, 0, 0, 0},
    {"int80:setns", 346, -1, 0, 0, 0},
    {"int80:clone-user", 120, CLONE_NEWUSER | SIGCHLD, 0, 0, 0},
    {"int80:clone3", 435, 0, 0, 0, 0},
    {"int80:pivot_root", 217, AT(tmp), AT(tmp), 0, 0},
    {"int80:add_key", 286, AT(none), AT(none), AT(none), 1},
    {"int80:request_key", 287, AT(none), AT(none), 0, 0},
    {"int80:keyctl", 288, 0, -3, 1, 0},
    {"int80:bpf", 357, 0, 0, 0, 0},
    {"int80:perf_event_open", 336, 0, 0, -1, -1},
    {"int80:io_uring_setup", 425, 1, 0, 0, 0},
    {"int80:userfaultfd", 374, 0, 0, 0, 0},
    {"int80:kexec_load", 283, 0, 0, 0, 0},
    {"int80:init_module", 128, 0, 0, AT(none), 0},
    {"int80:delete_module", 129, AT(none), 0, 0, 0},
    {"int80:reboot", 88, 0, 0, 0, 0},
    {"int80:swapon", 87, 0, 0, 0, 0},
    {"int80:stime", 25, 0, 0, 0, 0},
    {"int80:settimeofday", 79, 0, 0, 0, 0},
    {"int80:clock_settime", 264, 0, 0, 0, 0},
    {"int80:clock_settime64", 404, 0, 0, 0, 0},
    {"int80:open_by_handle_at", 342, -1, 0, 0, 0},
    {"int80:open_tree", 428, -1, AT(tmp), 0, 0},
    {"int80:fsopen", 430, AT(tmpfs), 0, 0, 0},
    {"int80:mount_setattr", 442, -1, AT(tmp), 0, 0},
    {"int80:syslog", 103, 10, 0, 0, 0},
    {"int80:acct", 51, 0, 0, 0, 0},
    {"int80:quotactl", 131, 0, 0, 0, 0},
    {"int80:ioperm", 101, 0x80, 1, 1, 0},
    {"int80:iopl", 110, 3, 0, 0, 0},
    {"int80:vm86", 166, 0, 0, 0, 0},
    {"int80:personality", 136, ADDR_NO_RANDOMIZE, 0, 0, 0},
    {"int80:alg", 359, AF_ALG_FAMILY, SOCK_SEQPACKET, 0, 0},
    {"int80:vsock", 359, AF_VSOCK_FAMILY, SOCK_STREAM, 0, 0},
    {"int80:socketcall-alg", 102, SYS_SOCKET, AT(alg), 0, 0},
    {"int80:socketcall-vsock", 102, SYS_SOCKET, AT(vsock), 0, 0},
    {"int80:socketcall-inet", 102, SYS_SOCKET, AT(inet), 0, 0},
    {"x32:getpid", X32 | SYS_getpid, 0, 0, 0, 0},
    {"x32:mount", X32 | SYS_mount, AT(none), AT(tmp), AT(tmpfs), 0},
    {"x32:unshare", X32 | SYS_unshare, CLONE_NEWUSER, 0, 0, 0},
    {"x32:keyctl", X32 | SYS_keyctl, 0, -3, 1, 0},
    {"x32:clone3", X32 | SYS_clone3, 0, 0, 0, 0},
    {"x32:alg", X32 | SYS_socket, AF_ALG_FAMILY, SOCK_SEQPACKET, 0, 0},
    {"x32:ptrace", X32 | 521, 0, 0, 0, 0},
    {"high:inet", SYS_socket, AF_INET, SOCK_STREAM, 0, 0},
    {"high:alg", SYS_socket, HIGH | AF_ALG_FAMILY, SOCK_SEQPACKET, 0, 0},
    {"high:vsock", SYS_socket, HIGH | AF_VSOCK_FAMILY, SOCK_STREAM, 0, 0},
    {"high:negative-alg", SYS_socket, -HIGH | AF_ALG_FAMILY, SOCK_SEQPACKET, 0, 0},
    {"high:personality", SYS_personality, HIGH | ADDR_NO_RANDOMIZE, 0, 0, 0},
    {"high:clone-user", SYS_clone, HIGH | CLONE_NEWUSER | SIGCHLD, 0, 0, 0},
    {"high:unshare", SYS_unshare, HIGH | CLONE_NEWUSER, 0, 0, 0},
    {"high:number", HIGH | SYS_unshare, CLONE_NEWUSER, 0, 0, 0},
};

static long int80(long number, long a, long b, long c, long d) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

static long raw(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "memory", "rcx", "r11");
    return result;
}

int main(int argc, char **argv) {
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) {
        int status, wanted = argc == 1;
        for (int n = 1; n < argc; n++) wanted |= !strcmp(argv[n], calls[k].word);
        if (!wanted) continue;
        pid_t parent = getpid(), pid = fork();
        if (pid == 0) {
            long (*call)(long, long, long, long, long) = calls[k].word[0] == 'i' ? int80 : raw;
            long result = call(calls[k].number, calls[k].a, calls[k].b, calls[k].c, calls[k].d);
            // What a clone has made is a child of the child.
            if (getppid() != parent) _exit(0);
            _exit(result < 0 ? (int)-result : 0);
        }
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status)) printf("killed by %d: %s -\n", WTERMSIG(status), calls[k].word);
        else printf("%s %s\n", calls[k].word, WEXITSTATUS(status) == 0 ? "ok" : strerrorname_np(WEXITSTATUS(status)));
        fflush(stdout);
    }
    return 0;
}
