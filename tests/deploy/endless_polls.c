// For LD_PRELOAD: no wait for descriptors of a second or more ends by its time alone, so that who waits until it does
// hangs, however long a test is ready to wait.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/epoll.h>

int epoll_wait(int epoll, struct epoll_event* events, int most, int milliseconds) {
  static int (*real)(int, struct epoll_event*, int, int);
  if (real == NULL) real = dlsym(RTLD_NEXT, "epoll_wait");
  return real(epoll, events, most, milliseconds < 1000 ? milliseconds : -1);
}
