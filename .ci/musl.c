// What Debian's libstdc++ and libgcc take from glibc and musl lacks. With this as ld-linux-x86-64.so.2, which they load, a Bun for Alpine
// runs in a root of Debian's musl; Debian has no libstdc++ for musl.
#include <locale.h>
#include <sys/random.h>
#include <time.h>

char __libc_single_threaded = 0;
int __cpu_model[4]; // no features

int __cpu_indicator_init(void) { return 0; }

unsigned arc4random(void) {
    unsigned value = 0;
    (void)!getrandom(&value, sizeof value, 0);
    return value;
}

size_t __strftime_l(char *text, size_t room, const char *format, const struct tm *time, locale_t locale) {
    return strftime_l(text, room, format, time, locale);
}

// Destructors of a thread's variables do not run.
int __cxa_thread_atexit_impl(void (*destructor)(void *), void *object, void *library) {
    (void)destructor, (void)object, (void)library;
    return 0;
}

// Not found: libgcc looks with dl_iterate_phdr(3) then.
int _dl_find_object(void *address, void *result) {
    (void)address, (void)result;
    return -1;
}
