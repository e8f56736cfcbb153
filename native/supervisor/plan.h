// A plan: what the supervisor does to make one unit (a container, a namespace holder, a cgroup, a root file
// system), as a flat list of operations. lib/Plan.ts compiles and encodes it, plan.c decodes it, and nothing
// in C decides anything: each operation is performed in the order of the list.
//
// The binary form, little endian:
//
//   plan      = u32 magic, u16 version, u16 count, operation * count
//   operation = u16 code, u16 zero, u32 length, field *      (length: bytes of the fields)
//   field     = i: i64 | f: u32 index into the message's descriptors, or NO_FD
//             | s: string | b: u32 length, bytes | l: u32 count, string * | u: u32 count, u32 *
//   string    = u32 length, bytes without NUL, NUL
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PLAN_MAGIC 0x4e4c5042u // "BPLN"
#define PLAN_VERSION 1
#define PLAN_FIELDS 5
#define PLAN_OPERATIONS_MAX 4096
#define PLAN_BYTES_MAX (32u << 20)
#define NO_FD UINT32_MAX

// Where an operation is performed: by the supervisor before the clone, as the clone itself, by the child after
// it, or on either side.
enum phase { SUPERVISOR, PROCESS, CHILD, EITHER, LAST };

// code, name, fields, phase. Codes are the places in this list; append only.
#define OPERATIONS(X)                                                                                        \
    X(CGROUP_CREATE, "cgroup-create", "s", SUPERVISOR)        /* path */                                     \
    X(CGROUP_WRITE, "cgroup-write", "ss", SUPERVISOR)         /* file, value */                              \
    X(CGROUP_JOIN, "cgroup-join", "si", SUPERVISOR)           /* path, version */                            \
    X(SCRATCH, "scratch", "si", SUPERVISOR)                   /* path, mode */                               \
    X(OVERLAY, "overlay", "lssli", EITHER)                    /* lower, upper, work, options, attributes */  \
    X(OVERLAY_MEMORY, "overlay-memory", "lilli", EITHER)      /* lower, mode, tmpfs and overlay options, .. */ \
    X(ROOT_MOUNT, "root-mount", "f", CHILD)                   /* mount */                                    \
    X(ROOT_BIND, "root-bind", "sii", CHILD)                   /* path, attributes, recursive */              \
    X(PROCESS, "process", "i", PROCESS)                       /* clone flags */                              \
    X(ID_MAP, "id-map", "ss", CHILD)                          /* uid_map, gid_map */                         \
    X(JOIN, "join", "fi", CHILD)                              /* pidfd, clone flags */                       \
    X(SESSION, "session", "", CHILD)                                                                         \
    X(KEYRING, "keyring", "", CHILD)                                                                         \
    X(STDIO, "stdio", "fff", CHILD)                           /* stdin, stdout, stderr */                    \
    X(RLIMIT, "rlimit", "iii", CHILD)                         /* resource, soft, hard */                     \
    X(UNSHARE, "unshare", "i", CHILD)                         /* clone flags */                              \
    X(LOOPBACK, "loopback", "", CHILD)                                                                       \
    X(ROOT, "root", "", CHILD)                                                                               \
    X(MOUNT, "mount", "sslii", CHILD)                         /* type, target, options, attributes, pinned */ \
    X(BIND, "bind", "ssiii", CHILD)                           /* source, target, attributes, recursive, pinned */ \
    X(DIRECTORY, "directory", "si", CHILD)                    /* path, mode */                               \
    X(SYMLINK, "symlink", "ss", CHILD)                        /* target, path */                             \
    X(MASK, "mask", "sli", CHILD)                             /* null device, paths, required */             \
    X(READONLY, "readonly", "li", CHILD)                      /* paths, required */                          \
    X(PIVOT, "pivot", "", CHILD)                                                                             \
    X(ROOT_READONLY, "root-readonly", "", CHILD)                                                             \
    X(HOSTNAME, "hostname", "s", CHILD)                       /* name */                                     \
    X(DOMAINNAME, "domainname", "s", CHILD)                   /* name */                                     \
    X(SYSCTL, "sysctl", "ss", CHILD)                          /* key as a path below /proc/sys, value */     \
    X(WORKING_DIRECTORY, "working-directory", "si", CHILD)    /* path, create */                             \
    X(UMASK, "umask", "i", CHILD)                             /* mask */                                     \
    X(BOUNDING, "bounding", "i", CHILD)                       /* capabilities kept */                        \
    X(USER, "user", "iiu", CHILD)                             /* uid, gid, groups */                         \
    X(CAPABILITIES, "capabilities", "iiii", CHILD)            /* effective, permitted, inheritable, ambient */ \
    X(TERMINAL, "terminal", "fiii", CHILD)                    /* socket, rows, columns, uid */               \
    X(NO_NEW_PRIVILEGES, "no-new-privileges", "", CHILD)                                                     \
    X(SECCOMP, "seccomp", "bif", CHILD)                       /* struct sock_filter [], flags, socket or none */ \
    X(EXEC, "exec", "flll", LAST)                             /* program or none, paths to try, argv, env */ \
    X(CONNECT, "connect", "fii", LAST)                        /* socket, IP version, port on loopback */     \
    X(SELF, "self", "ll", LAST)                               /* argv, env of the supervisor's own program */ \
    X(CGROUP_DEVICES, "cgroup-devices", "sb", SUPERVISOR)     /* path, struct bpf_insn [] */                 \
    X(APPARMOR, "apparmor", "s", CHILD)                       /* profile */                                  \
    X(HOLD, "hold", "f", SUPERVISOR)                          /* a descriptor */                             \
    X(LAYER_MAP, "layer-map", "ss", SUPERVISOR)               /* uid_map, gid_map */                         \
    X(OWNER, "owner", "sii", SUPERVISOR)                      /* path, uid, gid */                           \
    X(ROOT_USER, "root-user", "", CHILD)                                                                     \
    X(DISCARD, "discard", "s", SUPERVISOR)                    /* path */                                     \
    X(RECORD, "record", "s", CHILD)                           /* path */                                     \
    X(FORK, "fork", "", CHILD)                                                                               \
    X(CONTROLLING_TERMINAL, "controlling-terminal", "", CHILD)                                               \
    X(EMPTY_ROOT, "empty-root", "si", CHILD)                  /* path, whether it has a procfs */            \
    X(PROC_OF, "proc-of", "fl", CHILD)                        /* pidfd, paths */

enum operation_code {
#define X(code, name, fields, phase) OP_##code,
    OPERATIONS(X)
#undef X
        OPERATION_CODES
};

union field {
    int64_t i;
    uint32_t fd; // index into the message's descriptors, checked, or NO_FD
    struct {
        const char *text; // ends in NUL
        size_t length;
    } s;
    struct {
        const void *bytes; // aligned to 8
        size_t length;
    } b;
    struct {
        char **items; // ends in NULL, as execve(2) wants it
        size_t count;
    } l;
    struct {
        const uint32_t *items;
        size_t count;
    } u;
};

struct operation {
    enum operation_code code;
    union field field[PLAN_FIELDS];
};

struct plan {
    size_t count;
    size_t process; // index of the process operation, or count where there is none
    struct operation *operations;
};

struct operation_kind {
    const char *name;
    const char *fields;
    enum phase phase;
};

extern const struct operation_kind operation_kinds[OPERATION_CODES];

// Decodes a plan out of bytes that are written by an attacker until shown otherwise. Strings stay where they are:
// `bytes` must outlive the plan. Returns NULL, or what is wrong. The plan is freed with plan_free in either case.
const char *plan_decode(struct plan *plan, const uint8_t *bytes, size_t length, size_t descriptors);
void plan_free(struct plan *plan);
