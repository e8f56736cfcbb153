// Paths in the process' root: resolves them, opens their folders, and removes what is in the way of a name.
//
// A folder is opened with openat2 and no symlinks; where that is refused, walk() goes component by component, follows
// links by hand, and makes what is missing.
#include "unpack.h"

#include "util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    MAX_LINKS = 40, // as the kernel's own path walk (MAXSYMLINKS)
};

const char *blame;
static int root = -1;
static struct folder folders[] = {[OWN] = {.fd = -1}, [TARGET] = {.fd = -1}};

void fail_io(const char *call) {
    fail(IO, errno, call, blame, "%s", strerror(errno));
}

char *join(const char *folder, const char *name) {
    size_t folder_length = strlen(folder), name_length = strlen(name);
    char *path = grow(NULL, folder_length + name_length + 2);
    memcpy(path, folder, folder_length);
    if (folder_length > 0) path[folder_length++] = '/';
    memcpy(path + folder_length, name, name_length + 1);
    return path;
}

const char *split(char *path, const char **folder) {
    char *slash = strrchr(path, '/');
    *folder = slash ? path : "";
    if (!slash) return path;
    *slash = '\0';
    return slash + 1;
}

char *clean(const char *raw, const char *what) {
    char *path = grow(NULL, strlen(raw) + 1), *end = path;
    for (const char *rest = raw; *rest;) {
        size_t length = strcspn(rest, "/");
        if (length == 2 && memcmp(rest, "..", 2) == 0) fail(ESCAPE, 0, NULL, blame, "%s has a .. component", what);
        if (length > 0 && !(length == 1 && *rest == '.')) {
            if (end > path) *end++ = '/';
            memcpy(end, rest, length);
            end += length;
        }
        rest += length;
        rest += strspn(rest, "/");
    }
    *end = '\0';
    return path;
}

// ---- removing what is in the way

// Removes what can be removed from the folder; returns whether a folder that isn't empty was left, and its name.
static bool remove_children(int fd, char left[static NAME_MAX + 1]) {
    DIR *stream = fdopendir(fd);
    if (!stream) fail_io("fdopendir");
    bool found = false;
    for (;;) {
        errno = 0;
        struct dirent *child = readdir(stream);
        if (!child && errno) fail_io("readdir");
        if (!child) break;
        if (strcmp(child->d_name, ".") == 0 || strcmp(child->d_name, "..") == 0) continue;
        if (unlinkat(fd, child->d_name, 0) == 0 || (errno == EISDIR && unlinkat(fd, child->d_name, AT_REMOVEDIR) == 0))
            continue;
        if (errno != ENOTEMPTY && errno != EEXIST) fail_io("unlinkat");
        found = true;
        memcpy(left, child->d_name, strlen(child->d_name) + 1);
    }
    closedir(stream);
    return found;
}

// Goes down and up with one descriptor, whatever the depth; `..` is safe where nobody else moves folders.
static void remove_tree(int dir, const char *name) {
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    cleanup_close int here = openat(dir, name, flags);
    if (here < 0) fail_io("openat");
    for (size_t depth = 0;;) {
        char left[NAME_MAX + 1];
        int stream = openat(here, ".", flags);
        if (stream < 0) fail_io("openat");
        bool deeper = remove_children(stream, left);
        if (!deeper && depth == 0) break;
        int next = openat(here, deeper ? left : "..", flags);
        if (next < 0) fail_io("openat");
        close(here);
        here = next;
        depth = deeper ? depth + 1 : depth - 1;
    }
    if (unlinkat(dir, name, AT_REMOVEDIR) < 0) fail_io("unlinkat");
}

void clear_way(int dir, const char *name) {
    struct stat there;
    if (fstatat(dir, name, &there, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno == ENOENT) return;
        fail_io("fstatat");
    }
    if (S_ISDIR(there.st_mode))
        remove_tree(dir, name);
    else if (unlinkat(dir, name, 0) < 0)
        fail_io("unlinkat");
    // A path that led through here leads elsewhere now. The descriptors stay open: the caller may be using them.
    if (S_ISDIR(there.st_mode) || S_ISLNK(there.st_mode)) folders[OWN].stale = folders[TARGET].stale = true;
}

// ---- opening folders

int path_start(void) {
    root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail_io("open");
    return root;
}

static int open_root(void) {
    int fd = fcntl(root, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) fail_io("fcntl");
    return fd;
}

// Opens a folder by a path that may lead through symlinks, be missing in part (`create` makes it) or be longer than
// PATH_MAX; -1 and errno where it can't. *place becomes the folder's own path. Absolute links start over from the
// root, and the kernel stops `..` there, so this is RESOLVE_IN_ROOT, one component at a time.
static int walk(const char *path, bool create, char **place) {
    cleanup_free char *todo = copy(path, strlen(path));
    cleanup_free char *where = copy("", 0);
    cleanup_close int here = open_root();
    int followed = 0;
    for (const char *rest = todo;;) {
        rest += strspn(rest, "/");
        size_t length = strcspn(rest, "/");
        if (length == 0) break;
        if (length > NAME_MAX) return errno = ENAMETOOLONG, -1;
        char name[NAME_MAX + 1];
        memcpy(name, rest, length);
        name[length] = '\0';
        rest += length;
        if (strcmp(name, ".") == 0) continue;
        bool up = strcmp(name, "..") == 0; // only from a link's target
        cleanup_free char *longer = up ? copy(where, strlen(where)) : join(where, name);
        if (up) *(strrchr(longer, '/') ?: longer) = '\0';
        cleanup_close int next = openat(here, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0 && errno == ENOENT && create) {
            make_implicit(here, name, longer);
            next = openat(here, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        }
        if (next < 0) return -1;
        struct stat there;
        if (fstat(next, &there) < 0) fail_io("fstat");
        if (S_ISLNK(there.st_mode)) {
            char target[PATH_MAX];
            ssize_t size = readlinkat(next, "", target, sizeof target - 1);
            if (size < 0) fail_io("readlinkat");
            if (++followed > MAX_LINKS) return errno = ELOOP, -1;
            target[size] = '\0';
            char *replaced = join(target, rest);
            free(todo);
            rest = todo = replaced;
            if (target[0] != '/') continue;
            close(here);
            here = open_root();
            *where = '\0';
        } else if (S_ISDIR(there.st_mode)) {
            close(here);
            here = steal_fd(&next);
            free(where);
            where = longer;
            longer = NULL;
        } else {
            return errno = ENOTDIR, -1;
        }
    }
    *place = where;
    where = NULL;
    return steal_fd(&here);
}

const struct folder *folder_at(enum slot slot, const char *path, bool create) {
    struct folder *folder = &folders[slot];
    if (folder->fd >= 0 && !folder->stale && strcmp(folder->asked, path) == 0) return folder;
    if (folder->fd >= 0) close(folder->fd);
    free(folder->asked);
    free(folder->path);
    *folder = (struct folder){.fd = -1};
    struct open_how how = {
        .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
    };
    folder->fd = (int)syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
    if (folder->fd >= 0)
        folder->path = copy(path, strlen(path));
    else if ((folder->fd = walk(path, create, &folder->path)) < 0)
        return NULL;
    folder->asked = copy(path, strlen(path));
    return folder;
}
