#include "program.h"
#include "mount.h"
#include "overlay.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <sys/sendfile.h>
#include <sys/stat.h>

#define NAME "berth-supervisor"

static int copy(int from, int folder, struct failure *failure) {
    struct stat status;
    cleanup_close int to = openat(folder, NAME, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0);
    if (to < 0) return fail(failure, "openat");
    if (fstat(from, &status) < 0) return fail(failure, "fstat");
    for (off_t at = 0; at < status.st_size;) {
        ssize_t n = sendfile(to, from, &at, (size_t)(status.st_size - at));
        if (n == 0) errno = EIO;
        if (n <= 0) return fail(failure, "sendfile");
    }
    // A process whose executable is unreadable for it is not dumpable, from its first instruction on (prctl(2)).
    return fchmod(to, 0111) < 0 ? fail(failure, "fchmod") : 0;
}

int program_copy(int executable, struct failure *failure) {
    struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
    cleanup_close int fs = sys_fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0) return fail(failure, "fsopen");
    cleanup_close int mount = mount_create(fs, NULL, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, failure);
    if (mount < 0 || copy(executable, mount, failure) < 0) return -1;
    if (sys_mount_setattr(mount, "", AT_EMPTY_PATH, &readonly) < 0) return fail(failure, "mount_setattr");
    int program = openat(mount, NAME, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    return program < 0 ? fail(failure, "openat") : program;
}
