// The union mount: read-only layers below a writable layer, as a detached mount.
#include "mount.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

// A string of fsconfig(2) has at most 255 bytes. A longer path is given as /proc/self/fd/N.
#define PARAMETER_MAX 256
// mount(2) takes one page of options.
#define PAGE 4096
#define LAYERS_MAX 500 // OVL_MAX_STACK

struct overlay {
    const union field *lower;
    const char *upper, *work; // empty if nothing is writable
    const union field *options;
    unsigned attributes;
    int layer_map;
};

// "/proc/self/fd/N", without printf: this runs between clone and exec.
static size_t name_descriptor(char *out, int fd) {
    static const char prefix[] = "/proc/self/fd/";
    char digits[12];
    size_t n = 0, length = sizeof prefix - 1;
    do digits[n++] = (char)('0' + fd % 10);
    while ((fd /= 10) > 0);
    memcpy(out, prefix, length);
    while (n > 0) out[length++] = digits[--n];
    out[length] = '\0';
    return length;
}

// Folders that are named by descriptor. They stay open until the superblock is made, by when overlayfs has resolved its layers.
struct pins {
    size_t count;
    int fds[LAYERS_MAX + 2];
};

static void unpin(struct pins *pins) {
    while (pins->count > 0) close(pins->fds[--pins->count]);
}

static int pin(struct pins *pins, const char *path, char *name, struct failure *failure) {
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail(failure, "open");
    pins->fds[pins->count++] = fd;
    name_descriptor(name, fd);
    return 0;
}

// A layer whose owners a user namespace translates: mount_setattr(2), ID-mapped mounts; overlayfs takes them since Linux 5.19. The
// mount is attached nowhere, so it is named by its descriptor.
static int pin_mapped(struct pins *pins, const char *path, int layer_map, char *name, struct failure *failure) {
    struct mount_attr map = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)layer_map};
    int tree = sys_open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0) return fail(failure, "open_tree");
    pins->fds[pins->count++] = tree;
    if (sys_mount_setattr(tree, "", AT_EMPTY_PATH, &map) < 0) return fail(failure, "mount_setattr");
    name_descriptor(name, tree);
    return 0;
}

static int set_path(int fs, const char *key, const char *path, struct pins *pins, struct failure *failure) {
    char name[32];
    if (strlen(path) >= PARAMETER_MAX) {
        if (pin(pins, path, name, failure) < 0) return -1;
        path = name;
    }
    return sys_fsconfig(fs, FSCONFIG_SET_STRING, key, path, 0) < 0 ? fail(failure, "fsconfig") : 0;
}

static int set_layer(int fs, const char *path, int layer_map, struct pins *pins, struct failure *failure) {
    char name[32];
    if (layer_map < 0) return set_path(fs, "lowerdir+", path, pins, failure);
    if (pin_mapped(pins, path, layer_map, name, failure) < 0) return -1;
    return set_path(fs, "lowerdir+", name, pins, failure);
}

int mount_option(int fs, const char *option, struct failure *failure) {
    char key[64];
    const char *equals = strchr(option, '=');
    int status;
    if (!equals) {
        status = sys_fsconfig(fs, FSCONFIG_SET_FLAG, option, NULL, 0);
    } else {
        size_t length = (size_t)(equals - option);
        if (length >= sizeof key) return fail_with(failure, "fsconfig", EINVAL);
        memcpy(key, option, length);
        key[length] = '\0';
        status = sys_fsconfig(fs, FSCONFIG_SET_STRING, key, equals + 1, 0);
    }
    return status < 0 ? fail(failure, "fsconfig") : 0;
}

int mount_create(int fs, const union field *options, unsigned attributes, struct failure *failure) {
    for (size_t k = 0; options && k < options->l.count; k++)
        if (mount_option(fs, options->l.items[k], failure) < 0) return -1;
    if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0) return fail(failure, "fsconfig");
    int mount = sys_fsmount(fs, FSMOUNT_CLOEXEC, attributes);
    return mount < 0 ? fail(failure, "fsmount") : mount;
}

// Adds the layers one at a time, since Linux 6.5. Earlier kernels accept the unknown key and fail at FSCONFIG_CMD_CREATE.
static int overlay_by_layer(const struct overlay *overlay, struct failure *failure) {
    __attribute__((cleanup(unpin))) struct pins pins;
    pins.count = 0;
    cleanup_close int fs = sys_fsopen("overlay", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    for (size_t k = 0; k < overlay->lower->l.count; k++)
        if (set_layer(fs, overlay->lower->l.items[k], overlay->layer_map, &pins, failure) < 0) return -1;
    if (*overlay->upper && set_path(fs, "upperdir", overlay->upper, &pins, failure) < 0) return -1;
    if (*overlay->upper && set_path(fs, "workdir", overlay->work, &pins, failure) < 0) return -1;
    return mount_create(fs, overlay->options, overlay->attributes, failure);
}

static int append(char *page, size_t *length, const char *text) {
    size_t n = strlen(text);
    if (*length + n + 1 > PAGE) {
        errno = E2BIG;
        return -1;
    }
    memcpy(page + *length, text, n + 1);
    *length += n;
    return 0;
}

// Before Linux 6.5: one page of options for mount(2). Descriptors stand for paths, so that a hundred layers fit and ':' ',' '\\' in a
// path have no meaning. mount(2) attaches the overlay somewhere: over its own work folder, or over its lowest layer if nothing is
// writable, in this process's own mount namespace. From there a detached copy is taken. It is never attached over "/", where a path
// would still lead below it.
static int overlay_by_page(const struct overlay *overlay, struct failure *failure) {
    __attribute__((cleanup(unpin))) struct pins pins;
    char page[PAGE], name[32];
    size_t length = 0;
    const union field *lower = overlay->lower, *options = overlay->options;
    const char *at = *overlay->upper ? overlay->work : lower->l.items[lower->l.count - 1];
    const char *writable[2][2] = {{",upperdir=", overlay->upper}, {",workdir=", overlay->work}};

    pins.count = 0;
    for (size_t k = 0; k < lower->l.count; k++) {
        if (overlay->layer_map >= 0 ? pin_mapped(&pins, lower->l.items[k], overlay->layer_map, name, failure) < 0
                                    : pin(&pins, lower->l.items[k], name, failure) < 0) return -1;
        if (append(page, &length, k == 0 ? "lowerdir=" : ":") < 0 || append(page, &length, name) < 0) return fail(failure, "mount");
    }
    for (size_t k = 0; *overlay->upper && k < countof(writable); k++) {
        if (pin(&pins, writable[k][1], name, failure) < 0) return -1;
        if (append(page, &length, writable[k][0]) < 0 || append(page, &length, name) < 0) return fail(failure, "mount");
    }
    for (size_t k = 0; k < options->l.count; k++)
        if (append(page, &length, ",") < 0 || append(page, &length, options->l.items[k]) < 0) return fail(failure, "mount");
    // MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC have the values of MS_RDONLY and its siblings.
    if (sys_mount("overlay", at, "overlay", overlay->attributes & 0xf, page) < 0) return fail(failure, "mount");
    cleanup_close int mount = mount_clone(at, 0, 0, failure);
    if (sys_umount2(at, MNT_DETACH) < 0) return fail(failure, "umount2");
    return steal_fd(&mount);
}

static int mount_union(const struct overlay *overlay, struct failure *failure) {
    const union field *lower = overlay->lower;
    if (lower->l.count == 0 || lower->l.count > LAYERS_MAX) return fail_with(failure, "fsopen", EINVAL);
    // Without a writable layer, overlayfs requires at least two lower layers. A single layer is the root itself.
    if (lower->l.count == 1 && !*overlay->upper) return mount_clone(lower->l.items[0], overlay->attributes | MOUNT_ATTR_RDONLY, 0, failure);
    // The supervisor finds out once what the kernel can do. Each child, whose memory is a copy, finds out for itself.
    static bool by_page;
    bool known = by_page;
    int mount = known ? -1 : overlay_by_layer(overlay, failure);
    if (mount >= 0 || (!known && failure->error != EINVAL)) return mount;
    struct failure first = *failure;
    mount = overlay_by_page(overlay, failure);
    if (mount >= 0) by_page = true;
    else if (!known) *failure = first;
    return mount;
}

int mount_overlay(const struct operation *operation, int layer_map, struct failure *failure) {
    const struct overlay overlay = {
        .lower = &operation->overlay.lower,
        .upper = operation->overlay.upper.s.text,
        .work = operation->overlay.work.s.text,
        .options = &operation->overlay.options,
        .attributes = (unsigned)operation->overlay.attributes.i,
        .layer_map = layer_map,
    };
    return mount_union(&overlay, failure);
}

int mount_overlay_memory(const struct operation *operation, int layer_map, struct failure *failure) {
    char upper[48], work[48];
    const struct overlay overlay = {
        .lower = &operation->overlay_memory.lower,
        .upper = upper,
        .work = work,
        .options = &operation->overlay_memory.options,
        .attributes = (unsigned)operation->overlay_memory.attributes.i,
        .layer_map = layer_map,
    };
    struct stat owner;
    cleanup_close int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    cleanup_close int memory = mount_create(fs, &operation->overlay_memory.tmpfs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, failure);
    if (memory < 0) return -1;
    if (mkdirat(memory, "upper", 0700) < 0 || mkdirat(memory, "work", 0700) < 0) return fail(failure, "mkdirat");
    if (layer_map >= 0 && fstat(memory, &owner) < 0) return fail(failure, "fstat");
    if (layer_map >= 0 && fchownat(memory, "upper", owner.st_uid, owner.st_gid, 0) < 0) return fail(failure, "fchownat");
    if (fchmodat(memory, "upper", (mode_t)operation->overlay_memory.mode.i, 0) < 0) return fail(failure, "fchmodat");
    size_t length = name_descriptor(upper, memory);
    memcpy(work, upper, length);
    memcpy(upper + length, "/upper", sizeof "/upper");
    memcpy(work + length, "/work", sizeof "/work");
    // Before Linux 6.15 overlayfs refuses a folder of a detached mount (clone_private_mount), so the tmpfs is attached meanwhile, in
    // this process's own mount namespace. Found out as above.
    static bool attached;
    bool known = attached;
    int mount = known ? -1 : mount_union(&overlay, failure);
    if (mount >= 0 || (!known && failure->error != EINVAL)) return mount;
    struct failure first = *failure;
    if (sys_move_mount(memory, "", AT_FDCWD, "/dev", MOVE_MOUNT_F_EMPTY_PATH) < 0) return -1;
    mount = mount_union(&overlay, failure);
    sys_umount2("/dev", MNT_DETACH);
    if (mount >= 0) attached = true;
    else if (!known) *failure = first;
    return mount;
}
