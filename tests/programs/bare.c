// A program without a C library: it does what USE names, says so and ends. What is in the file is
// what is here, so that the instruction under test is the only one that a core may lack.

#if defined(__x86_64__)
#define WRITE 1
#define EXIT 60
static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c)
                   : "rcx", "r11", "memory");
  return result;
}
#elif defined(__i386__)
#define WRITE 4
#define EXIT 1
static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(a), "c"(b), "d"(c)
                   : "memory");
  return result;
}
#elif defined(__aarch64__)
#define WRITE 64
#define EXIT 93
static long call(long number, long a, long b, long c) {
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
}
#elif defined(__arm__)
#define WRITE 4
#define EXIT 1
// Thumb uses r7 for itself, so the number gets there by hand.
static long call(long number, long a, long b, long c) {
  register long r0 __asm__("r0") = a;
  register long r1 __asm__("r1") = b;
  register long r2 __asm__("r2") = c;
  __asm__ volatile("push {r7}\n\tmov r7, %1\n\tsvc #0\n\tpop {r7}"
                   : "+r"(r0)
                   : "r"(number), "r"(r1), "r"(r2)
                   : "memory");
  return r0;
}
#endif

static void use(void) {
#if defined(__arm__)
#if USE == 6
  __asm__ volatile("rev r0, r0\n\tuxtb r0, r0" ::: "r0");
#elif USE == 62 // VFPv2
  __asm__ volatile("vadd.f32 s0, s0, s0" ::: "s0");
#elif USE == 7
  __asm__ volatile("movw r0, #1\n\tubfx r0, r0, #0, #1" ::: "r0");
#elif USE == 73 // VFPv3
  __asm__ volatile("vmov.f32 s0, #1.0" ::: "s0");
#elif USE == 74 // VFPv4
  __asm__ volatile("vfma.f32 s0, s1, s2" ::: "s0");
#elif USE == 75 // Advanced SIMD
  __asm__ volatile("vadd.i32 q0, q0, q0" ::: "q0");
#elif USE == 76
  __asm__ volatile("mov r1, #1\n\tsdiv r0, r1, r1" ::: "r0", "r1");
#elif USE == 8
  __asm__ volatile("vrinta.f32 s0, s0" ::: "s0");
#endif
#elif defined(__aarch64__)
#if USE == 81 // LSE
  long at = 0;
  __asm__ volatile("ldadd x1, x1, [%0]" ::"r"(&at) : "x1", "memory");
#elif USE == 82
  __asm__ volatile("crc32b w0, w0, w0" ::: "w0");
#elif USE == 83
  __asm__ volatile("ptrue p0.b" :::);
#endif
#elif defined(__x86_64__) || defined(__i386__)
#if USE == 1 // SSE2
  __asm__ volatile("paddq %%xmm0, %%xmm0" ::: "xmm0");
#elif USE == 2
  __asm__ volatile("popcnt %%eax, %%eax\n\tcrc32b %%al, %%eax\n\tpshufb %%xmm0, %%xmm0" ::: "eax", "xmm0");
#elif USE == 3
  __asm__ volatile("vpaddd %%ymm0, %%ymm0, %%ymm0\n\tandn %%eax, %%eax, %%eax\n\tlzcnt %%eax, %%eax" ::: "eax", "xmm0");
#elif USE == 4
  __asm__ volatile("vpaddd %%zmm0, %%zmm0, %%zmm0\n\tvpaddb %%ymm16, %%ymm16, %%ymm16" ::: "xmm0");
#endif
#endif
}

#if defined(__x86_64__) || defined(__i386__)
__attribute__((force_align_arg_pointer))
#endif
void _start(void) {
  use();
  call(WRITE, 1, (long)"ran\n", 4);
  call(EXIT, 0, 0, 0);
  for (;;) {
  }
}
