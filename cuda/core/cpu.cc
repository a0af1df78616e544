#include "core/cpu.h"

#include <algorithm>
#include <fstream>
#include <string_view>

#include "core/environment.h"
#include "core/error.h"

namespace longseq {
namespace {

constexpr InstructionSet kSets[] = {InstructionSet::Base, InstructionSet::Avx2, InstructionSet::Avx512,
                                    InstructionSet::Avx512Bf16};

InstructionSet best() {
#if defined(__x86_64__)
  // These also ask whether the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return InstructionSet::Avx512Bf16;
  if (avx512) return InstructionSet::Avx512;
  if (avx2) return InstructionSet::Avx2;
#endif
  return InstructionSet::Base;
}

InstructionSet choose() {
  const InstructionSet most = best();
  const std::string_view wanted = text_from("LONGSEQ_ISA");
  if (wanted.empty()) return most;
  for (const InstructionSet set : kSets) {
    if (wanted == name_of(set)) return std::min(set, most);
  }
  throw Error(Code::Option, text("LONGSEQ_ISA: is \"", wanted,
                                 "\", expected \"base\", \"avx2\", \"avx512\" or \"avx512bf16\""));
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* name_of(InstructionSet set) {
  constexpr const char* names[] = {"base", "avx2", "avx512", "avx512bf16"};
  return names[static_cast<int>(set)];
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

}  // namespace longseq
