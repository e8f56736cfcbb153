// For the tests of masks. `masks swap A B` exchanges the two names until it is killed; `masks check PATH...` tells of
// every procfs at one of the paths that is not masked or can be written to, and looks again and again, as they may move.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PROC_MAGIC 0x9fa0
#define READ_ONLY 1

static void look(const char *proc, const char *file) {
    char path[256];
    struct statfs status;
    snprintf(path, sizeof path, "%s/%s", proc, file);
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) return;
    // A mask is a device or an empty folder of another file system.
    if (fstatfs(fd, &status) == 0 && status.f_type == PROC_MAGIC && !(status.f_flags & READ_ONLY)) printf("open %s\n", path);
    close(fd);
    if (strncmp(file, "sys/", 4) || (fd = open(path, O_WRONLY | O_CLOEXEC)) < 0) return;
    printf("writable %s\n", path);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "swap")) {
        puts("swapping");
        fflush(stdout);
        for (;;) renameat2(AT_FDCWD, argv[2], AT_FDCWD, argv[3], RENAME_EXCHANGE);
    }
    for (int round = 0; round < 200; round++) {
        for (int k = 2; k < argc; k++) {
            look(argv[k], "sys/kernel/core_pattern");
            look(argv[k], "sysrq-trigger");
            look(argv[k], "keys");
            look(argv[k], "timer_list");
        }
    }
    puts("checked");
    return 0;
}
