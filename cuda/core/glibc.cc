// What the compiler's own library takes from a glibc newer than the addon's floor (cuda/addon/glibc.cmake).

extern "C" {
// glibc 2.32. libstdc++ counts references without atomics while it is true; the addon always has threads.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}
