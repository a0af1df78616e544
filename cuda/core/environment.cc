#include "core/environment.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "core/cpu.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

/** Of "k", "MiB", " gb" and the like, as a shift; -1 of anything else. */
int unit_shift(std::string_view unit) {
  std::string letters;
  for (const char c : unit) {
    if (!std::isspace(static_cast<unsigned char>(c))) {
      letters += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  int shift = 0;
  if (!letters.empty() && letters[0] != 'b') {
    const size_t at = std::string_view("kmgt").find(letters[0]);
    if (at == std::string_view::npos) return -1;
    shift = 10 * (static_cast<int>(at) + 1);
    letters.erase(0, 1);
  }
  return letters.empty() || letters == "b" || (shift > 0 && letters == "ib") ? shift : -1;
}

/** 0 where the text is no number of bytes. */
int64_t parse_bytes(std::string_view text) {
  const std::string whole(text);
  if (!std::isdigit(static_cast<unsigned char>(whole[0])) || whole.find_first_of("xX") != whole.npos)
    return 0;
  char* end;
  const double number = std::strtod(whole.c_str(), &end);
  const int shift = unit_shift(end);
  if (shift < 0) return 0;
  const double bytes = std::ldexp(number, shift);
  return bytes >= 0x1p63 ? INT64_MAX : static_cast<int64_t>(bytes);
}

}  // namespace

std::string_view text_from(const char* variable) {
  const char* const text = std::getenv(variable);
  return text ? text : "";
}

int64_t bytes_from(const char* variable, int64_t otherwise) {
  const std::string_view wanted = text_from(variable);
  if (wanted.empty()) return otherwise;
  const int64_t bytes = parse_bytes(wanted);
  check(bytes > 0, Code::Option, variable, ": is \"", wanted, "\", expected bytes, such as 512m or 4g");
  return bytes;
}

int count_from(const char* variable, int most) {
  const std::string_view wanted = text_from(variable);
  if (wanted.empty()) return 0;
  int count = 0;
  const char* const last = wanted.data() + wanted.size();
  const auto [end, error] = std::from_chars(wanted.data(), last, count);
  check(error == std::errc() && end == last && count >= 1 && count <= most, Code::Option, variable, ": is \"",
        wanted, "\", expected a whole number from 1 to ", most);
  return count;
}

void check_environment() {
  thread_count();
  instruction_set();
  wanted_memory_limit();
  wanted_shared_bytes();
  mask_budget(0);
}

}  // namespace longseq
