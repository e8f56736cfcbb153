// Attaching: everything that a container sees below its root, placed by descriptor.
#include "mount.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

// The part of `path` that is below `target`, "." where that is the path itself, or NULL.
static const char *below(const char *path, const char *target) {
    size_t length = strlen(target);
    if (strncmp(path, target, length) != 0 || (path[length] != '/' && path[length] != '\0')) return NULL;
    for (path += length; *path == '/';) path++;
    return *path ? path : ".";
}

// Where the path is resolved from: the descriptor of a mount that has been pinned, else the root. Another container
// with the same root can rename what the path leads through, but never what a descriptor is of.
static int base(const struct root *root, const char **path) {
    for (size_t k = root->count; k-- > 0;) {
        const char *rest = below(*path, root->pinned[k].target);
        if (!rest) continue;
        *path = rest;
        return root->pinned[k].mount;
    }
    return root->mount;
}

// Symbolic links are followed, as they are the image's own, but only inside the root; /proc/self/fd and its like never
// (CVE-2021-30465, CVE-2026-41579). A rename racing with "..", which only an attacker does here, gives EAGAIN.
static int resolve(int from, const char *path, uint64_t flags, uint64_t links) {
    for (int attempt = 0;; attempt++) {
        int fd = sys_openat2(from, path, flags | O_CLOEXEC, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | links);
        if (fd >= 0 || errno != EAGAIN || attempt == 32) return fd;
    }
}

// Opens the folder that holds `path`'s last component and copies that component; missing folders are made, each by
// the descriptor of the one above it, so that no link can place one outside (CVE-2024-45310).
static int resolve_parent(int from, const char *path, char *last, size_t room, struct failure *failure) {
    char prefix[4096];
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/') length--;
    size_t cut = length;
    while (cut > 0 && path[cut - 1] != '/') cut--;
    if (length == 0 || length >= sizeof prefix || length - cut >= room) {
        errno = length == 0 ? EINVAL : ENAMETOOLONG;
        return fail(failure, "openat2");
    }
    memcpy(last, path + cut, length - cut);
    last[length - cut] = '\0';
    memcpy(prefix, path, cut);
    prefix[cut] = '\0';

    int parent = resolve(from, cut == 0 ? "/" : prefix, O_PATH | O_DIRECTORY, 0);
    if (parent >= 0) return parent;
    if (errno != ENOENT) return fail(failure, "openat2");
    if ((parent = resolve(from, "/", O_PATH | O_DIRECTORY, 0)) < 0) return fail(failure, "openat2");
    for (size_t at = 0; at < cut; at++) {
        if (prefix[at] != '/' || at == 0) continue;
        size_t start = at;
        while (start > 0 && prefix[start - 1] != '/') start--;
        prefix[at] = '\0';
        if (start < at && mkdirat(parent, prefix + start, 0755) < 0 && errno != EEXIST) {
            close(parent);
            return fail(failure, "mkdirat");
        }
        close(parent);
        if ((parent = resolve(from, prefix, O_PATH | O_DIRECTORY, 0)) < 0) return fail(failure, "openat2");
        prefix[at] = '/';
    }
    return parent;
}

// The target of a mount as a descriptor, made if it is missing: a folder, or an empty file where `file` says so. `links`
// is RESOLVE_NO_SYMLINKS where no link may lead to it.
static int resolve_target(const struct root *root, const char *path, int file, uint64_t links, struct failure *failure) {
    char last[256];
    int from = base(root, &path);
    int target = resolve(from, path, O_PATH, links);
    if (target >= 0) return target;
    if (errno != ENOENT) return fail(failure, "openat2");
    cleanup_close int parent = resolve_parent(from, path, last, sizeof last, failure);
    if (parent < 0) return -1;
    // Another container that starts in the same root may be the faster one.
    if (file) {
        cleanup_close int made = openat(parent, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (made < 0 && errno != EEXIST) return fail(failure, "openat");
    } else if (mkdirat(parent, last, 0755) < 0 && errno != EEXIST) {
        return fail(failure, "mkdirat");
    }
    // In the folder in which it has been made: the path may lead elsewhere by now.
    target = resolve(parent, last, O_PATH, RESOLVE_NO_SYMLINKS);
    return target < 0 ? fail(failure, "openat2") : target;
}

static int attach(int mount, int target, struct failure *failure) {
    if (sys_move_mount(mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    return 0;
}

static int clone_tree(int dir, const char *path, unsigned attributes, int recursive, struct failure *failure) {
    unsigned deep = recursive ? AT_RECURSIVE : 0;
    int tree = sys_open_tree(dir, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep | (*path ? 0 : AT_EMPTY_PATH));
    if (tree < 0) return fail(failure, "open_tree");
    struct mount_attr set = {.attr_set = attributes, .propagation = MS_PRIVATE};
    if (sys_mount_setattr(tree, "", AT_EMPTY_PATH | deep, &set) < 0) {
        fail(failure, "mount_setattr");
        close(tree);
        return -1;
    }
    return tree;
}

int mount_clone(const char *path, unsigned attributes, int recursive, struct failure *failure) {
    return clone_tree(AT_FDCWD, path, attributes, recursive, failure);
}

int mount_reuse(int mount, struct failure *failure) {
    int tree = sys_open_tree(mount, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
    if (tree < 0 && errno == EINVAL) tree = fcntl(mount, F_DUPFD_CLOEXEC, 3);
    return tree < 0 ? fail(failure, "open_tree") : tree;
}

int mount_attach_root(int root, struct failure *failure) {
    if (sys_move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    return 0;
}

// pivot_root(2), NOTES: with "." for both, the old root ends up on top of the new one at the same place, from where
// it is detached; no folder for it is needed. The old root is a slave of the host's already, so nothing spreads there.
int mount_pivot(int root, struct failure *failure) {
    cleanup_close int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0) return fail(failure, "open");
    if (fchdir(root) < 0) return fail(failure, "fchdir");
    if (sys_pivot_root(".", ".") < 0) return fail(failure, "pivot_root");
    if (fchdir(old) < 0) return fail(failure, "fchdir");
    if (sys_umount2(".", MNT_DETACH) < 0) return fail(failure, "umount2");
    if (chdir("/") < 0) return fail(failure, "chdir");
    return 0;
}

int mount_root_readonly(struct failure *failure) {
    struct mount_attr set = {.attr_set = MOUNT_ATTR_RDONLY};
    if (sys_mount_setattr(AT_FDCWD, "/", 0, &set) < 0) return fail(failure, "mount_setattr");
    return 0;
}

// What is mounted on a pinned mount takes its place, so that what is below the target is below the one that is seen.
static int pin(struct root *root, const char *target, int pinned, int *mount, struct failure *failure) {
    for (size_t k = 0; k < root->count; k++) {
        if (strcmp(root->pinned[k].target, target) != 0) continue;
        close(root->pinned[k].mount);
        root->pinned[k].mount = steal_fd(mount);
        return 0;
    }
    if (!pinned) return 0;
    if (root->count == countof(root->pinned)) {
        errno = E2BIG;
        return fail(failure, "plan");
    }
    root->pinned[root->count++] = (struct pinned){.target = target, .mount = steal_fd(mount)};
    return 0;
}

static int make_filesystem(int *proc, const union field *fields, struct failure *failure) {
    struct mount_attr set = {.attr_set = (unsigned)fields[3].i};
    if (*proc >= 0 && !strcmp(fields[0].s.text, "proc")) {
        if (sys_mount_setattr(*proc, "", AT_EMPTY_PATH, &set) < 0) return fail(failure, "mount_setattr");
        return steal_fd(proc);
    }
    cleanup_close int fs = sys_fsopen(fields[0].s.text, FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    return mount_create(fs, &fields[2], (unsigned)fields[3].i, failure);
}

int mount_filesystem(struct root *root, int *proc, const union field *fields, struct failure *failure) {
    const char *path = fields[1].s.text;
    int pinned = fields[4].i != 0;
    cleanup_close int mount = make_filesystem(proc, fields, failure);
    if (mount < 0) return -1;
    cleanup_close int target = resolve_target(root, path, 0, pinned ? RESOLVE_NO_SYMLINKS : 0, failure);
    if (target < 0 || attach(mount, target, failure) < 0) return -1;
    return pin(root, path, pinned, &mount, failure);
}

int mount_bind(struct root *root, int source, const union field *fields, struct failure *failure) {
    struct stat status;
    const char *path = fields[1].s.text;
    int dir = source >= 0 ? source : AT_FDCWD, pinned = fields[4].i != 0;
    cleanup_close int tree = clone_tree(dir, source >= 0 ? "" : fields[0].s.text, (unsigned)fields[2].i, fields[3].i != 0, failure);
    if (tree < 0) return -1;
    if (fstat(tree, &status) < 0) return fail(failure, "fstat");
    cleanup_close int target = resolve_target(root, path, !S_ISDIR(status.st_mode), pinned ? RESOLVE_NO_SYMLINKS : 0, failure);
    if (target < 0 || attach(tree, target, failure) < 0) return -1;
    return pin(root, path, pinned, &tree, failure);
}

int mount_directory(const struct root *root, const char *path, unsigned mode, struct failure *failure) {
    char last[256];
    int from = base(root, &path);
    cleanup_close int parent = resolve_parent(from, path, last, sizeof last, failure);
    if (parent < 0) return -1;
    if (mkdirat(parent, last, mode) < 0 && errno != EEXIST) return fail(failure, "mkdirat");
    return 0;
}

int mount_symlink(const struct root *root, const char *target, const char *path, struct failure *failure) {
    char last[256];
    int from = base(root, &path);
    cleanup_close int parent = resolve_parent(from, path, last, sizeof last, failure);
    if (parent < 0) return -1;
    if (symlinkat(target, parent, last) < 0) return fail(failure, "symlinkat");
    return 0;
}

// What a masked path shows: for a folder one empty read-only tmpfs, shared by all of this container's; for anything
// else a null device, taken before the pivot and checked to be one (CVE-2025-31133).
static int mask_source(int null_fd, const char *null, int folder, int *empty, struct failure *failure) {
    struct stat device;
    if (!folder) {
        cleanup_close int source = null_fd >= 0 ? sys_open_tree(null_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
                                                : sys_open_tree(AT_FDCWD, null, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (source < 0) return fail(failure, "open_tree");
        if (fstat(source, &device) < 0) return fail(failure, "fstat");
        if (!S_ISCHR(device.st_mode) || device.st_rdev != makedev(1, 3)) {
            errno = ENODEV;
            return fail(failure, "fstat");
        }
        return steal_fd(&source);
    }
    if (*empty >= 0) {
        int copy = sys_open_tree(*empty, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        return copy < 0 ? fail(failure, "open_tree") : copy;
    }
    cleanup_close int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    if (mount_option(fs, "nr_inodes=1", failure) < 0) return -1;
    if (mount_option(fs, "mode=0755", failure) < 0) return -1;
    *empty = mount_create(fs, NULL, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, failure);
    if (*empty < 0) return -1;
    int first = fcntl(*empty, F_DUPFD_CLOEXEC, 3);
    return first < 0 ? fail(failure, "fcntl") : first;
}

// A path to cover: 1 where it is there, 0 where it is not and need not be.
static int find(const struct root *root, const char *path, int required, int *target, struct failure *failure) {
    int from = base(root, &path);
    *target = resolve(from, path, O_PATH, 0);
    if (*target >= 0) return 1;
    return !required && (errno == ENOENT || errno == ENOTDIR) ? 0 : fail(failure, "openat2");
}

int mount_mask(const struct root *root, int *empty, int null_fd, const union field *fields, struct failure *failure) {
    for (size_t k = 0; k < fields[1].l.count; k++) {
        struct stat masked;
        cleanup_close int target = -1;
        int found = find(root, fields[1].l.items[k], fields[2].i != 0, &target, failure);
        if (found < 0) return -1;
        if (found == 0) continue;
        if (fstat(target, &masked) < 0) return fail(failure, "fstat");
        cleanup_close int source = mask_source(null_fd, fields[0].s.text, S_ISDIR(masked.st_mode), empty, failure);
        if (source < 0 || attach(source, target, failure) < 0) return -1;
    }
    return 0;
}

int mount_readonly(const struct root *root, const union field *fields, struct failure *failure) {
    for (size_t k = 0; k < fields[0].l.count; k++) {
        cleanup_close int target = -1;
        int found = find(root, fields[0].l.items[k], fields[1].i != 0, &target, failure);
        if (found < 0) return -1;
        if (found == 0) continue;
        cleanup_close int tree = clone_tree(target, "", MOUNT_ATTR_RDONLY, 1, failure);
        if (tree < 0 || attach(tree, target, failure) < 0) return -1;
    }
    return 0;
}
