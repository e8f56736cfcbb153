// berth-unpack [--compression=gzip|zstd|xz|bzip2|none] [--plain] [--xattr=trusted|user] [--max-bytes=N] [--max-entries=N]
//              [--max-cpu=SECONDS] [--ignore-chown] DIRECTORY
//
// Unpacks the layer blob on fd 0 into the empty DIRECTORY, and writes a report to fd 1, a line per fact. Paths and messages
// are percent-encoded, and a path in a line is relative to DIRECTORY.
//
//   hardlink TARGET PATH   the target is not in this layer: link it from a lower one, replacing the file at PATH
//   implicit PATH          a folder without an entry, made with mode 0755 and owned by root: copy the metadata of a lower layer
//   opaque .               the layer hides all lower layers: overlayfs ignores such a mark on the root of a layer
//   skipped PATH           a device that this user may not make (--xattr=user only)
//   digest sha256:HEX      of the blob
//   diffid sha256:HEX      of the tar stream
//   bytes N                length of the tar stream
//   entries N
//   ok                     always the last; exit status 0
//
// or, alone and with exit status 1:
//
//   error corrupt|format|escape|unsupported|limit|io|confine ERRNO SYSCALL|- PATH|- MESSAGE|-
//
// With --plain the data is an archive and no layer: a name that begins with .wh. is refused, and data that fails before its first entry
// has the kind `format`, as it may be no archive at all.
//
// The limits. Each ends the program with an error of kind limit that names it:
//
//   max-bytes    length of the tar, and length of all files in it with their holes
//   max-entries  members of the tar, and folders that these imply
//   max-cpu      seconds of processor time without progress by 256 KiB of the tar; each 256 KiB give one second more
//   and some that no useful layer reaches: 16 KiB for a path, 10,000 hard links to files that have not been seen, lookups of
//   folders in proportion to the length of the tar, 384 MiB of memory, and 16 MiB of report
//
// The caller gives the program namespaces of its own if possible, removes DIRECTORY after a failure, and checks the digests.
#include "unpack.h"

#include "../common/confine.h"
#include "../common/percent.h"
#include "../common/syscalls.h"
#include "../common/util.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <iconv.h>
#include <langinfo.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    MAX_REPORT = 16 << 20,
    // Enough for the ring, the buffers, a zstd window of 128 MiB and a few 100,000 folders. A sparse map that would exhaust the
    // machine's memory fails with ENOMEM. AddressSanitizer's shadow memory needs more.
    MAX_MEMORY = 384 << 20,
    // Lookups for a tar of any length. They take a few seconds.
    FREE_LOOKUPS = 8 << 20,
};

static const struct {
    enum compression compression;
    const char *name;
} compressions[] = {{NONE, "none"}, {GZIP, "gzip"}, {ZSTD, "zstd"}, {XZ, "xz"}, {BZIP2, "bzip2"}};

static struct archive *reader;
static struct archive_entry *current;
static FILE *report_stream;
static char *report_text;
static size_t report_size;
static bool reported;
static bool plain, has_entry; // whether the data may be no archive, and whether the reader has found an entry
static uint64_t max_bytes = UINT64_MAX, max_entries = UINT64_MAX, max_cpu = 60;
static uint64_t fed; // bytes of the tar that the reader has received

// ---- the report

static void flush_report(void) {
    reported = true;
    fclose(report_stream);
    for (size_t done = 0; done < report_size;) {
        ssize_t written = write(STDOUT_FILENO, report_text + done, report_size - done);
        if (written < 0) _exit(1); // nobody reads the report
        done += (size_t)written;
    }
}

void fail(enum kind kind, int error, const char *call, const char *path, const char *format, ...) {
    static const char *const kinds[] = {[CORRUPT] = "corrupt", [ESCAPE] = "escape", [UNSUPPORTED] = "unsupported",
                                        [LIMIT] = "limit",     [IO] = "io",         [CONFINE] = "confine",
                                        [FORMAT] = "format"};
    char message[512];
    if (kind == CORRUPT && plain && !has_entry) kind = FORMAT;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    rewind(report_stream);
    fprintf(report_stream, "error %s %d %s ", kinds[kind], error, call ?: "-");
    if (path && *path)
        percent_encode(report_stream, path);
    else
        fputc('-', report_stream);
    fputc(' ', report_stream);
    percent_encode(report_stream, message);
    fputc('\n', report_stream);
    flush_report();
    _exit(1);
}

void report(const char *key, const char *first, const char *second) {
    fprintf(report_stream, "%s ", key);
    percent_encode(report_stream, first);
    if (second) {
        fputc(' ', report_stream);
        percent_encode(report_stream, second);
    }
    fputc('\n', report_stream);
    if (ftell(report_stream) > MAX_REPORT) fail(LIMIT, 0, NULL, NULL, "the report is longer than 16 MiB");
}

// libarchive prints to standard error and calls exit(3) if it cannot allocate memory for a name.
static void report_exit(void) {
    if (!reported) fail(LIMIT, ENOMEM, "malloc", NULL, "the layer needs too much memory");
}

static void report_totals(const struct totals *totals, uint64_t entries) {
    const unsigned char *digests[] = {totals->digest, totals->diffid};
    for (size_t k = 0; k < countof(digests); k++) {
        fputs(k == 0 ? "digest sha256:" : "diffid sha256:", report_stream);
        for (size_t byte = 0; byte < sizeof totals->digest; byte++) fprintf(report_stream, "%02x", digests[k][byte]);
        fputc('\n', report_stream);
    }
    fprintf(report_stream, "bytes %ju\nentries %ju\nok\n", (uintmax_t)totals->bytes, (uintmax_t)entries);
    flush_report();
}

void *grow(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) fail(LIMIT, ENOMEM, "realloc", NULL, "the layer needs too much memory");
    return memory;
}

char *copy(const char *text, size_t length) {
    char *copied = grow(NULL, length + 1);
    memcpy(copied, text, length);
    copied[length] = '\0';
    return copied;
}

// ---- confinement

static void fail_confine(const char *call) { fail(CONFINE, errno, call, NULL, "%s", strerror(errno)); }

// Loads what iconv reads from files of the host on first use. The locale stays C on purpose: in a UTF-8 locale, libarchive converts the
// names of PAX headers to Unicode's composed form (NFC), and a file would get another name than in the image. In the C locale its
// conversion fails for every name that is not ASCII, and it uses the bytes.
static void load_conversions(void) {
    if (iconv_open(nl_langinfo(CODESET), "UTF-8") == (iconv_t)-1) fail_confine("iconv_open");
}

static void confine(const char *directory, bool trusted) {
    const char *failed = confine_root(directory, false);
    if (failed) fail(CONFINE, errno, failed, directory, "%s", strerror(errno));
    if (sys_close_range(3, ~0u, 0) < 0) fail_confine("close_range");
    const struct rlimit none = {0}, memory = {MAX_MEMORY, MAX_MEMORY};
    if (setrlimit(RLIMIT_CORE, &none) < 0) fail_confine("setrlimit");
    if (!SANITIZED && setrlimit(RLIMIT_DATA, &memory) < 0) fail_confine("setrlimit");
    signal(SIGXFSZ, SIG_IGN); // a file beyond RLIMIT_FSIZE is then reported as EFBIG
    umask(0);
    if ((failed = confine_capabilities(trusted))) fail_confine(failed);
}

// ---- limits

void count_entry(void) {
    static uint64_t counted;
    if (counted++ == max_entries) fail(LIMIT, 0, NULL, NULL, "the layer has more entries than maxEntries allows");
}

void spend(size_t lookups) {
    static uint64_t spent;
    spent += lookups;
    if (spent > FREE_LOOKUPS + fed / 2)
        fail(LIMIT, 0, NULL, blame, "the paths lead through too many links and folders for a tar of this length");
}

// The limit of processor time bounds all work that has no limit of its own. The handler may only make async-signal-safe calls.
static void on_time(int signal) {
    (void)signal;
    static const char line[] = "error limit 0 - - the%20layer%20takes%20too%20much%20processor%20time%20%28maxCpuSeconds%29\n";
    if (write(STDOUT_FILENO, line, sizeof line - 1) < 0) _exit(1);
    _exit(1);
}

// Adds a second to the time that is left, up to the time at the start. So the time is limited for each part of the tar, and in
// proportion to its length in all.
void allow_time(void) {
    struct itimerval left;
    getitimer(ITIMER_PROF, &left);
    left.it_value.tv_sec++;
    if ((uint64_t)left.it_value.tv_sec >= max_cpu) left.it_value = (struct timeval){.tv_sec = (time_t)max_cpu};
    setitimer(ITIMER_PROF, &left, NULL);
}

static void limit_time(void) {
    signal(SIGPROF, on_time);
    const struct itimerval all = {.it_value.tv_sec = (time_t)max_cpu};
    if (max_cpu > 0 && setitimer(ITIMER_PROF, &all, NULL) < 0) fail_confine("setitimer");
}

// ---- the tar

enum { BLOCK = 512 };

// The bytes that are left of the file whose data is being read; -1 outside of a file, or in a sparse one.
static la_int64_t content_left = -1;

// Some writers do not pad the last file to whole blocks (umoci insert, Go's archive/tar without Close). If all of its data is there, the
// missing bytes are read as zeros, as tar(1) does. A tar that ends within the data is truncated.
static la_ssize_t feed(struct archive *archive, void *unused, const void **data) {
    (void)archive, (void)unused;
    static const char zeros[BLOCK];
    size_t length = source_next(data);
    if (length == 0 && content_left == 0 && fed % BLOCK != 0) {
        *data = zeros;
        length = BLOCK - fed % BLOCK;
    }
    fed += length;
    allow_time();
    return (la_ssize_t)length;
}

// A name that cannot be converted (ARCHIVE_ERRNO_FILE_FORMAT, which on Linux is EILSEQ) is used unchanged. Any other warning means that
// libarchive has read something that differs from the tar: for example, it ignores a malformed PAX record and all records after it.
static void check(int result, const char *path) {
    if (result == ARCHIVE_OK || (result == ARCHIVE_WARN && archive_errno(reader) == EILSEQ)) return;
    const char *message = archive_error_string(reader);
    if (archive_errno(reader) == ENOMEM) fail(LIMIT, ENOMEM, "malloc", path, "the layer needs too much memory");
    fail(CORRUPT, 0, NULL, path, "%s", message ?: "invalid tar");
}

bool entry_data(const void **data, size_t *size, off_t *offset) {
    la_int64_t at;
    int result = archive_read_data_block(reader, data, size, &at);
    if (result == ARCHIVE_EOF) return content_left = -1, false;
    check(result, archive_entry_pathname(current));
    if (content_left > 0) content_left -= (la_int64_t)*size;
    *offset = at;
    return true;
}

bool entry_xattr(const char **name, const void **value, size_t *size) {
    while (archive_entry_xattr_next(current, name, value, size) == ARCHIVE_OK) {
        // A layer may not set attributes of overlayfs or of trusted.*. Security labels are the policy of the host.
        if (strncmp(*name, "user.", 5) == 0 && strncmp(*name, "user.overlay.", 13) != 0) return true;
        if (strncmp(*name, "security.", 9) == 0 && strcmp(*name, "security.selinux") != 0) return true;
    }
    return false;
}

static void unpack_entry(void) {
    struct member member = {
        .path = archive_entry_pathname(current),
        .link = archive_entry_hardlink(current),
        .mode = archive_entry_perm(current) & 07777,
        .mtime = {archive_entry_mtime(current), archive_entry_mtime_nsec(current)},
        .size = archive_entry_size(current),
    };
    if (!member.path || !*member.path) fail(CORRUPT, 0, NULL, NULL, "an entry without a name");
    if (!member.link) {
        member.link = archive_entry_symlink(current);
        member.type = archive_entry_filetype(current);
        switch (member.type) {
        case S_IFREG:
            if (member.path[strlen(member.path) - 1] == '/') member.type = S_IFDIR; // old tars write folders so
            break;
        case S_IFCHR:
        case S_IFBLK: {
            // The kernel uses 12 and 20 bits and drops the rest, which could turn another number into 0:0.
            dev_t major = archive_entry_rdevmajor(current), minor = archive_entry_rdevminor(current);
            if (major >= 1 << 12 || minor >= 1 << 20)
                fail(UNSUPPORTED, 0, NULL, member.path, "a device number beyond the kernel's range");
            member.device = makedev(major, minor);
            break;
        }
        case S_IFDIR:
        case S_IFLNK:
        case S_IFIFO:
            break;
        case 0:
            fail(CORRUPT, 0, NULL, member.path, "a hard link without a target, or an entry without a type");
        default:
            fail(UNSUPPORTED, 0, NULL, member.path, "an entry of a type that layers cannot have");
        }
    }
    if (member.type == S_IFLNK && !member.link) fail(CORRUPT, 0, NULL, member.path, "a symlink without a target");
    la_int64_t uid = archive_entry_uid(current), gid = archive_entry_gid(current);
    // For chown(2), 2^32-1 means to leave an id unchanged. CVE-2024-40635 came from unchecked ids.
    if (uid < 0 || gid < 0 || uid > UINT32_MAX - 1ll || gid > UINT32_MAX - 1ll)
        fail(CORRUPT, 0, NULL, member.path, "an owner that is not a valid user or group id");
    member.uid = (uid_t)uid;
    member.gid = (gid_t)gid;
    // libarchive reads -1.25 as -1 s and +0.25 s.
    if (member.mtime.tv_sec < 0 && member.mtime.tv_nsec > 0 && member.mtime.tv_sec > INT64_MIN) {
        member.mtime.tv_sec--;
        member.mtime.tv_nsec = 1000000000 - member.mtime.tv_nsec;
    }
    static uint64_t written;
    if (member.type == S_IFREG && (__builtin_add_overflow(written, (uint64_t)member.size, &written) || written > max_bytes))
        fail(LIMIT, 0, NULL, member.path, "the files, with their holes, are longer than maxBytes allows");
    archive_entry_xattr_reset(current);
    content_left = member.type == S_IFREG && archive_entry_sparse_count(current) == 0 ? member.size : -1;
    tree_add(&member);
    content_left = -1;
}

static uint64_t unpack(void) {
    reader = archive_read_new();
    current = archive_entry_new();
    if (!reader || !current) fail(LIMIT, ENOMEM, "malloc", NULL, "no memory");
    archive_read_support_format_tar(reader);
    archive_read_support_format_empty(reader); // a layer of 0 bytes, which Docker once made, is an empty layer
    check(archive_read_open(reader, NULL, NULL, feed, NULL), NULL);
    for (uint64_t entries = 0;; entries++) {
        int result = archive_read_next_header2(reader, current);
        if (result == ARCHIVE_EOF) return entries;
        check(result, NULL);
        has_entry = true;
        count_entry();
        unpack_entry();
    }
}

// ---- arguments

static uint64_t parse_count(const char *option, const char *text) {
    char *end;
    errno = 0;
    uint64_t count = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9') fail(CONFINE, EINVAL, NULL, NULL, "%s is not a count", option);
    return count;
}

static enum compression parse_compression(const char *option, const char *text) {
    for (size_t k = 0; k < countof(compressions); k++)
        if (strcmp(text, compressions[k].name) == 0) return compressions[k].compression;
    fail(CONFINE, EINVAL, NULL, NULL, "%s is not gzip, zstd, xz, bzip2 or none", option);
}

int main(int count, char **arguments) {
    enum compression compression = NONE;
    struct tree_options options = {.trusted = true};
    report_stream = open_memstream(&report_text, &report_size);
    if (!report_stream || atexit(report_exit) != 0) return 1;
    for (int k = 1; k < count - 1; k++) {
        char *option = arguments[k], *value = strchr(option, '=');
        size_t length = value ? (size_t)(++value - option) : 0;
        if (length > 0 && strncmp(option, "--compression=", length) == 0)
            compression = parse_compression(option, value);
        else if (length > 0 && strncmp(option, "--max-bytes=", length) == 0)
            max_bytes = parse_count(option, value);
        else if (length > 0 && strncmp(option, "--max-entries=", length) == 0)
            max_entries = parse_count(option, value);
        else if (length > 0 && strncmp(option, "--max-cpu=", length) == 0)
            max_cpu = parse_count(option, value);
        else if (strcmp(option, "--xattr=trusted") == 0)
            options.trusted = true;
        else if (strcmp(option, "--xattr=user") == 0)
            options.trusted = false;
        else if (strcmp(option, "--plain") == 0)
            options.plain = plain = true;
        else if (strcmp(option, "--ignore-chown") == 0)
            options.ignore_chown = true;
        else
            fail(CONFINE, EINVAL, NULL, NULL, "unknown option %s", option);
    }
    if (count < 2) fail(CONFINE, EINVAL, NULL, NULL, "no directory given");

    load_conversions();
    confine(arguments[count - 1], options.trusted);
    limit_time();
    tree_start(options);
    source_start(compression, max_bytes);
    uint64_t entries = unpack();
    struct totals totals = source_finish();
    tree_finish();
    report_totals(&totals, entries);
    return 0;
}
