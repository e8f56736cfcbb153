// berth-pack [--xattr=trusted|user] [--compression=gzip|zstd|none] [--max-bytes=N] [--max-hole-bytes=N] [--max-time=SECONDS] FOLDER
//
// Writes the writable layer of an overlay, FOLDER/from, as the blob of an image layer to fd 0, and a report to fd 1:
//
//   ok sha256:BLOB SIZE sha256:TAR
//
// or, with exit status 1:
//
//   error unsupported|holes|limit|io|storage|confine ERRNO SYSCALL|- PATH|- MESSAGE
//
// A file that overlayfs marks as removed becomes a whiteout, `.wh.NAME` (OCI image-spec, layer.md), and so does a socket, which a tar
// cannot hold. Equal trees make equal tars: the names of a folder are sorted by their bytes. Times after --max-time become that time.
//
// A container may run and change the layer meanwhile. So no name is followed, nothing is opened with an effect, an entry that was replaced
// is looked at again, one that was removed is left out, and a file has as many bytes as its header says. `from` is a mount of its own,
// read-only and without devices, and a walk downwards alone: the folders above stay open.
#include "pack.h"

#include "../common/confine.h"
#include "../common/percent.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <search.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/xattr.h>

enum {
    MAX_MEMORY = 384 << 20,
    ATTRIBUTES_MAX = 65536, // xattr(7), of a list and of a value
    DEPTH_MAX = PATH_MAX / 2 + 1,
    // Only somebody who replaces an entry again and again by one of another type needs more looks at it.
    LOOKS_MAX = 32,
};

struct level {
    int fd;
    char *text;   // the names, each with its NUL
    char **names; // the same, sorted
    size_t count, next;
    size_t path_length;
};

// A file with several names, and the first of them.
struct linked {
    dev_t device;
    ino_t inode;
    char path[];
};

static struct level levels[DEPTH_MAX];
static size_t depth;
static char path[PATH_MAX + NAME_MAX + 8]; // of the entry at work
static void *links;
static const char *overlay = "trusted.overlay.";
static uint64_t max_bytes = UINT64_MAX, hole_bytes = UINT64_MAX;
static int64_t max_time = INT64_MAX;
static char target[PATH_MAX + 1], list[ATTRIBUTES_MAX], value[ATTRIBUTES_MAX];
static struct attribute *attributes;
static size_t attribute_count, attribute_room;

void fail(enum kind kind, int error, const char *call, const char *message) {
    static const char *const kinds[] = {[UNSUPPORTED] = "unsupported", [HOLES] = "holes",     [LIMIT] = "limit",
                                        [IO] = "io",                   [STORAGE] = "storage", [CONFINE] = "confine"};
    printf("error %s %d %s ", kinds[kind], error, call);
    if (*path) percent_encode(stdout, path);
    else putchar('-');
    putchar(' ');
    percent_encode(stdout, message);
    putchar('\n');
    fflush(stdout);
    _exit(1);
}

void fail_io(const char *call) {
    int error = errno;
    fail(error == ENOMEM ? LIMIT : IO, error, call, strerror(error));
}

void *grow(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) fail(LIMIT, ENOMEM, "realloc", "the layer needs too much memory");
    return memory;
}

static bool starts_with(const char *text, const char *prefix) { return strncmp(text, prefix, strlen(prefix)) == 0; }

// ---- extended attributes

// Whether the text is UTF-8, without a check of the code points that it stands for.
static bool is_utf8(const char *text) {
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        int more = *at < 0x80 ? 0 : *at >= 0xc2 && *at < 0xe0 ? 1 : *at >= 0xe0 && *at < 0xf0 ? 2 : *at >= 0xf0 && *at < 0xf5 ? 3 : -1;
        if (more < 0) return false;
        for (at++; more > 0; more--, at++)
            if ((*at & 0xc0) != 0x80) return false;
    }
    return true;
}

static void refuse(const char *format, const char *name) {
    char message[ATTRIBUTES_MAX + 256];
    snprintf(message, sizeof message, format, name);
    fail(UNSUPPORTED, 0, "-", message);
}

static bool is_own(const char *name, const char *mark) {
    return starts_with(name, overlay) && strcmp(name + strlen(overlay), mark) == 0;
}

// The attribute's value in `value`, or -1 if it is gone. Of the open file, or of the entry in the current folder that is none.
static ssize_t read_attribute(int fd, const char *entry, const char *name) {
    ssize_t size = fd < 0 ? lgetxattr(entry, name, value, sizeof value) : fgetxattr(fd, name, value, sizeof value);
    if (size < 0 && errno != ENODATA && errno != ENOENT) fail_io("getxattr");
    return size;
}

static int by_name(const void *one, const void *other) {
    return strcmp(((const struct attribute *)one)->name, ((const struct attribute *)other)->name);
}

// Notes the attributes of a file, and returns whether it is a folder that hides the layers below it.
static bool read_attributes(int fd, const char *entry) {
    bool opaque = false;
    for (; attribute_count > 0; attribute_count--) free((void *)(uintptr_t)attributes[attribute_count - 1].value);
    if (fd < 0 && fchdir(levels[depth - 1].fd) < 0) fail_io("fchdir");
    ssize_t length = fd < 0 ? llistxattr(entry, list, sizeof list) : flistxattr(fd, list, sizeof list);
    if (length < 0 && errno != ENOTSUP && errno != ENOENT) fail_io("listxattr");
    for (const char *name = list; name < list + length; name += strlen(name) + 1) {
        if (strchr(name, '=') || !is_utf8(name)) refuse("has the attribute %s, a name that a tar cannot hold", name);
        if (is_own(name, "redirect") || is_own(name, "metacopy") || is_own(name, "whiteout"))
            refuse("is only a part of a file (%s): mount the overlay with redirect_dir=off,metacopy=off", name);
        bool is_mark = is_own(name, "opaque");
        if (!is_mark && (starts_with(name, "trusted.overlay.") || starts_with(name, "user.overlay."))) continue;
        if (strcmp(name, "security.selinux") == 0) continue;
        ssize_t size = read_attribute(fd, entry, name);
        if (is_mark) opaque = size > 0 && value[0] == 'y';
        if (is_mark || size < 0) continue;
        if (attribute_count == attribute_room) attributes = grow(attributes, (attribute_room = 2 * attribute_room + 8) * sizeof *attributes);
        void *copy = memcpy(grow(NULL, (size_t)size + 1), value, (size_t)size);
        attributes[attribute_count++] = (struct attribute){.name = name, .value = copy, .size = (size_t)size};
    }
    if (attribute_count > 1) qsort(attributes, attribute_count, sizeof *attributes, by_name);
    return opaque;
}

// ---- members

static void write_empty(const char *name) {
    const struct member member = {.path = name, .link = "", .type = '0'};
    write_header(&member);
}

// The mark of a removed name in the folder at work, or of the folder itself.
static void write_mark(size_t folder_length, const char *prefix, const char *name) {
    static char mark[sizeof path + 8];
    snprintf(mark, sizeof mark, "%.*s%s%s%s", (int)folder_length, path, folder_length > 0 ? "/" : "", prefix, name);
    write_empty(mark);
}

static int by_inode(const void *one, const void *other) {
    const struct linked *a = one, *b = other;
    if (a->device != b->device) return a->device < b->device ? -1 : 1;
    return a->inode == b->inode ? 0 : a->inode < b->inode ? -1 : 1;
}

// The first name of a file with several; NULL if this is the first.
static const char *first_name(const struct stat *status) {
    if (status->st_nlink < 2 || S_ISDIR(status->st_mode)) return NULL;
    struct linked *wanted = grow(NULL, sizeof *wanted + strlen(path) + 1);
    wanted->device = status->st_dev;
    wanted->inode = status->st_ino;
    strcpy(wanted->path, path);
    struct linked **found = tsearch(wanted, &links, by_inode);
    if (!found) fail(LIMIT, ENOMEM, "tsearch", "the layer needs too much memory");
    if (*found == wanted) return NULL;
    free(wanted);
    return (*found)->path;
}

static void write_hole(uint64_t length) {
    if (length > hole_bytes) fail(HOLES, EFBIG, "read", "the layer has too many bytes in holes");
    hole_bytes -= length;
    sink_zeros(length);
}

// Exactly so many bytes, even if the file changes meanwhile.
static void write_data(int fd, const struct stat *status) {
    bool is_whole = status->st_blocks >= (status->st_size + 511) / 512;
    for (off_t at = 0; at < status->st_size;) {
        off_t begin = is_whole ? at : lseek(fd, at, SEEK_DATA);
        if (begin < 0) begin = errno == ENXIO ? status->st_size : at;
        if (begin > status->st_size) begin = status->st_size;
        off_t end = is_whole || begin == status->st_size ? status->st_size : lseek(fd, begin, SEEK_HOLE);
        if (end < 0 || end > status->st_size) end = status->st_size;
        write_hole((uint64_t)(begin - at));
        for (at = begin; at < end;) {
            size_t room;
            unsigned char *to = sink_room(&room);
            ssize_t n = pread(fd, to, (uint64_t)(end - at) < room ? (size_t)(end - at) : room, at);
            if (n < 0) fail_io("pread");
            if (n == 0) break;
            sink_take((size_t)n);
            at += n;
        }
        if (at < end) write_hole((uint64_t)(end - at)); // the file has become shorter
        at = end;
    }
    sink_pad((uint64_t)status->st_size);
}

static struct timespec time_of(const struct stat *status) {
    if (status->st_mtim.tv_sec < max_time) return status->st_mtim;
    return (struct timespec){.tv_sec = (time_t)max_time};
}

// Writes one entry, of a folder without its contents. `fd` is that of a file or a folder, else -1.
static void write_member(int fd, const char *entry, const struct stat *status, const char *link) {
    struct member member = {
        .path = *path ? path : ".",
        .link = link,
        .mode = status->st_mode & 07777,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .mtime = time_of(status),
        .device = status->st_rdev,
    };
    const char *first = first_name(status);
    if (first) {
        member.type = '1';
        member.link = first;
        return write_header(&member);
    }
    bool opaque = read_attributes(fd, entry);
    member.attributes = attributes;
    member.attribute_count = attribute_count;
    switch (status->st_mode & S_IFMT) {
    case S_IFREG: member.type = '0', member.size = status->st_size; break;
    case S_IFLNK: member.type = '2'; break;
    case S_IFCHR: member.type = '3'; break;
    case S_IFBLK: member.type = '4'; break;
    case S_IFDIR: member.type = '5'; break;
    default: member.type = '6';
    }
    write_header(&member);
    if (member.type == '0') write_data(fd, status);
    if (opaque) write_mark(strlen(path), ".wh..wh..opq", "");
}

// ---- the walk

static int compare_names(const void *one, const void *other) { return strcmp(*(char *const *)one, *(char *const *)other); }

// Begins a folder, whose descriptor the level takes.
static void enter(int fd) {
    _Alignas(struct dirent64) static char page[65536];
    if (depth == DEPTH_MAX) fail(IO, ENAMETOOLONG, "open", strerror(ENAMETOOLONG));
    struct level *level = &levels[depth++];
    *level = (struct level){.fd = fd, .path_length = strlen(path)};
    size_t used = 0, room = 0;
    for (ssize_t n; (n = syscall(SYS_getdents64, fd, page, sizeof page)) != 0;) {
        if (n < 0 && errno == ENOENT) break; // the folder was removed
        if (n < 0) fail_io("getdents64");
        for (ssize_t at = 0; at < n; at += ((struct dirent64 *)(page + at))->d_reclen) {
            const char *name = ((struct dirent64 *)(page + at))->d_name;
            size_t length = strlen(name) + 1;
            if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
            if (used + length > room) level->text = grow(level->text, room = 2 * (used + length));
            memcpy(level->text + used, name, length);
            used += length;
            level->count++;
        }
    }
    if (level->count == 0) return;
    level->names = grow(NULL, level->count * sizeof *level->names);
    char *name = level->text;
    for (size_t k = 0; k < level->count; k++, name += strlen(name) + 1) level->names[k] = name;
    qsort(level->names, level->count, sizeof *level->names, compare_names);
}

static void leave(void) {
    struct level *level = &levels[--depth];
    close(level->fd);
    free(level->text);
    free(level->names);
}

static bool is_same(const struct stat *one, const struct stat *other) {
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino && ((one->st_mode ^ other->st_mode) & S_IFMT) == 0;
}

enum look { GONE, SEEN, REPLACED };

// Looks at an entry: its status, the descriptor of a file or a folder, the target of a symlink.
static enum look look_at(int folder, const char *name, struct stat *status, int *fd) {
    *fd = -1;
    *target = '\0';
    if (fstatat(folder, name, status, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? GONE : (fail_io("fstatat"), GONE);
    if (S_ISLNK(status->st_mode)) {
        ssize_t length = readlinkat(folder, name, target, sizeof target - 1);
        if (length < 0 && (errno == EINVAL || errno == ENOENT)) return REPLACED;
        if (length < 0) fail_io("readlinkat");
        target[length] = '\0';
    } else if (S_ISREG(status->st_mode) || S_ISDIR(status->st_mode)) {
        const int type = S_ISDIR(status->st_mode) ? O_DIRECTORY : O_NONBLOCK | O_NOCTTY;
        const struct stat before = *status;
        *fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | type);
        if (*fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENXIO)) return REPLACED;
        if (*fd < 0) fail_io("openat");
        if (fstat(*fd, status) < 0) fail_io("fstat");
        if (is_same(&before, status)) return SEEN;
        close_descriptor(fd);
        return REPLACED;
    }
    return SEEN;
}

static void pack_entry(int folder, size_t folder_length, const char *name) {
    struct stat status;
    int fd;
    enum look look;
    size_t length = folder_length + (folder_length > 0) + strlen(name);
    snprintf(path + folder_length, sizeof path - folder_length, "%s%s", folder_length > 0 ? "/" : "", name);
    // No system could unpack it.
    if (length >= PATH_MAX) fail(IO, ENAMETOOLONG, "open", strerror(ENAMETOOLONG));
    int looks = 0;
    while ((look = look_at(folder, name, &status, &fd)) == REPLACED)
        if (++looks == LOOKS_MAX) fail(IO, EAGAIN, "openat", "it is replaced again and again");
    if (look == GONE) return;
    if (starts_with(name, ".wh.")) refuse("has a name that stands for a removed file in a layer: rename it first%s", "");
    if (S_ISSOCK(status.st_mode) || (S_ISCHR(status.st_mode) && status.st_rdev == 0)) return write_mark(folder_length, ".wh.", name);
    write_member(fd, name, &status, target);
    if (S_ISDIR(status.st_mode)) enter(fd);
    else close_descriptor(&fd);
}

static void pack(void) {
    struct stat status;
    int fd = open("from", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) fail_io("open");
    if (fstat(fd, &status) < 0) fail_io("fstat");
    write_member(fd, ".", &status, "");
    enter(fd);
    while (depth > 0) {
        struct level *level = &levels[depth - 1];
        path[level->path_length] = '\0';
        if (level->next == level->count) leave();
        else pack_entry(level->fd, level->path_length, level->names[level->next++]);
    }
    *path = '\0';
    sink_zeros(1024); // two empty blocks
}

// ---- arguments

static void check(const char *failed) {
    if (failed) fail(CONFINE, errno, failed, strerror(errno));
}

static uint64_t parse_count(const char *text) {
    char *end;
    errno = 0;
    uint64_t count = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9') fail(CONFINE, EINVAL, "-", "an option is not a count");
    return count;
}

// A descriptor is open for each folder on the way to an entry.
static void allow_depth(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void print_digest(const unsigned char *digest) {
    printf(" sha256:");
    for (size_t k = 0; k < 32; k++) printf("%02x", digest[k]);
}

int main(int count, char **arguments) {
    const struct rlimit none = {0}, memory = {MAX_MEMORY, MAX_MEMORY};
    enum compression compression = GZIP;
    for (int k = 1; k < count - 1; k++) {
        const char *option = arguments[k];
        if (starts_with(option, "--max-bytes=")) max_bytes = parse_count(option + 12);
        else if (starts_with(option, "--max-hole-bytes=")) hole_bytes = parse_count(option + 17);
        else if (starts_with(option, "--max-time=")) max_time = (int64_t)parse_count(option + 11);
        else if (strcmp(option, "--compression=gzip") == 0) compression = GZIP;
        else if (strcmp(option, "--compression=zstd") == 0) compression = ZSTD;
        else if (strcmp(option, "--compression=none") == 0) compression = NONE;
        else if (strcmp(option, "--xattr=user") == 0) overlay = "user.overlay.";
        else if (strcmp(option, "--xattr=trusted") != 0) fail(CONFINE, EINVAL, "-", "an option is unknown");
    }
    if (count < 2) fail(CONFINE, EINVAL, "-", "no folder given");
    check(confine_root(arguments[count - 1], true));
    check(sys_close_range(3, ~0u, 0) < 0 ? "close_range" : NULL);
    check(setrlimit(RLIMIT_CORE, &none) < 0 || (!SANITIZED && setrlimit(RLIMIT_DATA, &memory) < 0) ? "setrlimit" : NULL);
    allow_depth();
    signal(SIGXFSZ, SIG_IGN); // a blob beyond RLIMIT_FSIZE is then reported as EFBIG
    check(confine_capabilities(*overlay == 't'));
    sink_start(compression, max_bytes);
    pack();
    struct totals totals = sink_finish();
    printf("ok");
    print_digest(totals.digest);
    printf(" %ju", (uintmax_t)totals.size);
    print_digest(totals.diffid);
    putchar('\n');
    return fflush(stdout) == 0 ? 0 : 1;
}
