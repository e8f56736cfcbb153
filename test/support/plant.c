// What a hostile container does to files: plant WHAT PATH [NUMBER].
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

static int fail(const char *call) {
    perror(call);
    return 1;
}

// Folders in each other, `count` levels, each with a file beside the next.
static int deep(const char *path, long count) {
    if (mkdir(path, 0755) < 0 || chdir(path) < 0) return fail("mkdir");
    for (long k = 0; k < count; k++) {
        int fd = open("file", O_WRONLY | O_CREAT, 0644);
        if (fd < 0 || write(fd, "x", 1) != 1) return fail("open");
        close(fd);
        if (mkdir("d", 0755) < 0 || chdir("d") < 0) return fail("mkdir");
    }
    return 0;
}

// cap_sys_admin=ep, in the form that has no user namespace's root in it.
static int capability(const char *path) {
    const unsigned char value[20] = {1, 0, 0, 2, 0, 0, 0x20};
    int fd = open(path, O_WRONLY | O_CREAT, 0755);
    if (fd < 0 || write(fd, "#!", 2) != 2) return fail("open");
    return setxattr(path, "security.capability", value, sizeof value, 0) < 0 ? fail("setxattr") : 0;
}

// A file of one hole, with a byte at its end.
static int hole(const char *path, long size) {
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    if (fd < 0) return fail("open");
    return pwrite(fd, "x", 1, size - 1) == 1 ? 0 : ftruncate(fd, size) < 0 ? fail("ftruncate") : 0;
}

// Many files in one folder.
static int many(const char *path, long count) {
    char name[32];
    if (mkdir(path, 0755) < 0 || chdir(path) < 0) return fail("mkdir");
    for (long k = 0; k < count; k++) {
        snprintf(name, sizeof name, "%08lx", (k * 2654435761) & 0xffffffff);
        int fd = open(name, O_WRONLY | O_CREAT, 0644);
        if (fd < 0) return fail("open");
        close(fd);
    }
    return 0;
}

// The lock of a file that may only be read, until it is killed.
static int lock(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) return fail("flock");
    if (write(1, "locked\n", 7) != 7) return fail("write");
    return pause();
}

// Makes, moves and removes entries of each kind in the folder, until it is killed: what a name is changes at any time.
static int swap(const char *path) {
    char name[16], other[16];
    if (chdir(path) < 0) return fail("chdir");
    if (write(1, "ready\n", 6) != 6) return fail("write");
    for (unsigned n = 0;; n++) {
        snprintf(name, sizeof name, "%u", n % 61);
        snprintf(other, sizeof other, "%u", n * 7 % 61);
        if (unlink(name) < 0) rmdir(name);
        switch (n % 7) {
        case 0: mkdir(name, 0755); break;
        case 1: symlink("/", name); break;
        case 2: mkfifo(name, 0644); break;
        case 3: link(other, name); break;
        case 4: rename(other, name); break;
        default: close(open(name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0644)); truncate(name, n % 2 * 8192);
        }
    }
}

int main(int argc, char **argv) {
    long number = argc > 3 ? atol(argv[3]) : 0;
    if (argc < 3) return 2;
    if (!strcmp(argv[1], "deep")) return deep(argv[2], number);
    if (!strcmp(argv[1], "many")) return many(argv[2], number);
    if (!strcmp(argv[1], "hole")) return hole(argv[2], number);
    if (!strcmp(argv[1], "capability")) return capability(argv[2]);
    if (!strcmp(argv[1], "swap")) return swap(argv[2]);
    if (!strcmp(argv[1], "lock")) return lock(argv[2]);
    return 2;
}
