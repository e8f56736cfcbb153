// A plan: the work of the supervisor for one unit (a container, a namespace holder, a cgroup, a root file system), as a flat
// list of operations. lib/Plan.ts encodes it and plan.c decodes it. The C code makes no decisions: it performs the operations in
// the order of the list.
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
#define PLAN_FIELDS 8
#define PLAN_OPERATIONS_MAX 4096
#define PLAN_BYTES_MAX (32u << 20)
#define NO_FD UINT32_MAX

// Who performs an operation: the supervisor before the clone (SUPERVISOR), the clone itself (PROCESS), the child after it
// (CHILD), the supervisor or the child (EITHER), or the child as the last operation of the plan (LAST).
enum phase { SUPERVISOR, PROCESS, CHILD, EITHER, LAST };

// Code, name, phase, types of the fields, names of the fields. The place of an operation is its code. The table in
// lib/internal/supervisor/operations.ts has the same order, types and names, and lib/Plan.ts says what each operation does.
#define OPERATIONS(X) \
    X(CGROUP_CREATE, cgroup_create, SUPERVISOR, "s", path) \
    X(CGROUP_WRITE, cgroup_write, SUPERVISOR, "ss", file, value) \
    X(CGROUP_JOIN, cgroup_join, SUPERVISOR, "si", path, version) \
    X(SCRATCH, scratch, SUPERVISOR, "si", path, mode) \
    X(OVERLAY, overlay, EITHER, "lssli", lower, upper, work, options, attributes) \
    X(OVERLAY_MEMORY, overlay_memory, EITHER, "lilli", lower, mode, tmpfs, options, attributes) \
    X(ROOT_MOUNT, root_mount, CHILD, "f", mount) \
    X(ROOT_BIND, root_bind, CHILD, "sii", path, attributes, recursive) \
    X(PROCESS, process, PROCESS, "i", namespaces) \
    X(ID_MAP, id_map, CHILD, "ss", uids, gids) \
    X(JOIN, join, CHILD, "fi", process, namespaces) \
    X(SESSION, session, CHILD, "") \
    X(KEYRING, keyring, CHILD, "") \
    X(STDIO, stdio, CHILD, "fff", stdin, stdout, stderr) \
    X(RLIMIT, rlimit, CHILD, "iii", resource, soft, hard) \
    X(UNSHARE, unshare, CHILD, "i", namespaces) \
    X(LOOPBACK, loopback, CHILD, "") \
    X(ATTACH_ROOT, attach_root, CHILD, "") \
    X(MOUNT, mount, CHILD, "sslii", type, target, options, attributes, pinned) \
    X(BIND, bind, CHILD, "ssiii", source, target, attributes, recursive, pinned) \
    X(DIRECTORY, directory, CHILD, "si", path, mode) \
    X(SYMLINK, symlink, CHILD, "ss", target, path) \
    X(MASK, mask, CHILD, "sli", null, paths, required) \
    X(READONLY, readonly, CHILD, "li", paths, required) \
    X(PIVOT, pivot, CHILD, "") \
    X(ROOT_READONLY, root_readonly, CHILD, "") \
    X(HOSTNAME, hostname, CHILD, "s", name) \
    X(DOMAINNAME, domainname, CHILD, "s", name) \
    X(SYSCTL, sysctl, CHILD, "ss", key, value) \
    X(WORKING_DIRECTORY, working_directory, CHILD, "si", path, create) \
    X(UMASK, umask, CHILD, "i", mask) \
    X(BOUNDING, bounding, CHILD, "i", capabilities) \
    X(USER, user, CHILD, "iiu", uid, gid, groups) \
    X(CAPABILITIES, capabilities, CHILD, "iiii", effective, permitted, inheritable, ambient) \
    X(TERMINAL, terminal, CHILD, "fiii", socket, rows, columns, uid) \
    X(NO_NEW_PRIVILEGES, no_new_privileges, CHILD, "") \
    X(SECCOMP, seccomp, CHILD, "bif", program, flags, listener) \
    X(EXEC, exec, LAST, "flll", program, paths, arguments, environment) \
    X(EXEC_SELF, exec_self, LAST, "ll", arguments, environment) \
    X(CGROUP_DEVICES, cgroup_devices, SUPERVISOR, "sb", path, program) \
    X(APPARMOR, apparmor, CHILD, "s", profile) \
    X(KEEP_OPEN, keep_open, SUPERVISOR, "f", descriptor) \
    X(LAYER_MAP, layer_map, SUPERVISOR, "ss", uids, gids) \
    X(OWNER, owner, SUPERVISOR, "sii", path, uid, gid) \
    X(ROOT_USER, root_user, CHILD, "") \
    X(DISCARD, discard, SUPERVISOR, "s", path) \
    X(RECORD, record, CHILD, "s", path) \
    X(FORK, fork, CHILD, "") \
    X(CONTROLLING_TERMINAL, controlling_terminal, CHILD, "") \
    X(EMPTY_ROOT, empty_root, CHILD, "si", path, proc) \
    X(TAKE_PROC, take_proc, CHILD, "fl", process, paths) \
    X(TARGETS, targets, SUPERVISOR, "ll", folders, files) \
    X(FILES, files, CHILD, "slliiiii", folder, targets, contents, attributes, required, uid, gid, mode) \
    X(NETLINK, netlink, CHILD, "fbi", socket, messages, pid_at) \
    X(NAME_SOCKETS, name_sockets, CHILD, "fs", responder, message) \
    X(EXIT, exit, LAST, "") \
    X(NETFILTER, netfilter, CHILD, "b", messages) \
    X(FILESYSTEM, filesystem, SUPERVISOR, "ssli", type, image, options, attributes) \
    X(TREE, tree, SUPERVISOR, "sii", path, mapped, attributes) \
    X(ATTACH, attach, SUPERVISOR, "si", path, discard) \
    X(COPY_ATTRIBUTES, copy_attributes, SUPERVISOR, "ss", from, path) \
    X(HAND_OVER, hand_over, SUPERVISOR, "") \
    X(PLACE, place, CHILD, "s", target) \
    X(SEND_NETWORK, send_network, CHILD, "") \
    X(JOIN_OWNER, join_owner, CHILD, "f", namespace)

enum operation_code {
#define X(code, ...) OP_##code,
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
        char **items; // ends in NULL, as execve(2) requires
        size_t count;
    } l;
    struct {
        const uint32_t *items;
        size_t count;
    } u;
};

// The fields of an operation by place, for the decoder, and by name: `operation->bind.source.s.text`.
struct operation {
    enum operation_code code;
    union {
        union field field[PLAN_FIELDS];
#define X(code, name, phase, types, ...) __VA_OPT__(struct { union field __VA_ARGS__; } name;)
        OPERATIONS(X)
#undef X
    };
};

struct plan {
    size_t count;
    size_t process; // index of the process operation; equal to count in a plan without a process
    struct operation *operations;
};

struct operation_kind {
    const char *name; // with "_" where lib/Plan.ts has "-"
    const char *fields;
    enum phase phase;
};

extern const struct operation_kind operation_kinds[OPERATION_CODES];

// Decodes a plan. The bytes may come from an attacker. Strings are not copied: `bytes` must outlive the plan. Returns NULL, or
// the reason why the plan is refused. The caller frees the plan with plan_free in both cases.
const char *plan_decode(struct plan *plan, const uint8_t *bytes, size_t length, size_t descriptors);
void plan_free(struct plan *plan);
