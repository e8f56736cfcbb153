// Compiles a seccomp policy to a BPF program by libseccomp, which is linked in. A system's own library is used if it is not older.
//
// A policy, little endian, as lib/internal/security/seccomp.ts writes it:
//
//   policy    = u32 default action, u32 count of architectures, name *, u32 count of rules, rule *
//   rule      = u32 action, u32 1 if it may be left out, name, u32 count, condition *
//   condition = u32 argument, u32 comparison, u64 value, u64 second value
//   name      = u32 length, bytes
//
// Actions are those of seccomp(2), comparisons those of enum scmp_compare. The first architecture is this machine's own.
#pragma once

#include <stddef.h>
#include <stdint.h>

// lib/internal/security/seccomp.ts has the same numbers; test/unit/SharedNumbers.test.ts compares the two.
#define SECCOMP_NAME_MAX 63
#define SECCOMP_PROGRAM_MAX (4096 * 8) // BPF_MAXINSNS instructions
// From 424 on, a system call has the same number on every architecture. No number is as large as this one.
#define SECCOMP_NUMBERS_END 1024

// Writes the program and returns its length in bytes, or -errno with the index of the faulty rule in `rule`: ENOENT for a system
// call that libseccomp does not know and that may not be left out, E2BIG for a program that no kernel accepts.
int seccomp_compile(const uint8_t *policy, size_t length, uint8_t *program, size_t room, uint32_t *rule);

// The name of a system call of this machine's architecture, or NULL. The caller frees it.
char *seccomp_name(int number);
