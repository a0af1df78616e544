#pragma once
// What the user asks for by variables. One that is set and says nothing that can be meant is an error, not a
// default: it would be found out by a job that dies, or takes days.
#include <cstdint>
#include <string_view>

namespace longseq {

/** Bytes (512m, 4g, "4 GiB"), more than 0; `otherwise` where the variable is not set or empty. Throws
 * Error(Option). */
int64_t bytes_from(const char* variable, int64_t otherwise);
/** A whole number of [1, most]; 0 where the variable is not set or empty. Throws Error(Option). */
int count_from(const char* variable, int most);
/** Empty where it is not set. */
std::string_view text_from(const char* variable);

/** Throws Error(Option) for a variable that is wrong, before anything that asks for it is under way. */
void check_environment();

}  // namespace longseq
