// What a process of a container tries with those that join its pid namespace. Until /tmp/stop is there:
//
//   joining signal NUMBER           sends each of the next pids a signal
//   joining watch MARKER PORT       looks in each new process for the host's file MARKER, mounts other than its own, and a
//                                   TCP port of the host's (in hexadecimal), and prints what it found in how many
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[1 << 16];

static ssize_t slurp(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n, length = 0;
    while ((n = read(fd, text + length, sizeof text - 1 - (size_t)length)) > 0) length += n;
    close(fd);
    text[length] = '\0';
    return length;
}

static int last_pid(void) {
    int last = 0;
    if (slurp("/proc/loadavg") < 0 || sscanf(text, "%*s %*s %*s %*s %d", &last) != 1) exit(5);
    return last;
}

static ssize_t of(int pid, const char *file) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    return slurp(path);
}

static const char *field(const char *name) {
    static char value[4][64];
    static int next;
    char *at = strstr(text, name), *out = value[next = (next + 1) % 4];
    out[0] = '\0';
    if (at) sscanf(at + strlen(name), " %63s", out);
    return out;
}

static void send_signals(int number) {
    long sent = 0;
    while (access("/tmp/stop", F_OK) < 0)
        for (int last = last_pid(), k = 0; k < 600; k++)
            if (kill(last + 1 + k % 3, number) == 0) sent++;
    printf("sent %ld\n", sent);
}

// Credentials are compared, as whoever is seen has those that the command has: it has nothing left to give up.
static void watch(const char *marker, const char *port) {
    static char own_mounts[sizeof text];
    char path[4200], credentials[256], known[16][256];
    long seen = 0, roots = 0, mounts = 0, sockets = 0;
    int count = 0, own = getpid(), before = 0;
    of(own, "mountinfo");
    strcpy(own_mounts, text);
    while (access("/tmp/stop", F_OK) < 0) {
        int last = last_pid();
        for (int pid = last; pid <= last + 2; pid++) {
            if (pid == own || of(pid, "status") <= 0) continue;
            snprintf(credentials, sizeof credentials, "%s %s %s %s", field("CapEff:"), field("CapPrm:"), field("NoNewPrivs:"), field("Seccomp:"));
            if (pid != before) seen++;
            before = pid;
            int at = 0;
            while (at < count && strcmp(known[at], credentials) != 0) at++;
            if (at == count && count < 16) strcpy(known[count++], credentials);
            if (of(pid, "mountinfo") > 0 && strcmp(text, own_mounts) != 0) mounts++;
            if (of(pid, "net/tcp") > 0 && strstr(text, port)) sockets++;
            snprintf(path, sizeof path, "/proc/%d/root%s", pid, marker);
            int fd = open(path, O_RDWR | O_CLOEXEC);
            if (fd < 0) continue;
            roots++;
            if (write(fd, "written", 7) < 0) roots--;
            close(fd);
        }
    }
    printf("seen %s\nroots %ld\nmounts %ld\nsockets %ld\n", seen > 0 ? "some" : "none", roots, mounts, sockets);
    for (int k = 0; k < count; k++) printf("credentials %s\n", known[k]);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    if (argc == 3 && !strcmp(argv[1], "signal")) send_signals(atoi(argv[2]));
    else if (argc == 4 && !strcmp(argv[1], "watch")) watch(argv[2], argv[3]);
    else return 2;
    return 0;
}
