#include "terminal.h"
#include "../common/descriptor.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <termios.h>

#define DEVPTS_SUPER_MAGIC 0x1cd1

int terminal_open(int socket, const struct operation *operation, struct failure *failure) {
    struct winsize size = {.ws_row = (unsigned short)operation->terminal.rows.i, .ws_col = (unsigned short)operation->terminal.columns.i};
    struct statfs kind;
    int unlocked = 0;
    // The container can mount anything at this path, so the file must be of a devpts. The peer comes from the terminal itself
    // (TIOCGPTPEER, Linux 4.13), not from a name (CVE-2025-52565).
    cleanup_close int ours = sys_openat2(AT_FDCWD, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK, 0, RESOLVE_NO_MAGICLINKS);
    if (ours < 0) return fail(failure, "openat2");
    if (fstatfs(ours, &kind) < 0 || kind.f_type != DEVPTS_SUPER_MAGIC) return fail_with(failure, "fstatfs", ENODEV);
    if (ioctl(ours, TIOCSPTLCK, &unlocked) < 0 || ioctl(ours, TIOCSWINSZ, &size) < 0) return fail(failure, "ioctl");
    cleanup_close int peer = ioctl(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (peer < 0) return fail(failure, "ioctl");
    if (fchown(peer, (uid_t)operation->terminal.uid.i, (gid_t)-1) < 0) return fail(failure, "fchown");
    if (descriptor_send(socket, "", 1, ours) < 0) return fail(failure, "sendmsg");
    for (int k = 0; k < 3; k++)
        if (dup2(peer, k) < 0) return fail(failure, "dup2");
    return 0;
}
