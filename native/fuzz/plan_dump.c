// Prints the plan on stdin as the decoder reads it, one operation a line, with strings and bytes in hexadecimal. The tests compare the
// result with lib/Plan.ts. The first argument is the number of descriptors that the message is supposed to carry. With `batch` as the
// second argument, stdin has several plans, each after its length (u32), and a line after each plan has its result.
// Built with -DFUZZ it is libFuzzer's target for the decoder.
#include "../supervisor/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_hex(FILE *out, const void *bytes, size_t length) {
    for (size_t k = 0; k < length; k++) fprintf(out, "%02x", ((const uint8_t *)bytes)[k]);
}

static void print_field(FILE *out, char type, const union field *field) {
    switch (type) {
    case 'i': fprintf(out, " %" PRId64, field->i); break;
    case 'f':
        if (field->fd == NO_FD) fputs(" -", out);
        else fprintf(out, " %u", field->fd);
        break;
    case 's':
        fputs(" ", out);
        print_hex(out, field->s.text, field->s.length);
        break;
    case 'b':
        fputs(" ", out);
        print_hex(out, field->b.bytes, field->b.length);
        break;
    case 'l':
        fprintf(out, " %zu[", field->l.count);
        for (size_t k = 0; k < field->l.count; k++) {
            if (k > 0) fputs(",", out);
            print_hex(out, field->l.items[k], strlen(field->l.items[k]));
        }
        fputs("]", out);
        break;
    case 'u':
        fprintf(out, " %zu[", field->u.count);
        for (size_t k = 0; k < field->u.count; k++) fprintf(out, k > 0 ? ",%u" : "%u", field->u.items[k]);
        fputs("]", out);
        break;
    }
}

static void print_plan(FILE *out, const struct plan *plan) {
    for (size_t k = 0; k < plan->count; k++) {
        const struct operation_kind *kind = &operation_kinds[plan->operations[k].code];
        fputs(kind->name, out);
        for (size_t f = 0; kind->fields[f]; f++) print_field(out, kind->fields[f], &plan->operations[k].field[f]);
        fputs("\n", out);
    }
}

#ifdef FUZZ
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length) {
    static FILE *nowhere;
    struct plan plan;
    if (!nowhere) nowhere = fopen("/dev/null", "w");
    if (!plan_decode(&plan, bytes, length, 4)) print_plan(nowhere, &plan);
    plan_free(&plan);
    return 0;
}
#else
static int dump(const uint8_t *bytes, size_t length, size_t descriptors, FILE *complaints) {
    struct plan plan;
    const char *wrong = plan_decode(&plan, bytes, length, descriptors);
    if (wrong) fprintf(complaints, "%s\n", wrong);
    else print_plan(stdout, &plan);
    plan_free(&plan);
    return wrong ? 1 : 0;
}

// Each plan is copied into memory of exactly its size, so that AddressSanitizer sees a byte too far.
static int dump_batch(const uint8_t *bytes, size_t length, size_t descriptors) {
    for (size_t at = 0; at + sizeof(uint32_t) <= length;) {
        uint32_t n;
        memcpy(&n, bytes + at, sizeof n);
        at += sizeof n;
        if (n > length - at) return 2;
        uint8_t *copy = malloc(n ? n : 1);
        if (!copy) return 2;
        memcpy(copy, bytes + at, n);
        at += n;
        fputs(dump(copy, n, descriptors, stdout) ? "= refused\n" : "= ok\n", stdout);
        free(copy);
    }
    return 0;
}

int main(int argc, char **argv) {
    size_t length = 0, room = 1 << 16;
    uint8_t *bytes = malloc(room);
    size_t descriptors = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;

    while (bytes) {
        length += fread(bytes + length, 1, room - length, stdin);
        if (length < room) break;
        bytes = realloc(bytes, room *= 2);
    }
    int batch = argc > 2 && !strcmp(argv[2], "batch");
    int status = batch ? dump_batch(bytes, length, descriptors) : dump(bytes, length, descriptors, stderr);
    free(bytes);
    return status;
}
#endif
