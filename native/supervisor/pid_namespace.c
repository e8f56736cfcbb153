#include "pid_namespace.h"
#include "mount.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <sched.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define PROC_SUPER_MAGIC 0x9fa0
#define PROC_ROOT_INO 1
#define ATTRIBUTES (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static int attach_at(int mount, int folder, const char *path, struct failure *failure) {
    if (sys_move_mount(mount, "", folder, path, MOVE_MOUNT_F_EMPTY_PATH | (*path ? 0 : MOVE_MOUNT_T_EMPTY_PATH)) < 0) return fail(failure, "move_mount");
    return 0;
}

// The procfs covers the empty root: a path leads to the procfs, while the root of this process is the mount below it.
int pid_namespace_empty_root(const char *path, int proc, struct failure *failure) {
    cleanup_close int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    if (mount_option(fs, "nr_inodes=1", failure) < 0) return -1;
    cleanup_close int root = mount_create(fs, NULL, ATTRIBUTES | MOUNT_ATTR_RDONLY, failure);
    if (root < 0 || attach_at(root, AT_FDCWD, path, failure) < 0) return -1;
    cleanup_close int context = proc ? sys_fsopen("proc", FSOPEN_CLOEXEC) : -1;
    if (proc && context < 0) return fail(failure, "fsopen");
    cleanup_close int mount = proc ? mount_create(context, NULL, ATTRIBUTES, failure) : -1;
    if (proc && mount < 0) return -1;
    if (!strcmp(path, "/")) {
        if (mount_pivot(root, failure) < 0) return -1;
    } else if (fchdir(root) < 0 || chroot(".") < 0) {
        return fail(failure, "chroot");
    }
    return proc ? attach_at(mount, root, "", failure) : 0;
}

// Whether the mount is the root of the procfs of the pid namespace that this process's children will be in. The container may have
// mounted anything at the path.
static int is_joined_proc(int mount, const struct stat *joined) {
    struct statfs kind;
    struct stat root, of;
    return fstatfs(mount, &kind) == 0 && kind.f_type == PROC_SUPER_MAGIC && fstat(mount, &root) == 0 && root.st_ino == PROC_ROOT_INO &&
           fstatat(mount, "1/ns/pid", &of, 0) == 0 && of.st_ino == joined->st_ino && of.st_dev == joined->st_dev;
}

static int find_proc(const union field *paths, const struct stat *joined) {
    for (size_t k = 0; k < paths->l.count; k++) {
        cleanup_close int tree = sys_open_tree(AT_FDCWD, paths->l.items[k], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW);
        if (tree >= 0 && is_joined_proc(tree, joined)) return steal_fd(&tree);
    }
    errno = ENOENT;
    return -1;
}

int pid_namespace_proc(int pidfd, const union field *paths, struct failure *failure) {
    struct stat joined;
    cleanup_close int own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (own < 0) return fail(failure, "open");
    if (setns(pidfd, CLONE_NEWPID) < 0) return fail(failure, "setns");
    if (stat("/proc/self/ns/pid_for_children", &joined) < 0) return fail(failure, "stat");
    if (setns(pidfd, CLONE_NEWNS) < 0) return fail(failure, "setns");
    cleanup_close int proc = find_proc(paths, &joined);
    if (proc < 0) fail(failure, "open_tree");
    if (setns(own, CLONE_NEWNS) < 0) return fail(failure, "setns");
    return steal_fd(&proc);
}
