#pragma once
// Every fault leaves a function as an Error with a code of design.md; the border turns it into a JavaScript
// error.
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace longseq {

enum class Code { Kind, Shape, DType, Device, Option, Disposed, NoCuda, OutOfMemory, File, Comm, NoNccl };

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code(code) {}
  Code code;
};

namespace detail {
inline void append(std::string& out, std::string_view text) { out += text; }
template <class T>
  requires std::is_arithmetic_v<T>
void append(std::string& out, T value) {
  if constexpr (std::is_integral_v<T>) {
    out += std::to_string(value);
  } else {
    std::string digits = std::to_string(value);
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
    out += digits;
  }
}
}  // namespace detail

template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  using detail::append;  // or one beside the part's own type
  (append(out, parts), ...);
  return out;
}

/** Throws unless `holds`. The message's parts are joined only when it fails. */
template <class... Parts>
void check(bool holds, Code code, const Parts&... parts) {
  if (!holds) [[unlikely]]
    throw Error(code, text(parts...));
}

}  // namespace longseq
