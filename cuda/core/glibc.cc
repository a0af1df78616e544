// What the compiler's own library takes from a glibc newer than the addon's floor (cuda/addon/glibc.cmake
// says how that is kept): its static copy finds these definitions instead.
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

extern "C" {
// glibc 2.32. While it is true libstdc++ counts references without atomics; the addon always has threads.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// glibc 2.33, for std::ifstream. The kernel's structure is the C library's on 64-bit machines; it is not
// touched here, and its header would declare the function in another way on each libc.
int fstat64(int file, void* status) noexcept { return static_cast<int>(syscall(SYS_fstat, file, status)); }

// glibc 2.30, for std::condition_variable::wait_for, which looks at its own clock afterwards.
int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock,
                           const timespec* until) {
  constexpr long kSecond = 1'000'000'000;
  timespec now, real;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &real);
  const long nanoseconds = real.tv_nsec + until->tv_nsec - now.tv_nsec;  // -1 to 2 seconds
  const long carry = nanoseconds < 0 ? -1 : nanoseconds / kSecond;
  real.tv_sec += until->tv_sec - now.tv_sec + carry;
  real.tv_nsec = nanoseconds - carry * kSecond;
  return pthread_cond_timedwait(condition, mutex, &real);
}
}
