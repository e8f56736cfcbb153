#include "seccomp.h"
#include "../common/util.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <pthread.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// The functions of the libseccomp that is used: this addon's own, which is linked in, or the system's.
static struct {
    typeof(seccomp_version) *version;
    typeof(seccomp_init) *init;
    typeof(seccomp_release) *release;
    typeof(seccomp_attr_set) *attr_set;
    typeof(seccomp_arch_resolve_name) *arch_resolve_name;
    typeof(seccomp_arch_exist) *arch_exist;
    typeof(seccomp_arch_add) *arch_add;
    typeof(seccomp_arch_native) *arch_native;
    typeof(seccomp_syscall_resolve_name) *syscall_resolve_name;
    typeof(seccomp_syscall_resolve_num_arch) *syscall_resolve_num_arch;
    typeof(seccomp_rule_add_array) *rule_add_array;
    typeof(seccomp_export_bpf) *export_bpf;
} library = {
    seccomp_version,         seccomp_init,         seccomp_release,         seccomp_attr_set,
    seccomp_arch_resolve_name, seccomp_arch_exist, seccomp_arch_add,        seccomp_arch_native,
    seccomp_syscall_resolve_name, seccomp_syscall_resolve_num_arch, seccomp_rule_add_array, seccomp_export_bpf,
};

static bool is_older(const struct scmp_version *one, const struct scmp_version *other) {
    if (one->major != other->major) return one->major < other->major;
    if (one->minor != other->minor) return one->minor < other->minor;
    return one->micro < other->micro;
}

// Uses the system's library if it is not older, as it may know newer system calls.
static void choose(void) {
    void *loaded = dlopen("libseccomp.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!loaded) return;
    typeof(library) found;
    bool complete = true;
#define FIND(name) complete &= (found.name = (typeof(found.name))dlsym(loaded, "seccomp_" #name)) != NULL
    FIND(version);
    FIND(init);
    FIND(release);
    FIND(attr_set);
    FIND(arch_resolve_name);
    FIND(arch_exist);
    FIND(arch_add);
    FIND(arch_native);
    FIND(syscall_resolve_name);
    FIND(syscall_resolve_num_arch);
    FIND(rule_add_array);
    FIND(export_bpf);
#undef FIND
    if (complete && !is_older(found.version(), library.version())) library = found;
    else dlclose(loaded);
}

// Several threads of the process may have loaded this addon, and share the library.
static void load(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose);
}

struct reader {
    const uint8_t *at;
    size_t left;
};

static int take(struct reader *reader, void *out, size_t length) {
    if (length > reader->left) return -EBADMSG;
    memcpy(out, reader->at, length);
    reader->at += length;
    reader->left -= length;
    return 0;
}

static int take_name(struct reader *reader, char out[SECCOMP_NAME_MAX + 1]) {
    uint32_t length;
    if (take(reader, &length, sizeof length) < 0 || length > SECCOMP_NAME_MAX) return -EBADMSG;
    out[length] = '\0';
    return take(reader, out, length);
}

static int add_architectures(scmp_filter_ctx context, struct reader *reader) {
    char name[SECCOMP_NAME_MAX + 1];
    uint32_t count;
    if (take(reader, &count, sizeof count) < 0) return -EBADMSG;
    for (uint32_t k = 0; k < count; k++) {
        if (take_name(reader, name) < 0) return -EBADMSG;
        uint32_t token = library.arch_resolve_name(name);
        if (token == 0) return -EINVAL;
        if (library.arch_exist(context, token) == 0) continue;
        int result = library.arch_add(context, token);
        if (result < 0) return result;
    }
    return 0;
}

static int add_rule(scmp_filter_ctx context, struct reader *reader) {
    struct scmp_arg_cmp conditions[6];
    char name[SECCOMP_NAME_MAX + 1];
    uint32_t head[2], count;
    if (take(reader, head, sizeof head) < 0 || take_name(reader, name) < 0 || take(reader, &count, sizeof count) < 0) return -EBADMSG;
    if (count > countof(conditions)) return -EINVAL;
    for (uint32_t k = 0; k < count; k++) {
        uint32_t what[2];
        uint64_t values[2];
        if (take(reader, what, sizeof what) < 0 || take(reader, values, sizeof values) < 0) return -EBADMSG;
        conditions[k] = (struct scmp_arg_cmp){what[0], (enum scmp_compare)what[1], values[0], values[1]};
    }
    int number = library.syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR) return head[1] ? 0 : -ENOENT;
    return library.rule_add_array(context, head[0], number, count, conditions);
}

static int last_known(void) {
    uint32_t native = library.arch_native();
    for (int number = SECCOMP_NUMBERS_END - 1; number > 0; number--) {
        char *name = library.syscall_resolve_num_arch(native, number);
        if (!name) continue;
        free(name);
        return number;
    }
    return SECCOMP_NUMBERS_END;
}

// System calls that are newer than libseccomp fail with ENOSYS, as on a kernel without them, which programs expect. After EPERM, programs
// assume that the kernel has the call, and give up (as glibc does for fchmodat2). The instructions only deny, so they need not check
// the architecture: x32 numbers and ARM's private ones are past the end.
static size_t deny_unknown(struct sock_filter *out) {
    const struct sock_filter head[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SECCOMP_NUMBERS_END, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, (uint32_t)last_known(), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SCMP_ACT_ERRNO(ENOSYS)),
    };
    memcpy(out, head, sizeof head);
    return sizeof head;
}

// libseccomp 2.5 can export to a descriptor only.
static int export(scmp_filter_ctx context, uint8_t *program, size_t room) {
    cleanup_close int fd = memfd_create("seccomp", MFD_CLOEXEC);
    if (fd < 0) return -errno;
    int result = library.export_bpf(context, fd);
    if (result < 0) return result;
    off_t length = lseek(fd, 0, SEEK_END);
    if (length < 0) return -errno;
    if ((size_t)length > room) return -E2BIG;
    return pread(fd, program, (size_t)length, 0) == length ? (int)length : -EIO;
}

int seccomp_compile(const uint8_t *policy, size_t length, uint8_t *program, size_t room, uint32_t *rule) {
    struct reader reader = {policy, length};
    uint32_t action, count;
    size_t head = 0;
    *rule = UINT32_MAX;
    load();
    if (take(&reader, &action, sizeof action) < 0) return -EBADMSG;
    scmp_filter_ctx context = library.init(action);
    if (!context) return -EINVAL;
    // A search tree takes less time to run, and to load: at load, the kernel runs the program once for every system call.
    int result = library.attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    // The plan sets no_new_privs itself.
    if (result == 0) result = library.attr_set(context, SCMP_FLTATR_CTL_NNP, 0);
    if (result == 0) result = add_architectures(context, &reader);
    if (result == 0) result = take(&reader, &count, sizeof count);
    for (uint32_t k = 0; result == 0 && k < count; k++) {
        *rule = k;
        result = add_rule(context, &reader);
    }
    if (result == 0) {
        *rule = UINT32_MAX;
        if ((action & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ERRNO) head = deny_unknown((struct sock_filter *)program);
        result = export(context, program + head, room - head);
    }
    library.release(context);
    return result < 0 ? result : result + (int)head;
}

char *seccomp_name(int number) {
    load();
    return library.syscall_resolve_num_arch(library.arch_native(), number);
}
