// Paths in the process's root: resolves them, opens their folders, and removes an earlier entry of a name.
//
// A folder is opened with openat2 without symlinks. If that fails, walk_to() opens as much of the path as it can that way, and takes
// the next component by hand: it follows a symlink, or makes a missing folder.
#include "unpack.h"

#include "../common/remove.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_LINKS = 40,       // the limit of the kernel's own path walk (MAXSYMLINKS)
    MAX_NAME = 16 * 1024, // bytes of a path; programs cannot name a file beyond PATH_MAX, which is 4096
    CALL = 8,             // the cost of a system call, in lookups of a folder
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
    if (strlen(raw) > MAX_NAME) fail(LIMIT, 0, NULL, NULL, "%s is longer than %d bytes", what, MAX_NAME);
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

// ---- removing an earlier entry

void clear_way(int dir, const char *name) {
    struct stat there;
    if (fstatat(dir, name, &there, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno == ENOENT) return;
        fail_io("fstatat");
    }
    if ((S_ISDIR(there.st_mode) ? remove_tree(dir, name, LONG_MAX) : unlinkat(dir, name, 0)) < 0) fail_io("unlinkat");
    // A path through this name leads elsewhere now. The descriptors stay open, as the caller may use them.
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

// Opens the folder at `path`. Returns -1 with errno if the path has a symlink or `..`, or does not lead to a folder.
static int open_plain(int dir, const char *path) {
    return sys_openat2(dir, path, O_PATH | O_DIRECTORY, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
}

// The length of the part of a path, from its beginning, that can be opened at once: it has no `.` and no `..`, and is not too long.
static size_t plain_length(const char *path) {
    size_t length = 0;
    while (path[length]) {
        size_t next = length + (path[length] == '/'), part = strcspn(path + next, "/");
        bool dots = part <= 2 && strspn(path + next, ".") >= part;
        if (dots || next + part >= PATH_MAX) break;
        length = next + part;
    }
    return length;
}

// The place of the slash nearest to the middle between `from` and `to`, or 0 if there is none.
static size_t cut(const char *path, size_t from, size_t to) {
    size_t middle = from + (to - from) / 2;
    const char *slash = memrchr(path + from + 1, '/', middle - from);
    if (!slash) slash = memchr(path + middle + 1, '/', to - middle - 1);
    return slash ? (size_t)(slash - path) : 0;
}

// Goes along `path` as far as there are folders and no symlinks. *here becomes the last of these folders. Returns the length of the
// path to it. Bisection takes few calls, even for a deep path.
static size_t descend(int *here, char *path) {
    size_t done = 0, end = plain_length(path);
    for (size_t to = end; to > done; to = cut(path, done, end)) {
        const char *from = path + done + (done > 0);
        char kept = path[to];
        path[to] = '\0';
        spend(CALL + (to - done) / CALL);
        int next = open_plain(*here, from);
        path[to] = kept;
        if (next < 0) {
            end = to;
            continue;
        }
        close(*here);
        *here = next;
        done = to;
        if (to == end) break;
    }
    return done;
}

// A walk along a path. `rest`, in `todo`, is the part that remains; `here` is the folder that has been reached, and `where` its path.
struct walk {
    char *todo, *rest, *where;
    size_t length; // of `where`
    int here;
    int followed; // links
    bool fresh;   // `here` was made just now, and is empty
};

static void end_walk(struct walk *walk) {
    free(walk->todo);
    free(walk->where);
    close_descriptor(&walk->here);
}

static void append(struct walk *walk, const char *name, size_t length) {
    if (length == 0) return;
    if (walk->length + length > MAX_NAME)
        fail(LIMIT, 0, NULL, blame, "a path that links lead to is longer than %d bytes", MAX_NAME);
    walk->where = grow(walk->where, walk->length + length + 2);
    if (walk->length > 0) walk->where[walk->length++] = '/';
    memcpy(walk->where + walk->length, name, length);
    walk->length += length;
    walk->where[walk->length] = '\0';
}

static void go_up(struct walk *walk) { // for `..` in the target of a link
    int above = openat(walk->here, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (above < 0) fail_io("openat");
    close(walk->here);
    walk->here = above;
    walk->fresh = false;
    char *slash = strrchr(walk->where, '/') ?: walk->where;
    *slash = '\0';
    walk->length = (size_t)(slash - walk->where);
}

static bool follow(struct walk *walk, int link) {
    char target[PATH_MAX];
    ssize_t size = readlinkat(link, "", target, sizeof target - 1);
    if (size < 0) fail_io("readlinkat");
    if (++walk->followed > MAX_LINKS) return errno = ELOOP, false;
    target[size] = '\0';
    char *replaced = join(target, walk->rest);
    free(walk->todo);
    walk->rest = walk->todo = replaced;
    if (target[0] != '/') return true;
    close(walk->here);
    walk->here = open_root();
    walk->length = 0;
    *walk->where = '\0';
    return true;
}

// Takes one component by hand: a link, a missing folder, or something that cannot be opened.
static bool step(struct walk *walk, bool create) {
    size_t length = strcspn(walk->rest, "/");
    if (length > NAME_MAX) return errno = ENAMETOOLONG, false;
    char name[NAME_MAX + 1];
    memcpy(name, walk->rest, length);
    name[length] = '\0';
    walk->rest += length;
    if (strcmp(name, ".") == 0) return true;
    spend(3 * CALL);
    if (strcmp(name, "..") == 0) return go_up(walk), true;
    cleanup_close int next = walk->fresh ? -1 : openat(walk->here, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    bool made = create && (walk->fresh || (next < 0 && errno == ENOENT));
    if (next < 0 && !made) return false;
    struct stat there;
    if (!made) {
        if (fstat(next, &there) < 0) fail_io("fstat");
        if (S_ISLNK(there.st_mode)) return follow(walk, next);
        if (!S_ISDIR(there.st_mode)) return errno = ENOTDIR, false;
    }
    append(walk, name, length);
    if (made) {
        make_implicit(walk->here, name, walk->where);
        next = openat(walk->here, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) fail_io("openat");
    }
    close(walk->here);
    walk->here = steal_fd(&next);
    walk->fresh = made;
    return true;
}

// Opens a folder by a path that may lead through symlinks, may be longer than PATH_MAX, or may be missing in part (`create` makes the
// missing folders). Returns -1 with errno on failure. *place becomes the folder's own path. Absolute links start over from the root,
// and the kernel stops `..` there, so the result is that of RESOLVE_IN_ROOT.
static int walk_to(const char *path, bool create, char **place) {
    __attribute__((cleanup(end_walk))) struct walk walk = {
        .todo = copy(path, strlen(path)), .where = copy("", 0), .here = open_root()};
    for (walk.rest = walk.todo;;) {
        walk.rest += strspn(walk.rest, "/");
        size_t done = walk.fresh ? 0 : descend(&walk.here, walk.rest);
        append(&walk, walk.rest, done);
        walk.rest += done;
        walk.rest += strspn(walk.rest, "/");
        if (!*walk.rest) break;
        if (!step(&walk, create)) return -1;
    }
    *place = walk.where;
    walk.where = NULL;
    return steal_fd(&walk.here);
}

const struct folder *folder_at(enum slot slot, const char *path, bool create) {
    struct folder *folder = &folders[slot];
    if (folder->fd >= 0 && !folder->stale && strcmp(folder->asked, path) == 0) return folder;
    close_descriptor(&folder->fd);
    free(folder->asked);
    free(folder->path);
    *folder = (struct folder){.fd = -1};
    folder->fd = open_plain(root, *path ? path : ".");
    if (folder->fd >= 0)
        folder->path = copy(path, strlen(path));
    else if ((folder->fd = walk_to(path, create, &folder->path)) < 0)
        return NULL;
    folder->asked = copy(path, strlen(path));
    return folder;
}
