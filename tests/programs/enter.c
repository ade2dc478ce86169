// enter ROOT PROGRAM [WORDS]: executes PROGRAM with ROOT as the root directory, by itself and by
// nothing else (a shell, or execvp, would start what the kernel refuses). Where the kernel
// refuses, it prints the error's number and ends with 126. No core is left, and nothing runs on.
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int count, char **words) {
  static const struct rlimit none;
  char *environment[] = {"PATH=/bin", NULL};
  if (count < 3 || chroot(words[1]) || chdir("/") || setrlimit(RLIMIT_CORE, &none)) {
    perror("enter");
    return 125;
  }
  alarm(30);
  execve(words[2], words + 2, environment);
  printf("execve: %d\n", errno);
  return 126;
}
