// Writes the entries of a layer into the process's root, in the form that overlayfs reads (OCI image-spec, layer.md).
//
// The process is pivoted into the layer and has no /proc, so it can reach nothing outside: a symlink that is absolute or climbs with
// `..` leads to a place in the layer, as it will in the container. This file ensures that the last entry of a name wins, that
// whiteouts apply to lower layers only, and that the metadata is right.
//
// A path is cut at its last slash, and the name is used only with *at calls that do not follow links. The records that are kept until
// the end have the folder's own path, without links, and its inode, which is compared: a later entry may have replaced the folder.
#include "unpack.h"

#include "../common/util.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <search.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
    MAX_PENDING = 10000, // hard links whose target has not been seen
    MAX_IMPLICIT = 1000, // folders without an entry that are reported
    MAX_ROUNDS = 16,     // through the waiting hard links, as one of them can lead to the target of another
    PIECE = 512,         // records between two calls of allow_time()
};

#define list(type) struct { type *at; size_t count, room; }
// Adds an uninitialised element at the end.
#define push(list)                                                                                                   \
    (*({                                                                                                             \
        if ((list).count == (list).room) {                                                                           \
            (list).room = (list).room ? (list).room * 2 : 16;                                                        \
            (list).at = grow((list).at, (list).room * sizeof *(list).at);                                            \
        }                                                                                                            \
        &(list).at[(list).count++];                                                                                  \
    }))

struct link {
    char *target, *folder, *name;
    bool settled, waits;
    struct link *waiting, *next; // the links that wait for this one, and the next link that waits for the same one
};
struct whiteout {
    char *folder, *name;
    bool settled;
};
struct implicit {
    char *path;
    ino_t inode;
};
struct folder_time {
    char *path;
    ino_t inode;
    struct timespec mtime;
};

static struct tree_options options;
static list(struct link *) links;
static void *links_by_name; // a tsearch(3) tree with the last link of each name
static list(struct whiteout) whiteouts;
static list(char *) opaque_requests;
static list(struct implicit) implicits;
static list(struct folder_time) times;
static void *opaque_folders; // a tsearch(3) tree of struct opaque

// ---- metadata

static void remember_time(char *path, ino_t inode, struct timespec mtime) {
    push(times) = (struct folder_time){.path = path, .inode = inode, .mtime = mtime};
}

static void forget_implicit(ino_t inode) {
    for (size_t k = 0; k < implicits.count; k++)
        if (implicits.at[k].inode == inode) implicits.at[k].inode = 0;
}

// Sets the owner, then the mode, as chown(2) clears set-id bits. Does not set again what is right after the creation, but reads it first:
// a set-gid folder and a default ACL above change a new file's group and mode. `fd` is that of a regular file, or -1.
static struct stat own(int fd, int dir, const char *name, uid_t uid, gid_t gid, mode_t mode) {
    struct stat now;
    if ((fd >= 0 ? fstat(fd, &now) : fstatat(dir, name, &now, AT_SYMLINK_NOFOLLOW)) < 0) fail_io("fstat");
    bool owned = now.st_uid == uid && now.st_gid == gid;
    if (!owned) {
        int done = fd >= 0 ? fchown(fd, uid, gid) : fchownat(dir, name, uid, gid, AT_SYMLINK_NOFOLLOW);
        bool ignored = options.ignore_chown && (errno == EPERM || errno == EINVAL);
        if (done < 0 && errno == EINVAL && !ignored)
            fail(UNSUPPORTED, EINVAL, "fchownat", blame, "its owner %u:%u is not among the ids of this user namespace", uid, gid);
        if (done < 0 && !ignored) fail_io("fchownat");
    }
    bool moded = (now.st_mode & 07777) == mode && (owned || !(mode & (S_ISUID | S_ISGID)));
    // fchmodat follows symlinks. This file is not one: it was checked above, and no other process can reach it.
    if (!S_ISLNK(now.st_mode) && !moded && (fd >= 0 ? fchmod(fd, mode) : fchmodat(dir, name, mode, 0)) < 0)
        fail_io("fchmodat");
    return now;
}

// After own(): chown(2) drops security.capability.
static void set_xattrs(int fd, int dir, const char *name) {
    const char *key;
    const void *value;
    size_t size;
    while (entry_xattr(&key, &value, &size)) {
        // There is no lsetxattrat before Linux 6.13, and no /proc/self/fd in this root.
        if (fd < 0 && fchdir(dir) < 0) fail_io("fchdir");
        if ((fd >= 0 ? fsetxattr(fd, key, value, size, 0) : lsetxattr(name, key, value, size, 0)) == 0) continue;
        // EPERM is for user.* on anything but a file or folder (xattr(7)), or security.* in a user namespace. A file without its
        // capabilities would not work, so this is an error.
        bool optional = strcmp(key, "security.capability") != 0;
        if (!optional || (errno != ENOTSUP && errno != EPERM)) fail_io("setxattr");
    }
}

static void settle(const struct member *member, int fd, const struct folder *in, const char *name) {
    struct stat now = own(fd, in->fd, name, member->uid, member->gid, member->mode);
    set_xattrs(fd, in->fd, name);
    const struct timespec set[2] = {member->mtime, member->mtime};
    if (S_ISDIR(now.st_mode)) { // later entries change the time of a folder
        forget_implicit(now.st_ino);
        remember_time(strcmp(name, ".") == 0 ? copy("", 0) : join(in->path, name), now.st_ino, member->mtime);
    } else if ((fd >= 0 ? futimens(fd, set) : utimensat(in->fd, name, set, AT_SYMLINK_NOFOLLOW)) < 0) {
        fail_io("utimensat");
    }
}

// ---- opening folders

void make_implicit(int dir, const char *name, const char *path) {
    count_entry();
    if (mkdirat(dir, name, 0755) < 0) fail_io("mkdirat");
    ino_t inode = own(-1, dir, name, 0, 0, 0755).st_ino;
    remember_time(copy(path, strlen(path)), inode, (struct timespec){0});
    if (implicits.count < MAX_IMPLICIT)
        push(implicits) = (struct implicit){.path = copy(path, strlen(path)), .inode = inode};
}

static const struct folder *entry_folder(const char *path) {
    const struct folder *folder = folder_at(OWN, path, true);
    if (folder) return folder;
    if (errno == ENOTDIR) fail(CORRUPT, errno, "openat", blame, "a component of the path is not a folder");
    if (errno == ELOOP) fail(CORRUPT, errno, "openat", blame, "the path leads through too many symlinks");
    fail_io("openat");
}

// ---- entries by type

static void add_file(const struct member *member, const struct folder *in, const char *name) {
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    cleanup_close int fd = -1;
    while ((fd = openat(in->fd, name, flags, member->mode & 0777)) < 0) {
        if (errno != EEXIST) fail_io("openat");
        clear_way(in->fd, name);
    }
    const void *data;
    size_t size;
    off_t offset, at = 0, end = 0;
    while (entry_data(&data, &size, &offset)) {
        if (offset != at && lseek(fd, offset, SEEK_SET) < 0) fail_io("lseek");
        for (at = offset; size > 0;) {
            ssize_t written = write(fd, data, size);
            if (written < 0) fail_io("write");
            data = (const char *)data + written;
            size -= (size_t)written;
            at += written;
        }
        if (at > end) end = at;
    }
    if (member->size > end && ftruncate(fd, member->size) < 0) fail_io("ftruncate"); // the last hole
    settle(member, fd, in, name);
}

static void add_folder(const struct member *member, const struct folder *in, const char *name) {
    while (mkdirat(in->fd, name, member->mode & 01777) < 0) {
        if (errno != EEXIST) fail_io("mkdirat");
        struct stat there;
        if (fstatat(in->fd, name, &there, AT_SYMLINK_NOFOLLOW) < 0) fail_io("fstatat");
        if (S_ISDIR(there.st_mode)) break; // and keeps its content
        clear_way(in->fd, name);
    }
    settle(member, -1, in, name);
}

static void add_symlink(const struct member *member, const struct folder *in, const char *name) {
    if (!*member->link) fail(CORRUPT, 0, NULL, blame, "a symlink without a target");
    while (symlinkat(member->link, in->fd, name) < 0) {
        if (errno != EEXIST) fail_io("symlinkat");
        clear_way(in->fd, name);
    }
    settle(member, -1, in, name);
}

static void add_node(const struct member *member, const struct folder *in, const char *name) {
    if (S_ISCHR(member->type) && member->device == 0)
        fail(UNSUPPORTED, 0, NULL, blame, "a character device 0:0 would hide a file of a lower layer");
    while (mknodat(in->fd, name, member->type | member->mode, member->device) < 0) {
        if (errno == EPERM && !S_ISFIFO(member->type) && !options.trusted) { // mknod(2) in a user namespace
            cleanup_free char *path = join(in->path, name);
            report("skipped", path, NULL);
            return;
        }
        if (errno != EEXIST) fail_io("mknodat");
        clear_way(in->fd, name);
    }
    settle(member, -1, in, name);
}

static int by_name(const void *one, const void *other) {
    const struct link *a = one, *b = other;
    int order = strcmp(a->name, b->name);
    return order ? order : strcmp(a->folder, b->folder);
}

// Makes the hard link if `target` is in the layer, and returns whether it is. The link has the metadata of the target, which is not set
// again. If the target is missing but its folder exists, `*missing` becomes the waiting link of that name, if there is one.
static bool make_link(const char *target, int dir, const char *name, struct link **missing) {
    cleanup_free char *path = copy(target, strlen(target));
    const char *folder, *last = split(path, &folder);
    const struct folder *from = folder_at(TARGET, folder, false);
    if (!from && errno != ENOENT && errno != ENOTDIR && errno != ELOOP) fail_io("openat");
    if (!from) return false;
    struct stat there, here;
    if (fstatat(from->fd, last, &there, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT) fail_io("fstatat");
        struct link wanted = {.folder = from->path, .name = (char *)last};
        struct link **found = tfind(&wanted, &links_by_name, by_name);
        if (found) *missing = *found;
        return false;
    }
    if (S_ISDIR(there.st_mode)) fail(CORRUPT, 0, NULL, blame, "a hard link to a folder");
    while (linkat(from->fd, last, dir, name, 0) < 0) { // flag 0: a link to a symlink is one to the symlink itself
        if (errno == ENOENT) return false; // the target was in a folder that clear_way() has removed
        if (errno != EEXIST) fail_io("linkat");
        if (fstatat(dir, name, &here, AT_SYMLINK_NOFOLLOW) < 0) fail_io("fstatat");
        if (here.st_ino == there.st_ino) return true;
        clear_way(dir, name);
    }
    return true;
}

static void add_link(const struct member *member, const struct folder *in, const char *name) {
    cleanup_free char *target = clean(member->link, "the link's target");
    struct link *missing;
    if (!*target) fail(CORRUPT, 0, NULL, blame, "a hard link to the root or to nothing");
    if (make_link(target, in->fd, name, &missing)) return;
    // The target comes later, or is in a lower layer. Like any entry, this one replaces an earlier one.
    clear_way(in->fd, name);
    if (links.count == MAX_PENDING) fail(LIMIT, 0, NULL, blame, "too many hard links to files of other layers");
    struct link *link = grow(NULL, sizeof *link);
    *link = (struct link){
        .target = copy(target, strlen(target)),
        .folder = copy(in->path, strlen(in->path)),
        .name = copy(name, strlen(name)),
    };
    push(links) = link;
    struct link **last = tsearch(link, &links_by_name, by_name);
    if (!last) fail(LIMIT, ENOMEM, "tsearch", NULL, "the layer needs too much memory");
    if (*last != link) (*last)->settled = true;
    *last = link;
}

// A whiteout applies to lower layers only, wherever it is in the tar, so all of them wait for the end.
static void add_whiteout(const struct folder *in, const char *name) {
    if (options.plain) fail(UNSUPPORTED, 0, NULL, blame, "a name that begins with .wh., which hides files in an image");
    if (strcmp(name, ".wh..wh..opq") == 0) {
        push(opaque_requests) = copy(in->path, strlen(in->path));
        return;
    }
    const char *hidden = name + strlen(".wh.");
    if (!*hidden) fail(CORRUPT, 0, NULL, blame, "a whiteout of nothing");
    if (strcmp(hidden, ".") == 0 || strcmp(hidden, "..") == 0)
        fail(ESCAPE, 0, NULL, blame, "a whiteout of the folder itself or the one above");
    if (strlen(name) > NAME_MAX) {
        errno = ENAMETOOLONG;
        fail_io("mknodat");
    }
    push(whiteouts) = (struct whiteout){
        .folder = copy(in->path, strlen(in->path)),
        .name = copy(hidden, strlen(hidden)),
    };
}

// Whether the entry is metadata of aufs: `.wh..wh.plnk`, `.wh..wh.aufs`, `.wh..wh.orph`, or an entry in one of these.
static bool is_aufs_metadata(const char *path) {
    for (const char *part = path; *part; part += strspn(part, "/")) {
        size_t length = strcspn(part, "/");
        if (strncmp(part, ".wh..wh.", 8) == 0 && strcmp(part, ".wh..wh..opq") != 0) return true;
        if (strncmp(part, ".wh.", 4) == 0 && part[length] == '/')
            fail(CORRUPT, 0, NULL, blame, "an entry in a whiteout");
        part += length;
    }
    return false;
}

void tree_add(const struct member *member) {
    blame = member->path;
    cleanup_free char *path = clean(member->path, "the path");
    if (!*path) { // CVE-2021-29136: a symlink as the root would lead the next layer out of its folder
        if (!S_ISDIR(member->type)) fail(ESCAPE, 0, NULL, blame, "the entry of the root is not a folder");
        settle(member, -1, entry_folder(""), ".");
        return;
    }
    if (is_aufs_metadata(path)) return;
    const char *folder, *name = split(path, &folder);
    const struct folder *in = entry_folder(folder);
    if (strncmp(name, ".wh.", 4) == 0)
        add_whiteout(in, name);
    else if (S_ISREG(member->type))
        add_file(member, in, name);
    else if (S_ISDIR(member->type))
        add_folder(member, in, name);
    else if (S_ISLNK(member->type))
        add_symlink(member, in, name);
    else if (member->type == 0)
        add_link(member, in, name);
    else
        add_node(member, in, name);
}

// ---- the end

// Makes the link, unless a later entry has replaced it or its folder. Returns whether it is settled.
static bool settle_link(struct link *link) {
    struct link *missing = NULL;
    blame = link->name;
    const struct folder *in = folder_at(OWN, link->folder, false);
    link->settled = !in || faccessat(in->fd, link->name, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ||
                    make_link(link->target, in->fd, link->name, &missing);
    if (!link->settled && missing && missing != link) {
        link->waits = true;
        link->next = missing->waiting;
        missing->waiting = link;
    }
    return link->settled;
}

// Settles a link, then the links that have waited for it, and so on.
static bool settle_chain(struct link *first) {
    if (!settle_link(first)) return false;
    for (struct link *ready = first->waiting; ready;) {
        struct link *link = ready;
        ready = link->next;
        link->waits = false;
        if (!settle_link(link)) continue;
        while (link->waiting) {
            struct link *waiting = link->waiting;
            link->waiting = waiting->next;
            waiting->next = ready;
            ready = waiting;
        }
    }
    first->waiting = NULL;
    return true;
}

static void finish_links(void) {
    bool progress = links.count > 0;
    // A link to a symlink can lead to the target of another, which cannot be known before.
    for (int round = 0; progress; round++) {
        if (round == MAX_ROUNDS) fail(LIMIT, 0, NULL, blame, "the hard links lead through each other too often");
        progress = false;
        for (size_t k = 0; k < links.count; k++) {
            if (k % PIECE == 0) allow_time();
            struct link *link = links.at[k];
            if (!link->settled && !link->waits && settle_chain(link)) progress = true;
        }
    }
    for (size_t k = 0; k < links.count; k++) {
        const struct link *link = links.at[k];
        if (link->settled) continue;
        cleanup_free char *path = join(link->folder, link->name);
        report("hardlink", link->target, path);
    }
}

// The path of an opaque folder, with its hash. The hash of a longer path continues that of a shorter one, so a search for all folders
// above a path takes time linear in its length.
struct opaque {
    const char *path;
    size_t length;
    uint64_t hash;
};

static uint64_t hash_start; // random, so that a tar cannot be made to have collisions

static uint64_t hash_on(uint64_t hash, char byte) { return (hash ^ (unsigned char)byte) * 0x100000001b3; }

static int compare(const void *one, const void *other) {
    const struct opaque *a = one, *b = other;
    if (a->hash != b->hash) return a->hash < b->hash ? -1 : 1;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return memcmp(a->path, b->path, a->length);
}

static void make_opaque(int dir, char *path) {
    const char *key = options.trusted ? "trusted.overlay.opaque" : "user.overlay.opaque";
    blame = path;
    if (fchdir(dir) < 0) fail_io("fchdir");
    if (lsetxattr(".", key, "y", 1, 0) < 0) fail_io("setxattr");
    struct opaque *opaque = grow(NULL, sizeof *opaque);
    *opaque = (struct opaque){.path = path, .length = strlen(path), .hash = hash_start};
    for (const char *byte = path; *byte; byte++) opaque->hash = hash_on(opaque->hash, *byte);
    struct opaque **found = tsearch(opaque, &opaque_folders, compare);
    if (!found) fail_io("tsearch");
    if (*found != opaque) free(opaque);
}

// Whether the folder or one above it is opaque.
static bool is_opaque(const char *folder) {
    struct opaque above = {.path = folder, .hash = hash_start};
    if (!opaque_folders) return false;
    for (;; above.length++) {
        char byte = folder[above.length];
        bool whole = above.length == 0 || byte == '/' || byte == '\0';
        if (whole && tfind(&above, &opaque_folders, compare)) return true;
        if (!byte) return false;
        above.hash = hash_on(above.hash, byte);
    }
}

static void finish_whiteouts(void) {
    if (getrandom(&hash_start, sizeof hash_start, 0) < 0) fail_io("getrandom");
    for (size_t k = 0; k < opaque_requests.count; k++) {
        if (k % PIECE == 0) allow_time();
        blame = opaque_requests.at[k];
        const struct folder *folder = folder_at(OWN, opaque_requests.at[k], false);
        if (folder) make_opaque(folder->fd, opaque_requests.at[k]);
    }
    // If the layer has a folder of the name, the folder becomes opaque: its own content stays, and that of lower layers is hidden. Any
    // other file of the name hides the lower one already.
    for (size_t k = 0; k < whiteouts.count; k++) {
        if (k % PIECE == 0) allow_time();
        struct whiteout *whiteout = &whiteouts.at[k];
        blame = whiteout->name;
        const struct folder *in = folder_at(OWN, whiteout->folder, false);
        struct stat there;
        whiteout->settled = !in || fstatat(in->fd, whiteout->name, &there, AT_SYMLINK_NOFOLLOW) == 0;
        if (!in || !whiteout->settled || !S_ISDIR(there.st_mode)) continue;
        char *path = join(whiteout->folder, whiteout->name);
        const struct folder *folder = folder_at(OWN, path, false);
        if (folder) make_opaque(folder->fd, path);
        forget_implicit(there.st_ino); // the metadata of the lower folder is hidden with it
    }
    // An opaque folder hides everything already, and overlayfs would list the device there (`c?????????`).
    for (size_t k = 0; k < whiteouts.count; k++) {
        if (k % PIECE == 0) allow_time();
        const struct whiteout *whiteout = &whiteouts.at[k];
        if (whiteout->settled || is_opaque(whiteout->folder)) continue;
        blame = whiteout->name;
        const struct folder *in = folder_at(OWN, whiteout->folder, false);
        // Since Linux 5.8, makedev(0, 0) needs no CAP_MKNOD.
        if (in && mknodat(in->fd, whiteout->name, S_IFCHR, 0) < 0 && errno != EEXIST) fail_io("mknodat");
    }
    // overlayfs merges the roots of its layers and ignores marks there, so the caller leaves out the lower layers.
    if (is_opaque("")) report("opaque", ".", NULL);
}

static void report_implicits(void) {
    for (size_t k = 0; k < implicits.count; k++) {
        const struct implicit *implicit = &implicits.at[k];
        struct stat there;
        if (implicit->inode == 0) continue;
        blame = implicit->path;
        const struct folder *folder = folder_at(OWN, implicit->path, false);
        if (!folder || fstat(folder->fd, &there) < 0 || there.st_ino != implicit->inode) continue;
        cleanup_free char *path = copy(implicit->path, strlen(implicit->path));
        const char *above;
        split(path, &above);
        if (!is_opaque(above)) report("implicit", implicit->path, NULL);
    }
}

// A change of a folder's times does not change those of the folder above, so the order is that of the tar: the last entry wins.
static void finish_times(void) {
    for (size_t k = 0; k < times.count; k++) {
        if (k % PIECE == 0) allow_time();
        const struct folder_time *time = &times.at[k];
        struct stat there;
        blame = time->path;
        const struct folder *folder = folder_at(OWN, time->path, false);
        if (!folder || fstat(folder->fd, &there) < 0 || there.st_ino != time->inode) continue;
        const struct timespec set[2] = {time->mtime, time->mtime};
        if (utimensat(folder->fd, ".", set, 0) < 0) fail_io("utimensat");
    }
}

void tree_start(struct tree_options given) {
    options = given;
    struct stat now = own(-1, path_start(), ".", 0, 0, 0755);
    remember_time(copy("", 0), now.st_ino, (struct timespec){0});
}

void tree_finish(void) {
    blame = NULL; // the path of the last entry has been freed
    finish_links();
    finish_whiteouts();
    report_implicits();
    finish_times();
}
