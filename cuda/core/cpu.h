#pragma once
// Which instruction sets there are, which one this process uses, and how an operation's CPU overload picks
// its copy.
#include <string>

namespace longseq {

enum class InstructionSet { Base, Avx2, Avx512, Avx512Bf16 };

/** The best this machine has; LONGSEQ_ISA=base|avx2|avx512|avx512bf16 lowers it. */
InstructionSet instruction_set();
const char* name_of(InstructionSet set);
std::string cpu_model();

}  // namespace longseq

/**
 * Declares the copies of an operation's CPU kernel, one an instruction set, and the overload that calls the
 * right one. A `*_cpu.cc` file is compiled once for each, and defines `void run(const Operation&)` in
 * namespace LONGSEQ_ISA.
 *
 * Code compiled for a newer instruction set must not emit an inline function that other files share: the
 * linker keeps one copy for all, and an older machine would run it. So those files use raw views and
 * functions of their own namespace, no containers of the standard library; test/package checks the objects'
 * symbols.
 */
#if defined(__x86_64__)
#define LONGSEQ_CPU_KERNEL(Operation)                       \
  namespace base {                                          \
  void run(const Operation& operation);                     \
  }                                                         \
  namespace avx2 {                                          \
  void run(const Operation& operation);                     \
  }                                                         \
  namespace avx512 {                                        \
  void run(const Operation& operation);                     \
  }                                                         \
  namespace avx512bf16 {                                    \
  void run(const Operation& operation);                     \
  }                                                         \
  inline void run(const Cpu&, const Operation& operation) { \
    switch (instruction_set()) {                            \
      case InstructionSet::Base:                            \
        return base::run(operation);                        \
      case InstructionSet::Avx2:                            \
        return avx2::run(operation);                        \
      case InstructionSet::Avx512:                          \
        return avx512::run(operation);                      \
      case InstructionSet::Avx512Bf16:                      \
        return avx512bf16::run(operation);                  \
    }                                                       \
  }
#else
#define LONGSEQ_CPU_KERNEL(Operation)   \
  namespace base {                      \
  void run(const Operation& operation); \
  }                                     \
  inline void run(const Cpu&, const Operation& operation) { base::run(operation); }
#endif
