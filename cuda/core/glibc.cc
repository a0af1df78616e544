// What the compiler's own library takes from a glibc newer than the addon's floor (cuda/addon/glibc.cmake
// says how that is kept): its static copy finds these definitions instead.
#include <sys/syscall.h>
#include <unistd.h>

extern "C" {
// glibc 2.32. While it is true libstdc++ counts references without atomics; the addon always has threads.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// glibc 2.33, for std::ifstream. The kernel's structure is the C library's on 64-bit machines; it is not
// touched here, and its header would declare the function in another way on each libc.
int fstat64(int file, void* status) noexcept { return static_cast<int>(syscall(SYS_fstat, file, status)); }
}
