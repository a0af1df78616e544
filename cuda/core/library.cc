#include "core/library.h"

#include <dirent.h>
#include <dlfcn.h>

#include <vector>

#include "core/environment.h"

namespace longseq {
namespace {

/** By opendir: the addon's glibc is older than stat. */
bool is_folder(const std::string& path) {
  DIR* const folder = opendir(path.c_str());
  if (folder) closedir(folder);
  return folder != nullptr;
}

/** Where one of the names may be, the likeliest first. */
std::vector<std::string> paths_of(std::initializer_list<const char*> names, const char* variable) {
  std::vector<std::string> folders = {""};  // none: the system's search
  if (const std::string named(text_from(variable)); !named.empty()) {
    if (!is_folder(named)) return {named};
    folders = {named + "/"};
  } else {
    for (const char* const toolkit : {"CUDA_HOME", "CUDA_PATH"}) {
      if (const std::string root(text_from(toolkit)); !root.empty()) folders.push_back(root + "/lib64/");
    }
    folders.push_back("/usr/local/cuda/lib64/");
  }
  std::vector<std::string> paths;
  for (const std::string& folder : folders) {
    for (const char* const name : names) paths.push_back(folder + name);
  }
  return paths;
}

}  // namespace

Library::Library(std::initializer_list<const char*> names, const char* variable, Code code,
                 const char* absent, const char* outdated)
    : code_(code), outdated_(outdated) {
  std::string tried;
  for (const std::string& path : paths_of(names, variable)) {
    handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_) return;
    const char* const reason = dlerror();
    if (!tried.empty()) tried += "; ";
    tried += reason ? reason : path;
  }
  throw Error(code, text(absent, " Tried: ", tried));
}

void* Library::find(const char* name) const {
  void* const function = dlsym(handle_, name);
  check(function != nullptr, code_, outdated_, " has no function ", name);
  return function;
}

std::string path_of(const void* function) {
  Dl_info found{};
  return dladdr(function, &found) && found.dli_fname ? found.dli_fname : "";
}

}  // namespace longseq
