#include "remove.h"
#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

// Overlayfs leaves work/work with mode 000, and a container may leave anything: the owner can always set it right.
static DIR *open_folder(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && fchmodat(parent, name, 0700, 0) == 0)
        fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return NULL;
    DIR *folder = fdopendir(fd);
    if (!folder) close(fd);
    return folder;
}

static int remove_below(int parent, const char *name, dev_t device, long *budget) {
    DIR *folder = open_folder(parent, name);
    struct stat status;
    int result = -1, fd;

    if (!folder) return -1;
    fd = dirfd(folder);
    if (fstat(fd, &status) < 0) goto out;
    if (status.st_dev != device) {
        errno = EXDEV;
        goto out;
    }
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (!entry) {
            if (errno == 0) result = 0;
            break;
        }
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (--*budget < 0) {
            result = 1;
            break;
        }
        if (entry->d_type != DT_DIR && unlinkat(fd, entry->d_name, 0) == 0) continue;
        if (entry->d_type != DT_DIR && errno != EISDIR) break;
        int inner = remove_below(fd, entry->d_name, device, budget);
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

int remove_tree(const char *path, long budget) {
    struct stat status;
    if (lstat(path, &status) < 0) return errno == ENOENT ? 0 : -1;
    int result = remove_below(AT_FDCWD, path, status.st_dev, &budget);
    if (result != 0) return result;
    return rmdir(path);
}
