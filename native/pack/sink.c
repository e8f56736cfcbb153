// The tar's way to the blob: the main thread fills the slots of a ring and hashes them, and a second thread compresses them, hashes the
// result and writes it.
#include "pack.h"
#include "../common/ring.h"

// See native/unpack/source.c.
#define OPENSSL_SUPPRESS_DEPRECATED

#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum {
    BLOCK = 512,
    OUTPUT = 256 * 1024,
    // On the reference machine, gzip -1 of ISA-L takes a tenth of the time of zlib's -6 for 9 % more bytes.
    GZIP_LEVEL = 1,
    ZSTD_LEVEL = 3,
};

// Used by the main thread only.
static struct {
    pthread_t thread;
    SHA256_CTX hash;
    uint64_t max_bytes;
    unsigned char *slot; // the one that is being filled
    size_t used;         // of it
} tar;

// Used by the second thread only, until it has ended.
static struct {
    enum compression compression;
    SHA256_CTX hash;
    uint64_t size;
    unsigned char output[OUTPUT];
} blob;

// Set by the second thread before it gives up.
static struct {
    bool set;
    int error;
    const char *call;
} failure;

static struct totals totals;

static bool give_up(int error, const char *call) {
    failure.set = true;
    failure.error = error;
    failure.call = call;
    ring_give_up();
    return false;
}

static bool put(const unsigned char *bytes, size_t length) {
    SHA256_Update(&blob.hash, bytes, length);
    blob.size += length;
    while (length > 0) {
        ssize_t written = write(STDIN_FILENO, bytes, length);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return give_up(errno, "write");
        bytes += written;
        length -= (size_t)written;
    }
    return true;
}

static bool write_plain(void) {
    size_t length;
    for (unsigned char *data; (data = ring_next(&length));)
        if (!put(data, length)) return false;
    return true;
}

static bool write_gzip(void) {
    static struct isal_zstream stream;
    static unsigned char level_buffer[ISAL_DEF_LVL1_DEFAULT];
    isal_deflate_init(&stream);
    stream.gzip_flag = IGZIP_GZIP; // with no time and no name, so that equal tars make equal blobs
    stream.level = GZIP_LEVEL;
    stream.level_buf = level_buffer;
    stream.level_buf_size = sizeof level_buffer;
    for (bool more = true; more;) {
        size_t length;
        stream.next_in = ring_next(&length);
        stream.avail_in = (uint32_t)length;
        more = stream.next_in != NULL;
        stream.end_of_stream = !more;
        do {
            stream.next_out = blob.output;
            stream.avail_out = OUTPUT;
            if (isal_deflate(&stream) != COMP_OK) return give_up(EINVAL, "isal_deflate");
            if (!put(blob.output, OUTPUT - stream.avail_out)) return false;
        } while (stream.avail_out == 0);
    }
    return true;
}

static bool write_zstd(void) {
    ZSTD_CCtx *context = ZSTD_createCCtx();
    if (!context) return give_up(ENOMEM, "ZSTD_createCCtx");
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    for (bool more = true; more;) {
        ZSTD_inBuffer in = {.pos = 0};
        in.src = ring_next(&in.size);
        more = in.src != NULL;
        for (size_t left = 1; more ? in.pos < in.size : left > 0;) {
            ZSTD_outBuffer out = {blob.output, OUTPUT, 0};
            left = ZSTD_compressStream2(context, &out, &in, more ? ZSTD_e_continue : ZSTD_e_end);
            if (ZSTD_isError(left)) return give_up(ENOMEM, "ZSTD_compressStream2");
            if (!put(blob.output, out.pos)) return false;
        }
    }
    ZSTD_freeCCtx(context);
    return true;
}

static void *run(void *unused) {
    static bool (*const writers[])(void) = {[NONE] = write_plain, [GZIP] = write_gzip, [ZSTD] = write_zstd};
    if (writers[blob.compression]()) SHA256_Final(totals.digest, &blob.hash);
    return unused;
}

static void check(void) {
    if (failure.set) fail(failure.error == ENOMEM ? LIMIT : STORAGE, failure.error, failure.call, strerror(failure.error));
}

void sink_start(enum compression compression, uint64_t max_bytes) {
    blob.compression = compression;
    tar.max_bytes = max_bytes;
    SHA256_Init(&blob.hash);
    SHA256_Init(&tar.hash);
    tar.slot = ring_slot();
    int error = pthread_create(&tar.thread, NULL, run, NULL);
    if (error != 0) fail(CONFINE, error, "pthread_create", strerror(error));
}

static void hand_over(void) {
    SHA256_Update(&tar.hash, tar.slot, tar.used);
    ring_hand_over(tar.used);
    tar.slot = ring_slot();
    if (!tar.slot) check();
    tar.used = 0;
}

unsigned char *sink_room(size_t *room) {
    *room = SLOT - tar.used;
    return tar.slot + tar.used;
}

void sink_take(size_t length) {
    tar.used += length;
    totals.bytes += length;
    if (totals.bytes > tar.max_bytes) fail(LIMIT, 0, "-", "the layer is longer than a layer may be");
    if (tar.used == SLOT) hand_over();
}

void sink_write(const void *bytes, size_t length) {
    for (const unsigned char *from = bytes; length > 0;) {
        size_t room;
        unsigned char *to = sink_room(&room);
        size_t part = length < room ? length : room;
        memcpy(to, from, part);
        sink_take(part);
        from += part;
        length -= part;
    }
}

void sink_zeros(uint64_t length) {
    while (length > 0) {
        size_t room;
        unsigned char *to = sink_room(&room);
        size_t part = length < room ? (size_t)length : room;
        memset(to, 0, part);
        sink_take(part);
        length -= part;
    }
}

void sink_pad(uint64_t size) { sink_zeros((BLOCK - size % BLOCK) % BLOCK); }

struct totals sink_finish(void) {
    if (tar.used > 0) hand_over();
    ring_end();
    pthread_join(tar.thread, NULL);
    check();
    SHA256_Final(totals.diffid, &tar.hash);
    totals.size = blob.size;
    return totals;
}
