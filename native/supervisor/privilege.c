#include "privilege.h"
#include "../common/descriptor.h"
#include "../common/util.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

int privilege_die_with(int supervisor, struct failure *failure) {
    struct pollfd gone = {.fd = supervisor, .events = POLLIN};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return fail(failure, "prctl");
    if (poll(&gone, 1, 0) > 0) _exit(127);
    return 0;
}

int privilege_bounding(uint64_t kept, struct failure *failure) {
    for (int capability = 0; capability < 64; capability++) {
        if (kept >> capability & 1) continue;
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0) continue;
        if (errno == EINVAL) return 0; // past the last one that this kernel knows
        return fail(failure, "prctl");
    }
    return 0;
}

// Raw system calls: glibc's wrappers signal every thread of the process, which takes locks. All three ids at once,
// groups first while the right to set them is still there; the permitted capabilities stay for the `capabilities`
// operation to cut down.
int privilege_user(const union field *fields, struct failure *failure) {
    gid_t gid = (gid_t)fields[1].i;
    uid_t uid = (uid_t)fields[0].i;
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0) return fail(failure, "prctl");
    // A user namespace with a single id has setgroups(2) denied for good: no groups are then all that can be had.
    if (syscall(SYS_setgroups, fields[2].u.count, fields[2].u.items) < 0 && !(errno == EPERM && fields[2].u.count == 0)) return fail(failure, "setgroups");
    if (syscall(SYS_setresgid, gid, gid, gid) < 0) return fail(failure, "setresgid");
    if (syscall(SYS_setresuid, uid, uid, uid) < 0) return fail(failure, "setresuid");
    return 0;
}

// Ambient capabilities must be permitted and inheritable before they can be raised (capabilities(7)); the inheritable
// set is what the plan says and no more (CVE-2022-29162).
int privilege_capabilities(const union field *fields, struct failure *failure) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int half = 0; half < 2; half++) {
        data[half].effective = (uint32_t)((uint64_t)fields[0].i >> 32 * half);
        data[half].permitted = (uint32_t)((uint64_t)fields[1].i >> 32 * half);
        data[half].inheritable = (uint32_t)((uint64_t)fields[2].i >> 32 * half);
    }
    if (syscall(SYS_capset, &header, data) < 0) return fail(failure, "capset");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return fail(failure, "prctl");
    for (int capability = 0; capability < 64; capability++)
        if ((uint64_t)fields[3].i >> capability & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) < 0) return fail(failure, "prctl");
    return 0;
}

int privilege_no_new_privileges(struct failure *failure) {
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? fail(failure, "prctl") : 0;
}

// The kernel keeps it for this task until its execve(2). It is the first thing that a child does, while /proc is the
// host's: what a container has there could be anything (CVE-2019-19921).
int privilege_apparmor(const union field *profile, struct failure *failure) {
    char text[256 + 5] = "exec ";
    size_t length = profile->s.length;
    if (length > sizeof text - 5) {
        errno = ENAMETOOLONG;
        return fail(failure, "write");
    }
    memcpy(text + 5, profile->s.text, length);
    cleanup_close int fd = open("/proc/thread-self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail(failure, "open");
    return write(fd, text, length + 5) < 0 ? fail(failure, "write") : 0;
}

// What is done here after it, up to the execution, is subject to it. SECCOMP_FILTER_FLAG_NEW_LISTENER is Linux 5.0.
int privilege_seccomp(const union field *fields, int socket, struct failure *failure) {
    struct sock_fprog filter = {
        .len = (unsigned short)(fields[0].b.length / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)fields[0].b.bytes,
    };
    unsigned long flags = (unsigned long)fields[1].i | (socket < 0 ? 0 : SECCOMP_FILTER_FLAG_NEW_LISTENER);
    if (fields[0].b.length % sizeof(struct sock_filter) != 0 || filter.len * sizeof(struct sock_filter) != fields[0].b.length) {
        errno = EINVAL;
        return fail(failure, "seccomp");
    }
    long listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    if (listener < 0) return fail(failure, "seccomp");
    if (socket < 0) return 0;
    int sent = descriptor_send(socket, "", 1, (int)listener);
    if (sent < 0) fail(failure, "sendmsg");
    close((int)listener);
    return sent < 0 ? -1 : 0;
}

int privilege_rlimit(const union field *fields, struct failure *failure) {
    struct rlimit limit = {.rlim_cur = (rlim_t)fields[1].i, .rlim_max = (rlim_t)fields[2].i};
    return setrlimit((int)fields[0].i, &limit) < 0 ? fail(failure, "setrlimit") : 0;
}

// A session keyring of its own, so that the host's is out of reach; without a name, so that nobody can join it by one
// (keyctl_join_session_keyring(3)). A kernel without keys has none to leak.
int privilege_keyring(struct failure *failure) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL, 0, 0, 0) < 0 && errno != ENOSYS) return fail(failure, "keyctl");
    return 0;
}
