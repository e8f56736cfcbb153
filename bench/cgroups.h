// Which cgroups the limit makes, and what it writes to them, on this machine: cgroups(7). None of this is timed.
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct setting {
    const char *file, *value;
};

// A cgroup folder, and what its limits are written to.
struct cgroup {
    char parent[512];
    int version;
    struct setting settings[4];
    size_t count;
    // Of the present container:
    char path[600];
    int entrance;
};

static struct cgroup cgroups[4];
static size_t cgroup_count;

// Whether a list with separators has the word.
static bool lists(const char *list, const char *word, const char *separators) {
    size_t length = strlen(word);
    while (*list) {
        size_t n = strcspn(list, separators);
        if (n == length && !memcmp(list, word, n)) return true;
        list += n + (list[n] != '\0');
    }
    return false;
}

// Where the hierarchy of a version 1 controller, or version 2 (NULL), is mounted.
static bool find_mount(const char *controller, char mounted[256]) {
    char line[4096], root[256], type[64], options[512];
    FILE *file = fopen("/proc/self/mountinfo", "re");
    bool found = false;
    while (!found && file && fgets(line, sizeof line, file)) {
        const char *back = strstr(line, " - ");
        if (!back || sscanf(line, "%*d %*d %*s %255s %255s", root, mounted) != 2) continue;
        if (sscanf(back, " - %63s %*s %511s", type, options) != 2 || strcmp(root, "/") != 0) continue;
        found = controller ? !strcmp(type, "cgroup") && lists(options, controller, ",") : !strcmp(type, "cgroup2");
    }
    if (file) fclose(file);
    return found;
}

// This process's own cgroup in the hierarchy of a version 1 controller, or in version 2 (NULL).
static bool find_own(const char *controller, char path[256]) {
    char line[1024];
    FILE *file = fopen("/proc/self/cgroup", "re");
    bool found = false;
    while (!found && file && fgets(line, sizeof line, file)) {
        char *names = strchr(line, ':'), *own = names ? strchr(names + 1, ':') : NULL;
        if (!own) continue;
        *own++ = '\0';
        own[strcspn(own, "\n")] = '\0';
        found = controller ? lists(names + 1, controller, ",") : names[1] == '\0';
        if (found) snprintf(path, 256, "%s", strcmp(own, "/") ? own : "");
    }
    if (file) fclose(file);
    return found;
}

// The nearest version 2 cgroup, from our own upwards, that passes the controller on.
static bool find_delegating(const char *controller, char folder[512]) {
    char mounted[256], own[256], file[600], passed[512];
    if (!find_mount(NULL, mounted) || !find_own(NULL, own)) return false;
    for (;;) {
        snprintf(folder, 512, "%s%s", mounted, own);
        snprintf(file, sizeof file, "%s/cgroup.subtree_control", folder);
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? 0 : read(fd, passed, sizeof passed - 1);
        if (fd >= 0) close(fd);
        passed[n > 0 ? n : 0] = '\0';
        if (n > 0) return lists(passed, controller, " \n");
        char *slash = strrchr(own, '/');
        if (!slash) return false;
        *slash = '\0';
    }
}

// Those of a setting whose files are not there are left out (memory.memsw.*, where swap is not counted).
static bool add_cgroup(const char *controller, const struct setting v1[2], const struct setting v2[2]) {
    struct cgroup found = {.version = 1};
    char mounted[256], own[256], file[700];
    if (find_mount(controller, mounted) && find_own(controller, own)) {
        snprintf(found.parent, sizeof found.parent, "%s%s", mounted, own);
    } else if (find_delegating(controller, found.parent)) {
        found.version = 2;
    } else {
        // cpuacct is no controller of version 2, and only counts on version 1.
        return !v1[0].file;
    }
    const struct setting *setting = found.version == 1 ? v1 : v2;
    struct cgroup *at = cgroups;
    while (at < cgroups + cgroup_count && strcmp(at->parent, found.parent) != 0) at++;
    if (at == cgroups + cgroup_count) {
        *at = found;
        cgroup_count++;
    }
    for (size_t k = 0; k < 2 && setting[k].file; k++) {
        snprintf(file, sizeof file, "%s/%s", at->parent, setting[k].file);
        if (k == 0 || access(file, F_OK) == 0) at->settings[at->count++] = setting[k];
    }
    return true;
}

// The controller that is not there, or NULL.
static const char *find_cgroups(void) {
    static const struct {
        const char *controller;
        struct setting v1[2], v2[2];
    } wanted[] = {
        {"memory", {{"memory.limit_in_bytes", "67108864"}, {"memory.memsw.limit_in_bytes", "67108864"}}, {{"memory.max", "67108864"}, {"memory.swap.max", "0"}}},
        {"cpu", {{"cpu.cfs_quota_us", "50000"}}, {{"cpu.max", "50000 100000"}}},
        {"cpuacct", {{0}}, {{0}}},
        {"pids", {{"pids.max", "64"}}, {{"pids.max", "64"}}},
    };
    for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++)
        if (!add_cgroup(wanted[k].controller, wanted[k].v1, wanted[k].v2)) return wanted[k].controller;
    return NULL;
}
