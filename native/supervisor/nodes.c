#include "nodes.h"
#include "mount.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

// The default devices of the OCI runtime-spec, config-linux.md.
static const struct {
    const char *name;
    unsigned major, minor;
} nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

static int bind_node(int folder, const char *name, struct failure *failure) {
    char path[32];
    snprintf(path, sizeof path, "/dev/%s", name);
    cleanup_close int target = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (target < 0) return fail(failure, "openat");
    cleanup_close int node = mount_clone(path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, 0, failure);
    if (node < 0) return -1;
    return sys_move_mount(node, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0 ? fail(failure, "move_mount") : 0;
}

int nodes_make(const char *folder, int in_user_namespace, struct failure *failure) {
    cleanup_close int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    // The name of the state folder, by which a sweep recognizes the mount (lib/internal/berth/sweep.ts).
    const char *state = strrchr(folder, '/');
    char name[NAME_MAX];
    while (state && state > folder && *--state != '/') continue;
    snprintf(name, sizeof name, "berth.%.*s", (int)(state ? strcspn(state + 1, "/") : 0), state ? state + 1 : "");
    if (sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", name, 0) < 0) return fail(failure, "fsconfig");
    cleanup_close int tmpfs = mount_create(fs, NULL, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, failure);
    if (tmpfs < 0) return -1;
    if (sys_move_mount(tmpfs, "", AT_FDCWD, folder, MOVE_MOUNT_F_EMPTY_PATH) < 0) return fail(failure, "move_mount");
    for (size_t k = 0; k < countof(nodes); k++) {
        if (in_user_namespace) {
            if (bind_node(tmpfs, nodes[k].name, failure) < 0) return -1;
            continue;
        }
        if (mknodat(tmpfs, nodes[k].name, S_IFCHR | 0666, makedev(nodes[k].major, nodes[k].minor)) < 0) return fail(failure, "mknodat");
        if (fchmodat(tmpfs, nodes[k].name, 0666, 0) < 0) return fail(failure, "fchmodat"); // mknod(2) applies the umask
    }
    // For pasta (lib/internal/network/pasta.ts), which has no right to open a device that only root may open. Not every machine lets
    // root make it.
    if (!in_user_namespace && mknodat(tmpfs, "tun", S_IFCHR | 0666, makedev(10, 200)) == 0 && fchmodat(tmpfs, "tun", 0666, 0) < 0)
        return fail(failure, "fchmodat");
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
    return sys_mount_setattr(tmpfs, "", AT_EMPTY_PATH, &readonly) < 0 ? fail(failure, "mount_setattr") : 0;
}
