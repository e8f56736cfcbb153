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
        if (errno == EINVAL) return 0; // past the last capability of this kernel
        return fail(failure, "prctl");
    }
    return 0;
}

// Raw system calls: glibc's wrappers signal every thread of the process, which takes locks. The groups come first, while the right to
// set them is still there. The permitted capabilities stay, for the `capabilities` operation to reduce.
int privilege_user(const struct operation *operation, struct failure *failure) {
    const union field *groups = &operation->user.groups;
    gid_t gid = (gid_t)operation->user.gid.i;
    uid_t uid = (uid_t)operation->user.uid.i;
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0) return fail(failure, "prctl");
    // A user namespace that maps a single id denies setgroups(2) for good. An empty list is then already in effect.
    if (syscall(SYS_setgroups, groups->u.count, groups->u.items) < 0 && !(errno == EPERM && groups->u.count == 0)) return fail(failure, "setgroups");
    if (syscall(SYS_setresgid, gid, gid, gid) < 0) return fail(failure, "setresgid");
    if (syscall(SYS_setresuid, uid, uid, uid) < 0) return fail(failure, "setresuid");
    return 0;
}

// Ambient capabilities must be permitted and inheritable before they can be raised (capabilities(7)). The inheritable set is exactly
// that of the plan (CVE-2022-29162).
int privilege_capabilities(const struct operation *operation, struct failure *failure) {
    uint64_t effective = (uint64_t)operation->capabilities.effective.i, permitted = (uint64_t)operation->capabilities.permitted.i;
    uint64_t inheritable = (uint64_t)operation->capabilities.inheritable.i, ambient = (uint64_t)operation->capabilities.ambient.i;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (int half = 0; half < 2; half++) {
        data[half].effective = (uint32_t)(effective >> 32 * half);
        data[half].permitted = (uint32_t)(permitted >> 32 * half);
        data[half].inheritable = (uint32_t)(inheritable >> 32 * half);
    }
    if (syscall(SYS_capset, &header, data) < 0) return fail(failure, "capset");
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return fail(failure, "prctl");
    for (int capability = 0; capability < 64; capability++)
        if (ambient >> capability & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) < 0) return fail(failure, "prctl");
    return 0;
}

int privilege_no_new_privileges(struct failure *failure) {
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? fail(failure, "prctl") : 0;
}

// The kernel keeps the profile for this task until its execve(2). A child sets it first of all, while /proc is the host's: the
// container's /proc could be anything (CVE-2019-19921).
int privilege_apparmor(const union field *profile, struct failure *failure) {
    char text[256 + 5] = "exec ";
    size_t length = profile->s.length;
    if (length > sizeof text - 5) return fail_with(failure, "write", ENAMETOOLONG);
    memcpy(text + 5, profile->s.text, length);
    cleanup_close int fd = open("/proc/thread-self/attr/apparmor/exec", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail(failure, "open");
    return write(fd, text, length + 5) < 0 ? fail(failure, "write") : 0;
}

// The filter applies to all system calls of the child after it, up to the execution. SECCOMP_FILTER_FLAG_NEW_LISTENER is Linux 5.0.
int privilege_seccomp(const struct operation *operation, int socket, struct failure *failure) {
    const union field *program = &operation->seccomp.program;
    struct sock_fprog filter = {
        .len = (unsigned short)(program->b.length / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)program->b.bytes,
    };
    unsigned long flags = (unsigned long)operation->seccomp.flags.i | (socket < 0 ? 0 : SECCOMP_FILTER_FLAG_NEW_LISTENER);
    if (program->b.length % sizeof(struct sock_filter) != 0 || filter.len * sizeof(struct sock_filter) != program->b.length)
        return fail_with(failure, "seccomp", EINVAL);
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    if (result < 0) return fail(failure, "seccomp");
    if (socket < 0) return 0;
    cleanup_close int listener = (int)result;
    return descriptor_send(socket, "", 1, listener) < 0 ? fail(failure, "sendmsg") : 0;
}

int privilege_rlimit(const struct operation *operation, struct failure *failure) {
    struct rlimit limit = {.rlim_cur = (rlim_t)operation->rlimit.soft.i, .rlim_max = (rlim_t)operation->rlimit.hard.i};
    return setrlimit((int)operation->rlimit.resource.i, &limit) < 0 ? fail(failure, "setrlimit") : 0;
}

// A new session keyring keeps the host's out of reach. It has no name, so that nobody can join it
// (keyctl_join_session_keyring(3)). A kernel without keys (ENOSYS) has no keyring to protect.
int privilege_keyring(struct failure *failure) {
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL, 0, 0, 0) < 0 && errno != ENOSYS) return fail(failure, "keyctl");
    return 0;
}
