#include "confine.h"
#include "syscalls.h"
#include "util.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>

const char *confine_root(const char *path, bool recursive) {
    unsigned below = recursive ? AT_RECURSIVE : 0;
    if (unshare(CLONE_NEWNS | CLONE_NEWNET) < 0) return "unshare";
    if (sys_mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0) return "mount";
    // After the unshare: open_tree(2) and move_mount(2) refuse a mount of another namespace.
    cleanup_close int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return "open";
    cleanup_close int world = sys_open_tree(directory, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | below);
    if (world < 0) return "open_tree";
    struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    if (sys_mount_setattr(world, "", AT_EMPTY_PATH | below, &attributes) < 0) return "mount_setattr";
    if (sys_move_mount(world, "", directory, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0) return "move_mount";
    // pivot_root(2), NOTES: the old root ends up on top of the new one, and is detached from there.
    if (fchdir(world) < 0) return "fchdir";
    if (sys_pivot_root(".", ".") < 0) return "pivot_root";
    if (sys_umount2(".", MNT_DETACH) < 0) return "umount2";
    return chdir("/") < 0 ? "chdir" : NULL;
}

const char *confine_capabilities(bool trusted) {
    uint64_t keep = 1ull << CAP_CHOWN | 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_FOWNER | 1ull << CAP_FSETID |
                    1ull << CAP_MKNOD | 1ull << CAP_SETFCAP;
    if (trusted) keep |= 1ull << CAP_SYS_ADMIN;
    for (unsigned long cap = 0; cap < 64; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno == EINVAL) break;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &header, sets) < 0) return "capget";
    for (int half = 0; half < 2; half++) {
        sets[half].permitted &= (uint32_t)(keep >> 32 * half);
        sets[half].effective = sets[half].permitted;
        sets[half].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, sets) < 0) return "capset";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return "prctl";
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? "prctl" : NULL;
}
