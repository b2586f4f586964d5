// For LD_PRELOAD: the wall clock goes by as many seconds as the file WALL_CLOCK_SHIFT holds, an int64, ahead of the
// machine's. Waits until a time of the wall clock follow, as the kernel's do: of a futex (Abseil) and of a condition (the
// C++ library, gRPC). They are woken for nothing now and then, which a waiter must expect, to look at the time again.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const time_t kAnyWallTime = 1000000000;  // No monotonic clock is as late.
static const long kSliceNanoseconds = 20000000;

static int64_t no_shift = 0;
static const int64_t* shift = &no_shift;

__attribute__((constructor)) static void OpenShift(void) {
  const int file = open(getenv("WALL_CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
  void* const mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) abort();
  close(file);
  shift = mapped;
}

static int RealGettime(clockid_t clock, struct timespec* now) {
  static int (*real)(clockid_t, struct timespec*);
  if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
  return real(clock, now);
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  const int result = RealGettime(clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += __atomic_load_n(shift, __ATOMIC_RELAXED);
  return result;
}

int gettimeofday(struct timeval* now, void* zone) {
  (void)zone;
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec;
  now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* result) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (result != NULL) *result = now.tv_sec;
  return now.tv_sec;
}

static int IsBefore(const struct timespec* a, const struct timespec* b) {
  return a->tv_sec < b->tv_sec || (a->tv_sec == b->tv_sec && a->tv_nsec < b->tv_nsec);
}

// The end of a slice of a wait, on the machine's own clock; 0 where the deadline has passed.
static int NextSlice(const struct timespec* deadline, struct timespec* end) {
  struct timespec now;
  RealGettime(CLOCK_REALTIME, &now);
  struct timespec due = *deadline;
  due.tv_sec -= __atomic_load_n(shift, __ATOMIC_RELAXED);
  if (!IsBefore(&now, &due)) return 0;
  *end = now;
  end->tv_nsec += kSliceNanoseconds;
  if (end->tv_nsec >= 1000000000) {
    end->tv_nsec -= 1000000000;
    ++end->tv_sec;
  }
  if (IsBefore(&due, end)) *end = due;
  return 1;
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const struct timespec* deadline) {
  if (deadline->tv_sec < kAnyWallTime) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, deadline);
  struct timespec end = {0, 0};  // Long ago.
  const int waits = NextSlice(deadline, &end);
  const int result = pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &end);
  return waits && result == ETIMEDOUT ? 0 : result;
}

long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (real == NULL) real = dlsym(RTLD_NEXT, "syscall");
  long arguments[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; ++i) arguments[i] = va_arg(list, long);
  va_end(list);
  const struct timespec* const deadline = (const struct timespec*)arguments[3];
  struct timespec end = {0, 0};
  int waits = 0;
  if (number == SYS_futex && (arguments[1] & FUTEX_CLOCK_REALTIME) && deadline != NULL) {
    waits = NextSlice(deadline, &end);
    arguments[3] = (long)&end;
  }
  const long result =
      real(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
  if (waits && result == -1 && errno == ETIMEDOUT) errno = EINTR;
  return result;
}
