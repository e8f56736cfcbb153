// berth-copy [--xattr=trusted|user] [--max-bytes=N] [--max-entries=N] FOLDER
//
// Copies the writable layer of an overlay, FOLDER/from, to the new folder FOLDER/kept/upper: data, holes, owners, modes, times, extended
// attributes with the marks of overlayfs, and hard links within the layer. Writes one line to fd 1:
//
//   ok ENTRIES BYTES
//
// or, with exit status 1, the same as native/unpack:
//
//   error limit|changed|io|confine ERRNO SYSCALL|- PATH|- MESSAGE
//
// The layer stands still while it is copied, but nobody else has to: a container may have handed a descriptor of its files to another
// one. So no name is followed, a file is checked again once it is open, and a folder above is the one that was left. `from` is a mount of
// its own, read-only and without devices. A file of any kind may be in it, at any depth; what only costs time ends with the process.
#include "../common/confine.h"
#include "../common/percent.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define MAX_MEMORY (384u << 20)
#define ATTRIBUTES_MAX 65536 // xattr(7), of a list and of a value
#define PIECE (1u << 20)
// A path in a report has so many of its last names.
#define NAMES_SHOWN 16

// A folder on the way to the one that is being copied. `names` are those of its folders, of which those up to `next` have been entered.
struct level {
    struct stat status;
    size_t names, entered, next;
};

static struct level *levels;
static size_t depth, room;
static char *names; // of all levels, each with its NUL
static size_t names_used, names_room;

static int from = -1, to = -1; // the folder that is being copied, and its copy
static int links = -1;         // files with more links to come, by the number of their inode
static uint64_t max_bytes = UINT64_MAX, max_entries = UINT64_MAX, bytes, entries;
static const char *blame; // the entry at work
static char buffer[PIECE], list[ATTRIBUTES_MAX], value[ATTRIBUTES_MAX];

__attribute__((noreturn)) static void fail(const char *kind, int error, const char *call, const char *message) {
    printf("error %s %d %s ", kind, error, call);
    size_t first = depth > NAMES_SHOWN ? depth - NAMES_SHOWN : 1;
    if (first > 1) printf(".../");
    for (size_t k = first; k < depth; k++) {
        percent_encode(stdout, names + levels[k - 1].entered);
        putchar('/');
    }
    percent_encode(stdout, blame ?: "");
    if (depth <= 1 && !blame) putchar('-');
    putchar(' ');
    percent_encode(stdout, message);
    putchar('\n');
    fflush(stdout);
    _exit(1);
}

static void fail_io(const char *call) {
    int error = errno;
    fail(error == ENOMEM ? "limit" : "io", error, call, strerror(error));
}

static void fail_changed(void) { fail("changed", 0, "-", "it was replaced while it was copied, by a process outside of the container"); }

// Of a call that names an entry of the listing: what a replaced entry gives, and an entry that was listed twice as it moved meanwhile.
static void fail_entry(const char *call) {
    switch (errno) {
    case EEXIST:
    case EINVAL: // readlinkat, of what is no link any more
    case ELOOP:
    case ENODATA:
    case ENOENT:
    case ENOTDIR:
    case ENXIO: fail_changed();
    }
    fail_io(call);
}

static void *grow(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) fail("limit", ENOMEM, "realloc", "the layer needs too much memory");
    return memory;
}

static void spend(uint64_t more) {
    bytes += more;
    if (bytes > max_bytes) fail("limit", 0, "-", "the layer has more bytes than maxBytes allows");
}

static void push(const struct stat *status) {
    if (depth == room) levels = grow(levels, (room = room ? 2 * room : 64) * sizeof *levels);
    levels[depth++] = (struct level){.status = *status, .names = names_used, .entered = names_used, .next = names_used};
}

static void note_folder(const char *name) {
    size_t length = strlen(name) + 1;
    if (names_used + length > names_room) names = grow(names, (names_room = 2 * (names_used + length)));
    memcpy(names + names_used, name, length);
    names_used += length;
}

static bool is_same(const struct stat *one, const struct stat *other) {
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino && ((one->st_mode ^ other->st_mode) & S_IFMT) == 0;
}

// Copies the attributes of `from`/name to `to`/name: links are not followed. The policy of the host gives the labels of SELinux.
static void copy_attributes(const char *name) {
    if (fchdir(from) < 0) fail_io("fchdir");
    ssize_t length = llistxattr(name, list, sizeof list);
    if (length < 0 && errno != ENOTSUP) fail_entry("llistxattr");
    for (const char *key = list; key < list + length; key += strlen(key) + 1) {
        if (strcmp(key, "security.selinux") == 0) continue;
        if (fchdir(from) < 0) fail_io("fchdir");
        ssize_t size = lgetxattr(name, key, value, sizeof value);
        if (size < 0) fail_entry("lgetxattr");
        if (fchdir(to) < 0) fail_io("fchdir");
        if (lsetxattr(name, key, value, (size_t)size, 0) < 0) fail_io("lsetxattr");
    }
}

// A change of owner clears the set-user-ID bits and the capabilities, so it comes first.
static void copy_metadata(const char *name, const struct stat *status) {
    const struct timespec times[2] = {status->st_atim, status->st_mtim};
    if (fchownat(to, name, status->st_uid, status->st_gid, AT_SYMLINK_NOFOLLOW) < 0) fail_io("fchownat");
    copy_attributes(name);
    if (!S_ISLNK(status->st_mode) && fchmodat(to, name, status->st_mode & 07777, 0) < 0) fail_io("fchmodat");
    if (utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) < 0) fail_io("utimensat");
}

static void copy_piece(int source, int target, off_t at, off_t end) {
    while (at < end) {
        size_t wanted = end - at < (off_t)sizeof buffer ? (size_t)(end - at) : sizeof buffer;
        ssize_t n = pread(source, buffer, wanted, at);
        if (n < 0) fail_io("pread");
        if (n == 0) fail_changed();
        spend((uint64_t)n);
        for (ssize_t done = 0; done < n;) {
            ssize_t written = pwrite(target, buffer + done, (size_t)(n - done), at + done);
            if (written < 0) fail_io("pwrite");
            done += written;
        }
        at += n;
    }
}

// Shares the blocks where the file system can (xfs, btrfs; Linux 5.18 between two mounts), else copies what is not a hole.
static void copy_data(int source, int target, const struct stat *status) {
    static bool shares = true;
    if (status->st_size == 0) return;
    if (shares && ioctl(target, FICLONE, source) == 0) return spend((uint64_t)status->st_blocks * 512);
    if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EXDEV) shares = false;
    for (off_t at = 0, end; at < status->st_size; at = end) {
        if ((at = lseek(source, at, SEEK_DATA)) < 0 && errno == ENXIO) break;
        if (at < 0 || (end = lseek(source, at, SEEK_HOLE)) < 0) fail_entry("lseek");
        if (end > status->st_size) end = status->st_size;
        copy_piece(source, target, at, end);
    }
    if (ftruncate(target, status->st_size) < 0) fail_io("ftruncate");
}

static void copy_file(const char *name, const struct stat *status) {
    struct stat now;
    // Nothing that has taken the file's place may block, or be opened with an effect.
    cleanup_close int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (source < 0) fail_entry("openat");
    if (fstat(source, &now) < 0) fail_io("fstat");
    if (!is_same(status, &now)) fail_changed();
    cleanup_close int target = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (target < 0) fail_entry("openat");
    copy_data(source, target, &now);
}

static void copy_symlink(const char *name) {
    ssize_t length = readlinkat(from, name, buffer, sizeof buffer - 1);
    if (length < 0) fail_entry("readlinkat");
    buffer[length] = '\0';
    if (symlinkat(buffer, to, name) < 0) fail_entry("symlinkat");
}

static bool is_whiteout(const struct stat *status) { return S_ISCHR(status->st_mode) && status->st_rdev == 0; }

// The first copy of a file with several links has one in `links` for the others. The last one takes that, so no copy has more links than
// its file has. A whiteout may share its inode with any other: overlayfs makes them so, and compares none.
static bool link_again(const char *name, const struct stat *status, const char *inode) {
    struct stat waiting;
    if (fstatat(links, inode, &waiting, AT_SYMLINK_NOFOLLOW) < 0) return false;
    bool last = waiting.st_nlink >= status->st_nlink;
    if ((last ? renameat(links, inode, to, name) : linkat(links, inode, to, name, 0)) < 0) fail_entry(last ? "renameat" : "linkat");
    return true;
}

static void copy_entry(const char *name, const struct stat *status) {
    char inode[32];
    bool linked = status->st_nlink > 1 && !is_whiteout(status);
    snprintf(inode, sizeof inode, "%jx", (uintmax_t)status->st_ino);
    if (linked && link_again(name, status, inode)) return;
    if (S_ISREG(status->st_mode)) copy_file(name, status);
    else if (S_ISLNK(status->st_mode)) copy_symlink(name);
    else if (mknodat(to, name, (status->st_mode & S_IFMT) | 0600, status->st_rdev) < 0) fail_entry("mknodat");
    copy_metadata(name, status);
    if (linked && linkat(to, name, links, inode, 0) < 0) fail_entry("linkat");
}

// Copies all of the folder but its folders, which it notes.
static void copy_entries(void) {
    _Alignas(struct dirent64) static char page[65536];
    if (lseek(from, 0, SEEK_SET) < 0) fail_io("lseek");
    for (ssize_t n; (n = syscall(SYS_getdents64, from, page, sizeof page)) != 0;) {
        if (n < 0) fail_entry("getdents64");
        for (ssize_t at = 0; at < n; at += ((struct dirent64 *)(page + at))->d_reclen) {
            const char *name = ((struct dirent64 *)(page + at))->d_name;
            struct stat status;
            if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
            blame = name;
            if (entries++ == max_entries) fail("limit", 0, "-", "the layer has more files than a snapshot may have");
            if (fstatat(from, name, &status, AT_SYMLINK_NOFOLLOW) < 0) fail_entry("fstatat");
            if (S_ISDIR(status.st_mode)) note_folder(name);
            else copy_entry(name, &status);
        }
    }
    blame = NULL;
}

static void move_to(int *folder, int next) {
    if (next < 0) fail_entry("openat");
    close(*folder);
    *folder = next;
}

// The copy has mode 0700 and no attributes until its entries are there: a default ACL or a set-group-ID bit would change them.
static void enter(struct level *level) {
    struct stat status;
    level->entered = level->next;
    const char *name = names + level->entered;
    level->next += strlen(name) + 1;
    blame = name;
    move_to(&from, openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (mkdirat(to, name, 0700) < 0) fail_entry("mkdirat");
    move_to(&to, openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (fstat(from, &status) < 0) fail_io("fstat");
    push(&status); // `level` may have moved
    blame = NULL;
    copy_entries();
}

static void leave(void) {
    struct stat above;
    struct level *level = &levels[depth - 1];
    copy_metadata(".", &level->status);
    names_used = level->names;
    if (--depth == 0) return;
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    move_to(&from, openat(from, "..", flags));
    if (fstat(from, &above) < 0) fail_io("fstat");
    if (!is_same(&above, &levels[depth - 1].status)) fail_changed();
    move_to(&to, openat(to, "..", flags));
}

static int open_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) fail_io("open");
    return fd;
}

static void copy_layer(void) {
    struct stat status;
    if (mkdir("links", 0700) < 0 || mkdir("kept/upper", 0700) < 0) fail_io("mkdir");
    from = open_folder("from");
    to = open_folder("kept/upper");
    links = open_folder("links");
    if (fstat(from, &status) < 0) fail_io("fstat");
    push(&status);
    copy_entries();
    while (depth > 0) {
        struct level *level = &levels[depth - 1];
        // The names of the last level are the last ones.
        if (level->next < names_used) enter(level);
        else leave();
    }
}

static void check(const char *failed) {
    if (failed) fail("confine", errno, failed, strerror(errno));
}

static uint64_t parse_count(const char *text) {
    char *end;
    errno = 0;
    uint64_t count = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9') fail("confine", EINVAL, "-", "an option is not a count");
    return count;
}

int main(int count, char **arguments) {
    const struct rlimit none = {0}, memory = {MAX_MEMORY, MAX_MEMORY};
    bool trusted = true;
    for (int k = 1; k < count - 1; k++) {
        const char *option = arguments[k];
        if (strncmp(option, "--max-bytes=", 12) == 0) max_bytes = parse_count(option + 12);
        else if (strncmp(option, "--max-entries=", 14) == 0) max_entries = parse_count(option + 14);
        else if (strcmp(option, "--xattr=user") == 0) trusted = false;
        else if (strcmp(option, "--xattr=trusted") != 0) fail("confine", EINVAL, "-", "an option is unknown");
    }
    if (count < 2) fail("confine", EINVAL, "-", "no folder given");
    check(confine_root(arguments[count - 1], true));
    check(sys_close_range(3, ~0u, 0) < 0 ? "close_range" : NULL);
    check(setrlimit(RLIMIT_CORE, &none) < 0 || (!SANITIZED && setrlimit(RLIMIT_DATA, &memory) < 0) ? "setrlimit" : NULL);
    signal(SIGXFSZ, SIG_IGN); // a file beyond RLIMIT_FSIZE is then reported as EFBIG
    umask(0);
    check(confine_capabilities(trusted));
    copy_layer();
    printf("ok %ju %ju\n", (uintmax_t)entries, (uintmax_t)bytes);
    return fflush(stdout) == 0 ? 0 : 1;
}
