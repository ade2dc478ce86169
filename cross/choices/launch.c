/* launch FILE PROGRAM ARGUMENT...: runs it, and writes to FILE its peak memory in KiB and its
 * user and system time in microseconds. A process starts with the peak of the one that forked
 * it, so that one has to be small, which a script's interpreter is not. */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 3) return 125;
  pid_t child = fork();
  if (child < 0) return 126;
  if (child == 0) {
    execv(argv[2], argv + 2);
    _exit(127);
  }
  int status;
  struct rusage usage;
  if (wait4(child, &status, 0, &usage) != child) return 126;
  FILE *file = fopen(argv[1], "w");
  if (!file) return 126;
  fprintf(file, "%ld %lld %lld\n", usage.ru_maxrss,
          usage.ru_utime.tv_sec * 1000000LL + usage.ru_utime.tv_usec,
          usage.ru_stime.tv_sec * 1000000LL + usage.ru_stime.tv_usec);
  fclose(file);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}
