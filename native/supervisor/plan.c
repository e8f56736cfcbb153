// The decoder of a plan's binary form. Its input is hostile: every length is checked against the bytes that are left, every count
// against the bytes that so many items need at least. Everything is allocated in one arena, whose size is known beforehand.
#include "plan.h"

#include <stdlib.h>
#include <string.h>

const struct operation_kind operation_kinds[OPERATION_CODES] = {
#define X(code, name, phase, types, ...) {#name, types, phase},
    OPERATIONS(X)
#undef X
};

// Each operation has as many names of fields as types.
#define X(code, name, phase, types, ...) __VA_OPT__(_Static_assert(sizeof((struct operation){0}.name) == (sizeof types - 1) * sizeof(union field), #name);)
OPERATIONS(X)
#undef X

struct reader {
    const uint8_t *at;
    size_t left;
    uint8_t *arena;
    size_t arena_left;
};

static const void *take(struct reader *r, size_t length) {
    if (length > r->left) return NULL;
    const void *taken = r->at;
    r->at += length;
    r->left -= length;
    return taken;
}

static int take_u32(struct reader *r, uint32_t *out) {
    const void *from = take(r, sizeof *out);
    if (!from) return -1;
    memcpy(out, from, sizeof *out);
    return 0;
}

static void *reserve(struct reader *r, size_t length) {
    length = (length + 7) & ~(size_t)7;
    if (length > r->arena_left) return NULL;
    void *reserved = r->arena;
    r->arena += length;
    r->arena_left -= length;
    return reserved;
}

static const char *take_string(struct reader *r, size_t *length) {
    uint32_t n;
    if (take_u32(r, &n) < 0) return NULL;
    const char *text = take(r, (size_t)n + 1);
    if (!text || text[n] != '\0' || memchr(text, '\0', n)) return NULL;
    *length = n;
    return text;
}

static const char *take_list(struct reader *r, union field *field) {
    uint32_t count;
    // A string takes at least 5 bytes, which limits the count before anything is reserved.
    if (take_u32(r, &count) < 0 || count > r->left / 5) return "a list is longer than its operation";
    char **items = reserve(r, ((size_t)count + 1) * sizeof *items);
    if (!items) return "a list does not fit";
    for (uint32_t k = 0; k < count; k++) {
        size_t length;
        const char *text = take_string(r, &length);
        if (!text) return "a string is cut short or holds NUL";
        items[k] = (char *)text;
    }
    items[count] = NULL;
    field->l.items = items;
    field->l.count = count;
    return NULL;
}

static const char *take_numbers(struct reader *r, union field *field) {
    uint32_t count;
    if (take_u32(r, &count) < 0 || count > r->left / sizeof(uint32_t)) return "numbers are longer than their operation";
    void *items = reserve(r, (size_t)count * sizeof(uint32_t));
    if (!items) return "numbers do not fit";
    if (count > 0) memcpy(items, take(r, (size_t)count * sizeof(uint32_t)), (size_t)count * sizeof(uint32_t));
    field->u.items = items;
    field->u.count = count;
    return NULL;
}

static const char *take_bytes(struct reader *r, union field *field) {
    uint32_t length;
    const void *from;
    if (take_u32(r, &length) < 0 || !(from = take(r, length))) return "bytes are longer than their operation";
    void *copy = reserve(r, length);
    if (!copy) return "bytes do not fit";
    memcpy(copy, from, length);
    field->b.bytes = copy;
    field->b.length = length;
    return NULL;
}

static const char *take_field(struct reader *r, char type, union field *field, size_t descriptors) {
    switch (type) {
    case 'i': {
        const void *from = take(r, sizeof field->i);
        if (!from) return "a number is cut short";
        memcpy(&field->i, from, sizeof field->i);
        return NULL;
    }
    case 'f':
        if (take_u32(r, &field->fd) < 0) return "a descriptor is cut short";
        if (field->fd != NO_FD && field->fd >= descriptors) return "a descriptor was not sent";
        return NULL;
    case 's':
        field->s.text = take_string(r, &field->s.length);
        return field->s.text ? NULL : "a string is cut short or holds NUL";
    case 'l': return take_list(r, field);
    case 'u': return take_numbers(r, field);
    default: return take_bytes(r, field);
    }
}

// The operations of the supervisor, then one process, then those of the child, and exec, exec-self or exit as the last. Or no
// process at all.
static const char *check_order(struct plan *plan) {
    plan->process = plan->count;
    for (size_t k = 0; k < plan->count; k++) {
        enum phase phase = operation_kinds[plan->operations[k].code].phase;
        int in_child = plan->process < k;
        if (phase == PROCESS) {
            if (in_child) return "a second process";
            plan->process = k;
        } else if (phase == SUPERVISOR && in_child) {
            return "an operation of the supervisor after the process";
        } else if ((phase == CHILD || phase == LAST) && !in_child) {
            return "an operation of the child before the process";
        } else if (phase == LAST && k + 1 != plan->count) {
            return "an operation after the last";
        }
    }
    if (plan->process < plan->count && operation_kinds[plan->operations[plan->count - 1].code].phase != LAST)
        return "a process with nothing to execute";
    return NULL;
}

const char *plan_decode(struct plan *plan, const uint8_t *bytes, size_t length, size_t descriptors) {
    struct reader r = {.at = bytes, .left = length};
    uint32_t magic;
    uint16_t head[2];
    const void *from;

    *plan = (struct plan){0};
    if (length > PLAN_BYTES_MAX) return "longer than PLAN_BYTES_MAX";
    if (take_u32(&r, &magic) < 0 || magic != PLAN_MAGIC || !(from = take(&r, sizeof head))) return "not a plan";
    memcpy(head, from, sizeof head);
    if (head[0] != PLAN_VERSION) return "a plan of another version";
    if (head[1] > PLAN_OPERATIONS_MAX || head[1] > r.left / 8) return "too many operations";

    // Each string of 5 bytes or more needs a pointer of 8 bytes, and each list or array is rounded up once.
    r.arena_left = head[1] * sizeof(struct operation) + 2 * length + (size_t)head[1] * PLAN_FIELDS * 16;
    r.arena = calloc(1, r.arena_left ? r.arena_left : 1);
    if (!r.arena) return "no memory for a plan";
    plan->operations = (struct operation *)r.arena;
    reserve(&r, head[1] * sizeof(struct operation));
    plan->count = head[1];

    for (size_t k = 0; k < plan->count; k++) {
        uint16_t code[2];
        uint32_t size;
        if (!(from = take(&r, sizeof code)) || take_u32(&r, &size) < 0 || size > r.left) return "an operation is cut short";
        memcpy(code, from, sizeof code);
        if (code[0] >= OPERATION_CODES || code[1] != 0) return "an unknown operation";
        plan->operations[k].code = code[0];

        struct reader inner = {.at = r.at, .left = size, .arena = r.arena, .arena_left = r.arena_left};
        const char *types = operation_kinds[code[0]].fields;
        for (size_t f = 0; types[f]; f++) {
            const char *wrong = take_field(&inner, types[f], &plan->operations[k].field[f], descriptors);
            if (wrong) return wrong;
        }
        if (inner.left != 0) return "bytes after the fields of an operation";
        take(&r, size);
        r.arena = inner.arena;
        r.arena_left = inner.arena_left;
    }
    if (r.left != 0) return "bytes after the last operation";
    return check_order(plan);
}

void plan_free(struct plan *plan) {
    free(plan->operations);
    *plan = (struct plan){0};
}
