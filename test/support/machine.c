/* Says what machine it runs on, uname(2), and writes it to /made. For aarch64, without a library. */
static long call(long number, long a, long b, long c, long d) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
  return x0;
}

enum { OPENAT = 56, WRITE = 64, EXIT_GROUP = 94, UNAME = 160 };

void _start(void) {
  char names[6][65];
  call(UNAME, (long)names, 0, 0, 0);
  long length = 0;
  while (names[4][length] != 0) length++;
  names[4][length++] = '\n';
  /* AT_FDCWD; O_CREAT | O_WRONLY */
  long file = call(OPENAT, -100, (long)"/made", 0101, 0644);
  call(WRITE, file, (long)names[4], length, 0);
  call(WRITE, 1, (long)names[4], length, 0);
  call(EXIT_GROUP, file < 0, 0, 0, 0);
}
