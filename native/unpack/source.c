// The blob's side of the unpacker: one thread that reads fd 0, hashes it, decompresses it into a ring of buffers and hashes the
// result, while the main thread parses the tar in the buffers and writes files. A third thread for a hash gave no measurable gain on
// two cores.
#include "unpack.h"
#include "../common/ring.h"

// OpenSSL deprecates its functions for a single algorithm. Unlike EVP's, they link no other algorithm into the program, and load no
// configuration and no providers.
#define OPENSSL_SUPPRESS_DEPRECATED

#include <bzlib.h>
#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <lzma.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

enum {
    INPUT = 256 * 1024,
    XZ_MEMORY = 128 << 20, // `xz -9` takes 65 MiB
    WINDOW_LOG = 27, // the limit of zstd's own tool without --long: 128 MiB, which are allocated only if a frame needs them
};

// Set by the thread before it ends.
static struct source_failure {
    bool set;
    enum kind kind;
    int error;
    const char *call, *message;
} failure;

// Used by the thread only.
static struct {
    enum compression compression;
    uint64_t max_bytes;
    pthread_t thread;
    SHA256_CTX blob_hash, tar_hash;
    unsigned char input[INPUT];
    unsigned char *out; // the slot being filled
    struct totals totals;
} source;

static struct inflate_state inflater; // 100 KiB, too large for a stack

static bool give_up(enum kind kind, int error, const char *call, const char *message) {
    failure = (struct source_failure){.set = true, .kind = kind, .error = error, .call = call, .message = message};
    return false;
}

// One read of the blob into `buffer`; *got is 0 at its end.
static bool read_blob(unsigned char *buffer, size_t size, size_t *got) {
    ssize_t n;
    while ((n = read(STDIN_FILENO, buffer, size)) < 0 && errno == EINTR) continue;
    if (n < 0) return give_up(IO, errno, "read", "cannot read the blob");
    SHA256_Update(&source.blob_hash, buffer, (size_t)n);
    *got = (size_t)n;
    return true;
}

static bool hand_over(size_t length) {
    if (length == 0) return true;
    source.totals.bytes += length;
    if (source.totals.bytes > source.max_bytes)
        return give_up(LIMIT, 0, NULL, "the layer has more bytes than maxBytes allows");
    if (source.compression != NONE) SHA256_Update(&source.tar_hash, source.out, length);
    ring_hand_over(length);
    source.out = ring_slot();
    return true;
}

static bool read_plain(void) {
    size_t length = 0, got;
    for (;;) {
        if (!read_blob(source.out + length, SLOT - length, &got)) return false;
        length += got;
        if (got == 0) return hand_over(length);
        if (length == SLOT) {
            if (!hand_over(length)) return false;
            length = 0;
        }
    }
}

// Makes at least two bytes of input available if the blob has them.
static bool peek_two(void) {
    while (inflater.avail_in < 2) {
        size_t got;
        memmove(source.input, inflater.next_in, inflater.avail_in);
        inflater.next_in = source.input;
        if (!read_blob(source.input + inflater.avail_in, INPUT - inflater.avail_in, &got)) return false;
        if (got == 0) return true;
        inflater.avail_in += (uint32_t)got;
    }
    return true;
}

static bool inflate_member(void) {
    bool ended = false;
    for (;;) {
        if (inflater.avail_in == 0 && !ended) {
            size_t got;
            if (!read_blob(source.input, INPUT, &got)) return false;
            inflater.next_in = source.input;
            inflater.avail_in = (uint32_t)got;
            ended = got == 0;
        }
        switch (isal_inflate(&inflater)) {
        case ISAL_DECOMP_OK:
        case ISAL_END_INPUT: break;
        case ISAL_INVALID_WRAPPER:
        case ISAL_UNSUPPORTED_METHOD: return give_up(CORRUPT, 0, NULL, "not gzip data");
        case ISAL_INCORRECT_CHECKSUM: return give_up(CORRUPT, 0, NULL, "gzip checksum mismatch");
        default: return give_up(CORRUPT, 0, NULL, "invalid gzip data");
        }
        if (inflater.block_state == ISAL_BLOCK_FINISH) return true;
        if (inflater.avail_out == 0) {
            if (!hand_over(SLOT)) return false;
            inflater.next_out = source.out;
            inflater.avail_out = SLOT;
        } else if (ended && inflater.avail_in == 0) {
            return give_up(CORRUPT, 0, NULL, "gzip data ends early");
        }
    }
}

// A gzip file can have several members (RFC 1952, 2.2). After the last one, bytes that do not start with gzip's magic number are ignored,
// as by gzip(1), which warns of them. The digest of the blob includes them.
static bool read_gzip(void) {
    isal_inflate_init(&inflater);
    inflater.next_in = source.input;
    inflater.next_out = source.out;
    inflater.avail_out = SLOT;
    do {
        isal_inflate_reset(&inflater); // leaves next_in and next_out alone
        inflater.crc_flag = ISAL_GZIP;
        if (!inflate_member() || !peek_two()) return false;
    } while (inflater.avail_in >= 2 && inflater.next_in[0] == 0x1f && inflater.next_in[1] == 0x8b);
    if (!hand_over(SLOT - inflater.avail_out)) return false;
    for (size_t got = 1; got > 0;)
        if (!read_blob(source.input, INPUT, &got)) return false;
    return true;
}

static bool read_zstd(void) {
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (context == NULL) return give_up(LIMIT, ENOMEM, NULL, "no memory for zstd");
    ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, WINDOW_LOG);
    ZSTD_inBuffer in = {source.input, 0, 0};
    ZSTD_outBuffer out = {source.out, SLOT, 0};
    size_t missing = 1; // 0 exactly between frames; zstd skips skippable frames itself
    for (bool ended = false; !(ended && in.pos == in.size && missing == 0);) {
        if (in.pos == in.size && !ended) {
            if (!read_blob(source.input, INPUT, &in.size)) return false;
            in.pos = 0;
            ended = in.size == 0;
            if (ended) continue;
        }
        missing = ZSTD_decompressStream(context, &out, &in);
        switch (ZSTD_getErrorCode(missing)) {
        case ZSTD_error_no_error: break;
        case ZSTD_error_frameParameter_windowTooLarge: return give_up(LIMIT, 0, NULL, "the zstd window is larger than 128 MiB");
        case ZSTD_error_memory_allocation: return give_up(LIMIT, ENOMEM, NULL, "no memory for the zstd window");
        case ZSTD_error_prefix_unknown: return give_up(CORRUPT, 0, NULL, "not zstd data");
        case ZSTD_error_checksum_wrong: return give_up(CORRUPT, 0, NULL, "zstd checksum mismatch");
        default: return give_up(CORRUPT, 0, NULL, "invalid zstd data");
        }
        if (out.pos == out.size) {
            if (!hand_over(SLOT)) return false;
            out.dst = source.out;
            out.pos = 0;
        } else if (ended && missing != 0) {
            return give_up(CORRUPT, 0, NULL, "zstd data ends early");
        }
    }
    ZSTD_freeDCtx(context);
    return hand_over(out.pos);
}

// What liblzma and libbz2 have in common: `step` decompresses from the input into the slot, and says whether the data has ended.
static bool read_by(bool (*step)(size_t *in, size_t *out, bool ended, bool *end)) {
    size_t in = 0, out = SLOT;
    for (bool ended = false, end = false; !end;) {
        if (in == 0 && !ended) {
            if (!read_blob(source.input, INPUT, &in)) return false;
            ended = in == 0;
        }
        if (!step(&in, &out, ended, &end)) return false;
        if (out > 0) continue;
        if (!hand_over(SLOT)) return false;
        out = SLOT;
    }
    if (!hand_over(SLOT - out)) return false;
    for (size_t got = 1; got > 0;)
        if (!read_blob(source.input, INPUT, &got)) return false;
    return true;
}

static lzma_stream xz = LZMA_STREAM_INIT;

static bool step_xz(size_t *in, size_t *out, bool ended, bool *end) {
    if (xz.avail_in == 0) xz.next_in = source.input;
    xz.avail_in = *in;
    xz.next_out = source.out + SLOT - *out;
    xz.avail_out = *out;
    lzma_ret result = lzma_code(&xz, ended ? LZMA_FINISH : LZMA_RUN);
    *in = xz.avail_in;
    *out = xz.avail_out;
    *end = result == LZMA_STREAM_END;
    switch (result) {
    case LZMA_OK:
    case LZMA_STREAM_END: return true;
    case LZMA_FORMAT_ERROR: return give_up(CORRUPT, 0, NULL, "not xz data");
    case LZMA_MEMLIMIT_ERROR: return give_up(LIMIT, 0, NULL, "the xz data needs more than 128 MiB of memory");
    case LZMA_MEM_ERROR: return give_up(LIMIT, ENOMEM, NULL, "no memory for xz");
    case LZMA_BUF_ERROR: return give_up(CORRUPT, 0, NULL, "xz data ends early");
    default: return give_up(CORRUPT, 0, NULL, "invalid xz data");
    }
}

static bool read_xz(void) {
    if (lzma_stream_decoder(&xz, XZ_MEMORY, LZMA_CONCATENATED) != LZMA_OK) return give_up(LIMIT, ENOMEM, NULL, "no memory for xz");
    return read_by(step_xz);
}

static bz_stream bzip2;

// A file can have several streams. After the last one, other bytes are ignored, as by bzip2(1).
static bool step_bzip2(size_t *in, size_t *out, bool ended, bool *end) {
    static bool between = true, several;
    if (*in == 0 && ended) {
        *end = between && several;
        return *end || give_up(CORRUPT, 0, NULL, "bzip2 data ends early");
    }
    if (bzip2.avail_in == 0) bzip2.next_in = (char *)source.input;
    bzip2.avail_in = (unsigned)*in;
    if (between && several && *bzip2.next_in != 'B') return *end = true;
    if (between && BZ2_bzDecompressInit(&bzip2, 0, 0) != BZ_OK) return give_up(LIMIT, ENOMEM, NULL, "no memory for bzip2");
    between = false;
    bzip2.next_out = (char *)source.out + SLOT - *out;
    bzip2.avail_out = (unsigned)*out;
    int result = BZ2_bzDecompress(&bzip2);
    *in = bzip2.avail_in;
    *out = bzip2.avail_out;
    if (result == BZ_STREAM_END) {
        char *next = bzip2.next_in; // kept by neither of the next two calls
        BZ2_bzDecompressEnd(&bzip2);
        bzip2.next_in = next;
        return between = several = true;
    }
    if (result == BZ_OK) return true;
    if (result == BZ_MEM_ERROR) return give_up(LIMIT, ENOMEM, NULL, "no memory for bzip2");
    return give_up(CORRUPT, 0, NULL, result == BZ_DATA_ERROR_MAGIC ? "not bzip2 data" : "invalid bzip2 data");
}

static bool read_bzip2(void) { return read_by(step_bzip2); }

static void *run(void *unused) {
    static bool (*const readers[])(void) = {
        [NONE] = read_plain, [GZIP] = read_gzip, [ZSTD] = read_zstd, [XZ] = read_xz, [BZIP2] = read_bzip2};
    source.out = ring_slot();
    if (readers[source.compression]()) {
        SHA256_Final(source.totals.digest, &source.blob_hash);
        if (source.compression == NONE) memcpy(source.totals.diffid, source.totals.digest, sizeof source.totals.diffid);
        else
            SHA256_Final(source.totals.diffid, &source.tar_hash);
    }
    ring_end();
    return unused;
}

void source_start(enum compression compression, uint64_t max_bytes) {
    source.compression = compression;
    source.max_bytes = max_bytes;
    SHA256_Init(&source.blob_hash);
    SHA256_Init(&source.tar_hash);
    int error = pthread_create(&source.thread, NULL, run, NULL);
    if (error != 0) fail(CONFINE, error, "pthread_create", NULL, "cannot start the reader");
}

size_t source_next(const void **data) {
    size_t length;
    *data = ring_next(&length);
    if (!*data && failure.set) fail(failure.kind, failure.error, failure.call, NULL, "%s", failure.message);
    return length;
}

struct totals source_finish(void) {
    const void *data;
    while (source_next(&data) > 0) ;
    pthread_join(source.thread, NULL);
    return source.totals;
}
