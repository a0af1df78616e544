#pragma once
// Libraries of the user's machine, opened when they are first needed: the addon loads without them.
#include <initializer_list>
#include <string>

namespace longseq {

struct Library {
  void* handle = nullptr;  // null: none of them could be opened
  std::string tried;       // what was tried until then, and what the system said to each
};

/**
 * Opens the first of `names` that there is, for as long as the process lives. Where the environment's
 * `variable` is set, it is what that names, a file or the folder of one of them, and nothing else; otherwise
 * where the system finds it, or in the CUDA toolkit.
 */
Library open_library(std::initializer_list<const char*> names, const char* variable);

/** A function of an open library; null where it has none of that name. */
void* find_function(const Library& library, const char* name);

/** The file that holds it. */
std::string path_of(const void* function);

}  // namespace longseq
