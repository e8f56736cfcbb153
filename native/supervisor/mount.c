// Composes the root of a container: attaches by descriptor everything below it.
#include "mount.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

// The part of `path` below `target`, "." if the two are equal, or NULL if `path` is elsewhere.
static const char *below(const char *path, const char *target) {
    size_t length = strlen(target);
    if (strncmp(path, target, length) != 0 || (path[length] != '/' && path[length] != '\0')) return NULL;
    for (path += length; *path == '/';) path++;
    return *path ? path : ".";
}

// The start of the resolution of a path: the descriptor of a pinned mount, else the root. Another container with the same root can
// rename the components of a path, but cannot change what a descriptor refers to.
static int base(const struct root *root, const char **path) {
    for (size_t k = root->count; k-- > 0;) {
        const char *rest = below(*path, root->pinned[k].target);
        if (!rest) continue;
        *path = rest;
        return root->pinned[k].mount;
    }
    return root->mount;
}

// Symbolic links of the image are followed, but only inside the root. Magic links, such as /proc/self/fd, are never followed
// (CVE-2021-30465, CVE-2026-41579).
static int resolve(int from, const char *path, uint64_t flags, uint64_t links) {
    return sys_openat2(from, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | links);
}

// Opens the folder of the last component of `path` and copies that component. Makes each missing folder by the descriptor of the
// folder above it, so that no link can place one outside the root (CVE-2024-45310).
static int resolve_parent(int from, const char *path, char *last, size_t room, struct failure *failure) {
    char prefix[4096];
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/') length--;
    size_t cut = length;
    while (cut > 0 && path[cut - 1] != '/') cut--;
    if (length == 0) return fail_with(failure, "openat2", EINVAL);
    if (length >= sizeof prefix || length - cut >= room) return fail_with(failure, "openat2", ENAMETOOLONG);
    memcpy(last, path + cut, length - cut);
    last[length - cut] = '\0';
    memcpy(prefix, path, cut);
    prefix[cut] = '\0';

    cleanup_close int parent = resolve(from, cut == 0 ? "/" : prefix, O_PATH | O_DIRECTORY, 0);
    if (parent >= 0) return steal_fd(&parent);
    if (errno != ENOENT) return fail(failure, "openat2");
    if ((parent = resolve(from, "/", O_PATH | O_DIRECTORY, 0)) < 0) return fail(failure, "openat2");
    for (size_t at = 0; at < cut; at++) {
        if (prefix[at] != '/' || at == 0) continue;
        size_t start = at;
        while (start > 0 && prefix[start - 1] != '/') start--;
        prefix[at] = '\0';
        if (start < at && mkdirat(parent, prefix + start, 0755) < 0 && errno != EEXIST) return fail(failure, "mkdirat");
        close_descriptor(&parent);
        if ((parent = resolve(from, prefix, O_PATH | O_DIRECTORY, 0)) < 0) return fail(failure, "openat2");
        prefix[at] = '/';
    }
    return steal_fd(&parent);
}

// Opens the target of a mount. Makes a missing target: an empty file if `file` is set, else a folder. `links` is RESOLVE_NO_SYMLINKS
// if the path may have no symbolic link, else 0. `nofollow` is O_NOFOLLOW if the target may be a symbolic link itself, else 0.
static int resolve_target(const struct root *root, const char *path, int file, uint64_t links, uint64_t nofollow, struct failure *failure) {
    char last[256];
    int from = base(root, &path);
    int target = resolve(from, path, O_PATH | nofollow, links);
    if (target >= 0) return target;
    if (errno != ENOENT) return fail(failure, "openat2");
    cleanup_close int parent = resolve_parent(from, path, last, sizeof last, failure);
    if (parent < 0) return -1;
    // Another container that starts in the same root may have made it meanwhile.
    if (file) {
        cleanup_close int made = openat(parent, last, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (made < 0 && errno != EEXIST) return fail(failure, "openat");
    } else if (mkdirat(parent, last, 0755) < 0 && errno != EEXIST) {
        return fail(failure, "mkdirat");
    }
    // From the folder in which it was made: the path may lead elsewhere by now.
    target = resolve(parent, last, O_PATH, RESOLVE_NO_SYMLINKS);
    return target < 0 ? fail(failure, "openat2") : target;
}

static int attach(int mount, int target, struct failure *failure) {
    if (sys_move_mount(mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    return 0;
}

static int clone_tree(int dir, const char *path, unsigned attributes, int recursive, struct failure *failure) {
    unsigned deep = recursive ? AT_RECURSIVE : 0;
    cleanup_close int tree = sys_open_tree(dir, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep | (*path ? 0 : AT_EMPTY_PATH));
    if (tree < 0) return fail(failure, "open_tree");
    struct mount_attr set = {.attr_set = attributes, .propagation = MS_PRIVATE};
    if (sys_mount_setattr(tree, "", AT_EMPTY_PATH | deep, &set) < 0) return fail(failure, "mount_setattr");
    return steal_fd(&tree);
}

int mount_clone(const char *path, unsigned attributes, int recursive, struct failure *failure) {
    return clone_tree(AT_FDCWD, path, attributes, recursive, failure);
}

int mount_root_bind(const struct operation *operation, struct failure *failure) {
    return mount_clone(operation->root_bind.path.s.text, (unsigned)operation->root_bind.attributes.i, operation->root_bind.recursive.i != 0, failure);
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

// pivot_root(2), NOTES: with "." for both, the old root ends up on top of the new one and is detached from there, without a folder
// for it. The mounts of the old root are slaves of the host's already, so the unmount does not propagate to the host.
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

static bool same_root(int fd) {
    struct statx one, other;
    unsigned wanted = STATX_INO | STATX_MNT_ID;
    return statx(fd, "", AT_EMPTY_PATH, wanted, &one) == 0 && statx(AT_FDCWD, "/", 0, wanted, &other) == 0 &&
           one.stx_mnt_id == other.stx_mnt_id && one.stx_ino == other.stx_ino;
}

// setns(2) makes the root of the mount namespace the root of the process. Without the right to do so, nothing changes.
int mount_leave_chroot(struct failure *failure) {
    cleanup_close int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    cleanup_close int namespace = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (root < 0) return fail(failure, "open");
    if (namespace < 0 || setns(namespace, CLONE_NEWNS) < 0 || same_root(root)) return 0;
    // pivot_root(2) takes no shared mounts.
    if (sys_mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0) return fail(failure, "mount");
    cleanup_close int tree = sys_open_tree(root, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    if (tree < 0) return fail(failure, "open_tree");
    if (sys_move_mount(tree, "", root, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    return mount_pivot(tree, failure);
}

int mount_root_readonly(struct failure *failure) {
    struct mount_attr set = {.attr_set = MOUNT_ATTR_RDONLY};
    if (sys_mount_setattr(AT_FDCWD, "/", 0, &set) < 0) return fail(failure, "mount_setattr");
    return 0;
}

// A mount on top of a pinned one replaces it: paths below the target are then resolved in the mount that the container sees.
static int pin(struct root *root, const char *target, int pinned, int *mount, struct failure *failure) {
    for (size_t k = 0; k < root->count; k++) {
        if (strcmp(root->pinned[k].target, target) != 0) continue;
        close_descriptor(&root->pinned[k].mount);
        root->pinned[k].mount = steal_fd(mount);
        return 0;
    }
    if (!pinned) return 0;
    if (root->count == countof(root->pinned)) return fail_with(failure, "plan", E2BIG);
    root->pinned[root->count++] = (struct pinned){.target = target, .mount = steal_fd(mount)};
    return 0;
}

static int make_filesystem(int *proc, const struct operation *operation, struct failure *failure) {
    const char *type = operation->mount.type.s.text;
    struct mount_attr set = {.attr_set = (unsigned)operation->mount.attributes.i};
    if (*proc >= 0 && !strcmp(type, "proc")) {
        if (sys_mount_setattr(*proc, "", AT_EMPTY_PATH, &set) < 0) return fail(failure, "mount_setattr");
        return steal_fd(proc);
    }
    cleanup_close int fs = sys_fsopen(type, FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    return mount_create(fs, &operation->mount.options, (unsigned)operation->mount.attributes.i, failure);
}

int mount_filesystem(struct root *root, int *proc, const struct operation *operation, struct failure *failure) {
    const char *path = operation->mount.target.s.text;
    int pinned = operation->mount.pinned.i != 0;
    cleanup_close int mount = make_filesystem(proc, operation, failure);
    if (mount < 0) return -1;
    cleanup_close int target = resolve_target(root, path, 0, pinned ? RESOLVE_NO_SYMLINKS : 0, 0, failure);
    if (target < 0 || attach(mount, target, failure) < 0) return -1;
    return pin(root, path, pinned, &mount, failure);
}

// Attaches a mount, and takes its descriptor.
static int place(struct root *root, int *mount, const char *path, int pinned, struct failure *failure) {
    struct stat status;
    if (fstat(*mount, &status) < 0) return fail(failure, "fstat");
    cleanup_close int target = resolve_target(root, path, !S_ISDIR(status.st_mode), pinned ? RESOLVE_NO_SYMLINKS : 0, 0, failure);
    if (target < 0 || attach(*mount, target, failure) < 0) return -1;
    return pin(root, path, pinned, mount, failure);
}

int mount_place(struct root *root, int mount, const char *path, struct failure *failure) {
    cleanup_close int own = mount;
    return place(root, &own, path, 0, failure);
}

int mount_bind(struct root *root, int source, const struct operation *operation, struct failure *failure) {
    const char *from = source >= 0 ? "" : operation->bind.source.s.text;
    int dir = source >= 0 ? source : AT_FDCWD;
    cleanup_close int tree = clone_tree(dir, from, (unsigned)operation->bind.attributes.i, operation->bind.recursive.i != 0, failure);
    if (tree < 0) return -1;
    return place(root, &tree, operation->bind.target.s.text, operation->bind.pinned.i != 0, failure);
}

void mount_targets(int root, const struct operation *operation) {
    const struct root whole = {.mount = root};
    const union field *folders = &operation->targets.folders, *files = &operation->targets.files;
    struct failure ignored;
    mode_t mask = umask(0);
    for (size_t k = 0; k < folders->l.count; k++) {
        cleanup_close int made = resolve_target(&whole, folders->l.items[k], 0, 0, 0, &ignored);
    }
    for (size_t k = 0; k < files->l.count; k++) {
        cleanup_close int made = resolve_target(&whole, files->l.items[k], 1, 0, O_NOFOLLOW, &ignored);
    }
    umask(mask);
}

static int write_file(int folder, const char *name, const char *content, const struct operation *operation, struct failure *failure) {
    uid_t uid = (uid_t)operation->files.uid.i;
    gid_t gid = (gid_t)operation->files.gid.i;
    size_t length = strlen(content);
    cleanup_close int file = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return fail(failure, "openat");
    if (write(file, content, length) != (ssize_t)length) return fail(failure, "write");
    if ((uid != 0 || gid != 0) && fchown(file, uid, gid) < 0) return fail(failure, "fchown");
    return fchmod(file, (mode_t)operation->files.mode.i) < 0 ? fail(failure, "fchmod") : 0;
}

static const char *last_component(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// With the attributes of the mount that the file is in, and more.
static int clone_file(int folder, const char *name, unsigned attributes, struct failure *failure) {
    struct mount_attr set = {.attr_set = attributes};
    cleanup_close int mount = sys_open_tree(folder, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (mount < 0) return fail(failure, "open_tree");
    if (attributes != 0 && sys_mount_setattr(mount, "", AT_EMPTY_PATH, &set) < 0) return fail(failure, "mount_setattr");
    return steal_fd(&mount);
}

static int attach_file(const struct root *root, const char *path, int mount, struct failure *failure) {
    struct stat status;
    cleanup_close int target = resolve_target(root, path, 1, 0, O_NOFOLLOW, failure);
    if (target < 0) return -1;
    if (fstat(target, &status) < 0) return fail(failure, "fstat");
    if (S_ISDIR(status.st_mode)) return fail_with(failure, "move_mount", EISDIR);
    return attach(mount, target, failure);
}

int mount_files(const struct root *root, const struct operation *operation, struct failure *failure) {
    const union field *targets = &operation->files.targets, *contents = &operation->files.contents;
    unsigned attributes = (unsigned)operation->files.attributes.i;
    if (targets->l.count != contents->l.count) return fail_with(failure, "plan", EINVAL);
    cleanup_close int folder = resolve_target(root, operation->files.folder.s.text, 0, RESOLVE_NO_SYMLINKS, 0, failure);
    if (folder < 0) return -1;
    for (size_t k = 0; k < targets->l.count; k++) {
        const char *target = targets->l.items[k], *name = last_component(target);
        if (write_file(folder, name, contents->l.items[k], operation, failure) < 0) return -1;
        cleanup_close int mount = clone_file(folder, name, attributes, failure);
        if (mount < 0) return -1;
        if (attach_file(root, target, mount, failure) < 0 && operation->files.required.i != 0) return -1;
    }
    return 0;
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

// The mount that covers a masked path: one empty read-only tmpfs for all folders of this container; for anything else a null
// device, which is taken before the pivot and checked (CVE-2025-31133).
static int mask_source(int null_fd, const char *null, int folder, int *empty, struct failure *failure) {
    struct stat device;
    if (!folder) {
        cleanup_close int source = null_fd >= 0 ? sys_open_tree(null_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
                                                : sys_open_tree(AT_FDCWD, null, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (source < 0) return fail(failure, "open_tree");
        if (fstat(source, &device) < 0) return fail(failure, "fstat");
        if (!S_ISCHR(device.st_mode) || device.st_rdev != makedev(1, 3)) return fail_with(failure, "fstat", ENODEV);
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

// Opens a path to cover. Returns 1 if it exists, 0 if it does not and is not required.
static int find(const struct root *root, const char *path, int required, int *target, struct failure *failure) {
    int from = base(root, &path);
    *target = resolve(from, path, O_PATH, 0);
    if (*target >= 0) return 1;
    return !required && (errno == ENOENT || errno == ENOTDIR) ? 0 : fail(failure, "openat2");
}

int mount_mask(const struct root *root, int *empty, int null_fd, const struct operation *operation, struct failure *failure) {
    const union field *paths = &operation->mask.paths;
    for (size_t k = 0; k < paths->l.count; k++) {
        struct stat masked;
        cleanup_close int target = -1;
        int found = find(root, paths->l.items[k], operation->mask.required.i != 0, &target, failure);
        if (found < 0) return -1;
        if (found == 0) continue;
        if (fstat(target, &masked) < 0) return fail(failure, "fstat");
        cleanup_close int source = mask_source(null_fd, operation->mask.null.s.text, S_ISDIR(masked.st_mode), empty, failure);
        if (source < 0 || attach(source, target, failure) < 0) return -1;
    }
    return 0;
}

int mount_readonly(const struct root *root, const struct operation *operation, struct failure *failure) {
    const union field *paths = &operation->readonly.paths;
    for (size_t k = 0; k < paths->l.count; k++) {
        cleanup_close int target = -1;
        int found = find(root, paths->l.items[k], operation->readonly.required.i != 0, &target, failure);
        if (found < 0) return -1;
        if (found == 0) continue;
        cleanup_close int tree = clone_tree(target, "", MOUNT_ATTR_RDONLY, 1, failure);
        if (tree < 0 || attach(tree, target, failure) < 0) return -1;
    }
    return 0;
}
