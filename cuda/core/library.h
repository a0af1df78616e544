#pragma once
// Libraries of the user's machine, opened when they are first needed: the addon loads without them.
#include <initializer_list>
#include <string>

#include "core/error.h"

namespace longseq {

class Library {
 public:
  /**
   * Opens the first of `names` that there is, for as long as the process lives. Where the environment's
   * `variable` is set, it is what that names, a file or the folder of one of them, and nothing else;
   * otherwise where the system finds it, or in the CUDA toolkit. Throws Error(code) that begins with
   * `absent`.
   */
  Library(std::initializer_list<const char*> names, const char* variable, Code code, const char* absent,
          const char* outdated);

  /** Throws Error(code) that begins with `outdated` where it has no function of that name. */
  template <class Function>
  void find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(find(name));
  }

 private:
  void* find(const char* name) const;

  void* handle_ = nullptr;
  Code code_;
  const char* outdated_;
};

/** The file that holds it. */
std::string path_of(const void* function);

}  // namespace longseq
