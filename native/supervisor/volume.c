#include "volume.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <linux/loop.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

// Two loop devices of one file would be two file systems that do not know of each other's writes. So a device that has the file
// already is used again; the numbers of devices may have gaps.
#define DEVICES_MAX 1024
#define TRIES_MAX 64

static bool is_device_of(int device, const struct stat *file) {
    struct loop_info64 info;
    return ioctl(device, LOOP_GET_STATUS64, &info) == 0 && info.lo_device == file->st_dev && info.lo_inode == file->st_ino;
}

static int open_device(char *name, size_t room, int number) {
    snprintf(name, room, "/dev/loop%d", number);
    return open(name, O_RDWR | O_CLOEXEC);
}

static int find_device(char *name, size_t room, const struct stat *file) {
    for (int number = 0; number < DEVICES_MAX; number++) {
        cleanup_close int device = open_device(name, room, number);
        if (device >= 0 && is_device_of(device, file)) return steal_fd(&device);
    }
    return -1;
}

// The kernel frees the device when its last user closes it, so nothing is left of it after a kill. Another program may take the
// free device first.
static int make_device(char *name, size_t room, int file, struct failure *failure) {
    const struct loop_config config = {.fd = (uint32_t)file, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
    cleanup_close int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0) return fail(failure, "open");
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0) return fail(failure, "ioctl");
        cleanup_close int device = open_device(name, room, number);
        if (device < 0) return fail(failure, "open");
        if (ioctl(device, LOOP_CONFIGURE, &config) == 0) return steal_fd(&device);
        if (errno != EBUSY) return fail(failure, "ioctl");
    }
    return fail_with(failure, "ioctl", EBUSY);
}

static int loop_device(char *name, size_t room, const char *path, struct failure *failure) {
    struct stat status;
    cleanup_close int file = sys_openat2(AT_FDCWD, path, O_RDWR, 0, RESOLVE_NO_SYMLINKS);
    if (file < 0) return fail(failure, "openat2");
    if (fstat(file, &status) < 0) return fail(failure, "fstat");
    if (!S_ISREG(status.st_mode)) return fail_with(failure, "fstat", EINVAL);
    int device = find_device(name, room, &status);
    return device >= 0 ? device : make_device(name, room, file, failure);
}

int volume_filesystem(const struct operation *operation, struct failure *failure) {
    char name[32];
    const char *image = operation->filesystem.image.s.text;
    cleanup_close int device = -1; // open until the mount uses it
    cleanup_close int fs = sys_fsopen(operation->filesystem.type.s.text, FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    if (*image) {
        if ((device = loop_device(name, sizeof name, image, failure)) < 0) return -1;
        if (sys_fsconfig(fs, FSCONFIG_SET_STRING, "source", name, 0) < 0) return fail(failure, "fsconfig");
    }
    return mount_create(fs, &operation->filesystem.options, (unsigned)operation->filesystem.attributes.i, failure);
}

int volume_tree(const struct operation *operation, int layer_map, struct failure *failure) {
    struct mount_attr set = {.attr_set = (uint64_t)operation->tree.attributes.i, .propagation = MS_PRIVATE};
    cleanup_close int folder = sys_openat2(AT_FDCWD, operation->tree.path.s.text, O_PATH, 0, RESOLVE_NO_SYMLINKS);
    if (folder < 0) return fail(failure, "openat2");
    cleanup_close int tree = sys_open_tree(folder, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (tree < 0) return fail(failure, "open_tree");
    if (operation->tree.mapped.i != 0) {
        if (layer_map < 0) return fail_with(failure, "plan", EINVAL);
        set.attr_set |= MOUNT_ATTR_IDMAP;
        set.userns_fd = (uint64_t)layer_map;
    }
    if (sys_mount_setattr(tree, "", AT_EMPTY_PATH, &set) < 0) return fail(failure, "mount_setattr");
    return steal_fd(&tree);
}

// EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h), since Linux 4.11.
void volume_discard(const char *path) {
    uint32_t flags = 2;
    cleanup_close int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0) ioctl(folder, _IOR('X', 125, uint32_t), &flags);
}
