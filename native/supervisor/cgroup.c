#include "cgroup.h"
#include "../common/util.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

// The programs of one cgroup. Berth attaches one.
#define PROGRAMS_MAX 16

static int join_path(char *out, const char *folder, const char *file) {
    size_t a = strlen(folder), b = strlen(file);
    if (a + b + 2 > PATH_MAX) return errno = ENAMETOOLONG, -1;
    memcpy(out, folder, a);
    out[a] = '/';
    memcpy(out + a + 1, file, b + 1);
    return 0;
}

int cgroup_create(const char *path, struct failure *failure) {
    return mkdir(path, 0755) < 0 ? fail(failure, "mkdir") : 0;
}

int cgroup_write(const char *file, const char *value, size_t length, struct failure *failure) {
    cleanup_close int fd = open(file, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return fail(failure, "open");
    return write(fd, value, length) != (ssize_t)length ? fail(failure, "write") : 0;
}

static int bpf(enum bpf_cmd command, union bpf_attr *attributes) {
    return (int)syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static void detach(int cgroup, uint32_t id) {
    union bpf_attr open = {.prog_id = id};
    cleanup_close int program = bpf(BPF_PROG_GET_FD_BY_ID, &open);
    union bpf_attr attached = {.target_fd = (uint32_t)cgroup, .attach_bpf_fd = (uint32_t)program, .attach_type = BPF_CGROUP_DEVICE};
    if (program >= 0) bpf(BPF_PROG_DETACH, &attached);
}

// Attaches the new program before it detaches the old ones. A device may be opened only if all of them allow it, so at no time is
// there access that both deny.
int cgroup_devices(const char *path, const void *program, size_t length, struct failure *failure) {
    uint32_t before[PROGRAMS_MAX];
    cleanup_close int cgroup = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (cgroup < 0) return fail(failure, "open");
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
        .insn_cnt = (uint32_t)(length / sizeof(struct bpf_insn)),
        .insns = (uint64_t)(uintptr_t)program,
        .license = (uint64_t)(uintptr_t) "GPL",
    };
    cleanup_close int loaded = bpf(BPF_PROG_LOAD, &load);
    if (loaded < 0) return fail(failure, "bpf(PROG_LOAD)");
    union bpf_attr query = {.query = {
        .target_fd = (uint32_t)cgroup,
        .attach_type = BPF_CGROUP_DEVICE,
        .prog_ids = (uint64_t)(uintptr_t)before,
        .prog_cnt = PROGRAMS_MAX,
    }};
    if (bpf(BPF_PROG_QUERY, &query) < 0) return fail(failure, "bpf(PROG_QUERY)");
    union bpf_attr attach = {
        .target_fd = (uint32_t)cgroup,
        .attach_bpf_fd = (uint32_t)loaded,
        .attach_type = BPF_CGROUP_DEVICE,
        .attach_flags = BPF_F_ALLOW_MULTI, // the programs of the cgroups above and below stay in force
    };
    if (bpf(BPF_PROG_ATTACH, &attach) < 0) return fail(failure, "bpf(PROG_ATTACH)");
    for (uint32_t k = 0; k < query.query.prog_cnt; k++) detach(cgroup, before[k]);
    return 0;
}

int cgroup_entrance(const char *path, int version, struct failure *failure) {
    char tasks[PATH_MAX];
    if (version == 2) {
        int folder = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        return folder < 0 ? fail(failure, "open") : folder;
    }
    int fd = join_path(tasks, path, "tasks") < 0 ? -1 : open(tasks, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? fail(failure, "open") : fd;
}

// Calls `visit` for each cgroup directly below.
static void each_child(const char *path, void (*visit)(const char *)) {
    char child[PATH_MAX];
    DIR *folder = opendir(path);
    if (!folder) return;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.' && join_path(child, path, entry->d_name) == 0) visit(child);
    closedir(folder);
}

static void kill_members(const char *path) {
    char file[PATH_MAX], list[4096];
    if (join_path(file, path, "cgroup.procs") < 0) return;
    cleanup_close int fd = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return;
    // The next round takes processes that do not fit, or were forked meanwhile: removal is tried until it succeeds.
    ssize_t n = read(fd, list, sizeof list - 1);
    if (n <= 0) return;
    list[n] = '\0';
    for (char *at = list, *end; *at; at = end + 1) {
        long pid = strtol(at, &end, 10);
        if (end == at || *end != '\n') return;
        if (pid > 0 && pid != getpid()) kill((pid_t)pid, SIGKILL);
    }
}

void cgroup_kill(const char *path) {
    char file[PATH_MAX];
    struct failure ignored;
    if (join_path(file, path, "cgroup.kill") == 0 && cgroup_write(file, "1", 1, &ignored) == 0) return;
    kill_members(path);
    if (join_path(file, path, "freezer.state") == 0) cgroup_write(file, "THAWED", 6, &ignored);
    each_child(path, cgroup_kill);
}

static void remove_quietly(const char *path) {
    cgroup_remove(path);
}

int cgroup_remove(const char *path) {
    if (rmdir(path) == 0) return 0;
    if (errno != EBUSY) return -1;
    each_child(path, remove_quietly);
    return rmdir(path);
}
