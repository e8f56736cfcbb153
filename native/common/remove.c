#include "remove.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

// Overlayfs leaves work/work with mode 000, and a container may leave any mode. The owner can always change it.
static DIR *open_folder(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && fchmodat(parent, name, 0700, 0) == 0)
        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return NULL;
    DIR *folder = fdopendir(fd);
    if (!folder) close_descriptor(&fd);
    return folder;
}

// A container may nest folders to any depth, and each level costs a descriptor. A deeper folder is moved up to the top first, and
// removed from there.
#define DEPTH_MAX 64

struct removal {
    dev_t device;
    long budget; // of entries
    int top;     // the folder to remove, -1 until it is open
    bool moved;  // a folder was moved into it, which its reader may have missed
    unsigned long name; // of the next moved folder
};

static int move_up(struct removal *removal, int folder, const char *name) {
    char fresh[32];
    for (;;) {
        snprintf(fresh, sizeof fresh, ".deep-%lu", removal->name++);
        if (renameat(folder, name, removal->top, fresh) == 0) break;
        // A rename to another folder writes "..", and the folder's own mode may refuse that.
        if (errno == EACCES && fchmodat(folder, name, 0700, 0) == 0 && renameat(folder, name, removal->top, fresh) == 0) break;
        if (errno != EEXIST && errno != ENOTEMPTY && errno != ENOTDIR) return -1;
    }
    removal->moved = true;
    return 0;
}

static int remove_below(struct removal *removal, int parent, const char *name, int depth) {
    DIR *folder = open_folder(parent, name);
    struct stat status;
    int result = -1, fd;

    if (!folder) return -1;
    fd = dirfd(folder);
    if (depth == 0) removal->top = fd;
    if (fstat(fd, &status) < 0) goto out;
    if (status.st_dev != removal->device) {
        errno = EXDEV;
        goto out;
    }
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry && errno == 0 && depth == 0 && removal->moved) {
            removal->moved = false;
            rewinddir(folder);
            continue;
        }
        if (!entry) {
            if (errno == 0) result = 0;
            break;
        }
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (--removal->budget < 0) {
            result = 1;
            break;
        }
        if (entry->d_type != DT_DIR && unlinkat(fd, entry->d_name, 0) == 0) continue;
        if (entry->d_type != DT_DIR && errno != EISDIR) break;
        if (depth == DEPTH_MAX) {
            if (move_up(removal, fd, entry->d_name) < 0) break;
            continue;
        }
        int inner = remove_below(removal, fd, entry->d_name, depth + 1);
        if (inner == 0 && unlinkat(fd, entry->d_name, AT_REMOVEDIR) < 0) break;
        if (inner != 0) {
            result = inner;
            break;
        }
    }
out:;
    int error = errno;
    closedir(folder);
    errno = error;
    return result;
}

int remove_tree(int parent, const char *path, long budget) {
    struct stat status;
    if (fstatat(parent, path, &status, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : -1;
    struct removal removal = {.device = status.st_dev, .budget = budget, .top = -1};
    int result = remove_below(&removal, parent, path, 0);
    if (result != 0) return result;
    return unlinkat(parent, path, AT_REMOVEDIR);
}
