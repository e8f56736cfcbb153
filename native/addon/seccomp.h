// Compiles a seccomp policy to a BPF program by libseccomp, which is loaded when it is first asked for: the addon loads
// on a machine that has none.
//
// A policy, little endian, as lib/internal/security/seccomp.ts writes it:
//
//   policy    = u32 default action, u32 count of architectures, name *, u32 count of rules, rule *
//   rule      = u32 action, u32 1 where it may be left out, name, u32 count, condition *
//   condition = u32 argument, u32 comparison, u64 value, u64 second value
//   name      = u32 length, bytes
//
// Actions are as in seccomp(2), comparisons as in enum scmp_compare, the first architecture is this machine's own.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SECCOMP_NAME_MAX 63
#define SECCOMP_PROGRAM_MAX (4096 * 8) // BPF_MAXINSNS instructions

// Writes the program and returns its length in bytes, or -errno, with the rule that is at fault in `rule`: ELIBACC
// without libseccomp, ENOENT for a name that it does not know and that may not be left out, E2BIG for a program that no kernel takes.
int seccomp_compile(const uint8_t *policy, size_t length, uint8_t *program, size_t room, uint32_t *rule);

// The name of a system call of this machine's architecture, or NULL. To be freed.
char *seccomp_name(int number);
