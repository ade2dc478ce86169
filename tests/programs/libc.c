// A program with a C library; with USE it does what bare.c does of x86-64.

int puts(const char *);
int printf(const char *, ...);

int main(int count, char **words) {
#if USE == 2
  __asm__ volatile("popcnt %%eax, %%eax\n\tcrc32b %%al, %%eax" ::: "eax");
#elif USE == 3
  __asm__ volatile("vpaddd %%ymm0, %%ymm0, %%ymm0" ::: "xmm0");
#elif USE == 4
  __asm__ volatile("vpaddd %%zmm0, %%zmm0, %%zmm0" ::: "xmm0");
#endif
  printf("%.1f\n", count * 1.5);
  return puts("ran") < 0;
}
