// libFuzzer's target for the paths of a tar: links, folders and removals, in any order, in a folder that stands for the root. No file
// may appear outside of it.
//
// The input is lines: a letter (d make a folder, r clear the way of a name, l make a symlink, whose target follows a tab,
// h open as a hard link's target) and a path.
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int confined_open(int dir, const char *name, int flags);
#define openat confined_open
#include "../unpack/path.c"
#undef openat

// A refusal ends the unpacker's process, which frees its memory. Here it only leaks.
const char *__asan_default_options(void) {
    return "detect_leaks=0";
}

static jmp_buf refused;
static char outside[] = "/tmp/berth-fuzz-XXXXXX";
static int outer = -1;

// The kernel stops `..` at the root of a process.
static int confined_open(int dir, const char *name, int flags) {
    struct stat here, top;
    if (!strcmp(name, "..") && fstat(dir, &here) == 0 && fstat(root, &top) == 0 && here.st_ino == top.st_ino) name = ".";
    return openat(dir, name, flags);
}

void fail(enum kind kind, int error, const char *call, const char *path, const char *format, ...) {
    (void)kind, (void)error, (void)call, (void)path, (void)format;
    longjmp(refused, 1);
}
void *grow(void *memory, size_t size) {
    void *grown = realloc(memory, size);
    if (!grown) abort();
    return grown;
}
char *copy(const char *text, size_t length) {
    char *made = grow(NULL, length + 1);
    memcpy(made, text, length);
    made[length] = '\0';
    return made;
}
void spend(size_t lookups) { (void)lookups; }
void make_implicit(int dir, const char *name, const char *path) {
    (void)path;
    if (mkdirat(dir, name, 0755) < 0) fail_io("mkdirat");
}

static void perform(char letter, char *path) {
    char *target = strchr(path, '\t');
    const char *above;
    if (target) *target++ = '\0';
    cleanup_free char *cleaned = clean(path, "path");
    if (letter == 'd' || letter == 'h') {
        folder_at(letter == 'd' ? OWN : TARGET, cleaned, letter == 'd');
        return;
    }
    const char *name = split(cleaned, &above);
    if (*name == '\0') return;
    cleanup_free char *parent = name == cleaned ? copy("", 0) : copy(cleaned, strlen(cleaned));
    const struct folder *folder = folder_at(OWN, parent, letter == 'l');
    if (!folder) return;
    clear_way(folder->fd, name);
    if (letter == 'l' && target && *target && symlinkat(target, folder->fd, name) < 0) return;
}

static void check_outside(void) {
    int fd = openat(outer, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fdopendir(fd);
    for (struct dirent *entry; stream && (entry = readdir(stream));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && strcmp(entry->d_name, "root")) abort();
    closedir(stream);
}

static void remove_outside(void) {
    rmdir(outside);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    if (outer < 0) {
        if (!mkdtemp(outside) || (outer = open(outside, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) abort();
        atexit(remove_outside);
    }
    if (mkdirat(outer, "root", 0755) < 0 || (root = openat(outer, "root", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) abort();
    char *volatile text = copy((const char *)bytes, length);
    for (char *volatile line = text; line && *line;) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        blame = line;
        if (*line && setjmp(refused) == 0) perform(*line, line + 1);
        line = end ? end + 1 : NULL;
    }
    free(text);
    for (size_t k = 0; k < 2; k++) {
        if (folders[k].fd >= 0) close(folders[k].fd);
        free(folders[k].asked);
        free(folders[k].path);
        folders[k] = (struct folder){.fd = -1};
    }
    check_outside();
    if (remove_tree(outer, "root", LONG_MAX) != 0) abort();
    // A refusal leaves descriptors open.
    close_range((unsigned)outer + 1, ~0U, 0);
    return 0;
}
