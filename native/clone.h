// clone3(2) into a function on another stack, which the C library does not offer: the caller's own stack cannot be
// shared, as the child would return into, and write over, the frames that the parent comes back to.
#pragma once

#include <linux/sched.h>
#include <stddef.h>
#include <sys/syscall.h>

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer knows of no stack but the thread's own.
#define CLONE_ON_STACK 0
#elif defined(__x86_64__) || defined(__aarch64__)
#define CLONE_ON_STACK 1
#else
#define CLONE_ON_STACK 0
#endif

// Calls `run`, which must not return, in the child. Returns the child's pid, or -errno.
static inline long clone_on_stack(struct clone_args *arguments, size_t size, void (*run)(void *), void *argument) {
    long result;
#if defined(__x86_64__)
    __asm__ volatile("syscall\n\t"
                     "testq %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "movq %[argument], %%rdi\n\t"
                     "callq *%[run]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(arguments), "S"(size), [run] "d"(run), [argument] "b"(argument)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = (long)size;
    register long x8 __asm__("x8") = SYS_clone3;
    register void (*x2)(void *) __asm__("x2") = run;
    register void *x3 __asm__("x3") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x3\n\t"
                     "blr x2\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x1), "r"(x2), "r"(x3), "r"(x8)
                     : "memory");
    result = x0;
#else
    (void)arguments, (void)size, (void)run, (void)argument;
    result = -38; // ENOSYS; never called
#endif
    return result;
}
