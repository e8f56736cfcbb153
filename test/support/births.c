// An attacker at work: `births` stops or kills every process that comes to be in its pid namespace, as early as it can, and
// meanwhile floods its output, forks, and renames in its root.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t last_pid(void) {
    char text[128] = "";
    const char *last;
    int fd = open("/proc/loadavg", O_RDONLY);
    if (fd < 0 || read(fd, text, sizeof text - 1) < 0 || !(last = strrchr(text, ' '))) exit(1);
    close(fd);
    return atoi(last);
}

// The next numbers are tried again and again, which takes less time than to ask for the last one.
static void attack(void) {
    for (unsigned round = 0;; round++) {
        pid_t last = last_pid();
        for (int k = 0; k < 200; k++)
            for (int next = 1; next <= 3; next++)
                kill(last + next, (round + (unsigned)next) % 2 ? SIGSTOP : SIGKILL);
    }
}

static void flood(void) {
    char text[4096];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\n';
    while (write(1, text, sizeof text) > 0) continue;
    exit(0);
}

// Its children are stopped as well, and stay.
static void fork_on(void) {
    for (int children = 0;;) {
        if (children < 32 && fork() == 0) _exit(0);
        if (children < 32) children++;
        while (waitpid(-1, NULL, WNOHANG) > 0) children--;
        usleep(1000);
    }
}

static void rename_on(void) {
    mkdir("/nib", 0755);
    for (;;) {
        renameat2(AT_FDCWD, "/bin", AT_FDCWD, "/nib", RENAME_EXCHANGE);
        renameat2(AT_FDCWD, "/tmp", AT_FDCWD, "/home", RENAME_EXCHANGE);
    }
}

int main(void) {
    void (*const works[])(void) = {flood, fork_on, rename_on, attack};
    // The last one begins when the others are there, whom it would stop.
    for (size_t k = 0; k < sizeof works / sizeof *works; k++)
        if (fork() == 0) works[k]();
    for (;;)
        if (wait(NULL) < 0) pause();
}
