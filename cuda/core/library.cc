#include "core/library.h"

#include <dirent.h>
#include <dlfcn.h>

#include <cstdlib>
#include <vector>

namespace longseq {
namespace {

std::string value_of(const char* variable) {
  const char* const value = std::getenv(variable);
  return value ? value : "";
}

/** By opendir: the addon's glibc is older than stat. */
bool is_folder(const std::string& path) {
  DIR* const folder = opendir(path.c_str());
  if (folder) closedir(folder);
  return folder != nullptr;
}

std::vector<std::string> toolkit_folders() {
  std::vector<std::string> folders;
  for (const char* const variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const std::string root = value_of(variable); !root.empty()) folders.push_back(root + "/lib64/");
  }
  folders.push_back("/usr/local/cuda/lib64/");
  return folders;
}

}  // namespace

Library open_library(std::initializer_list<const char*> names, const char* variable) {
  Library library;
  const auto opens = [&](const std::string& path) {
    library.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library.handle) return true;
    const char* const reason = dlerror();
    if (!library.tried.empty()) library.tried += "; ";
    library.tried += reason ? reason : path;
    return false;
  };
  if (const std::string named = value_of(variable); !named.empty()) {
    if (!is_folder(named)) {
      opens(named);
      return library;
    }
    for (const char* const name : names) {
      if (opens(named + "/" + name)) return library;
    }
    return library;
  }
  std::vector<std::string> folders = toolkit_folders();
  folders.insert(folders.begin(), "");  // none: the system's search
  for (const std::string& folder : folders) {
    for (const char* const name : names) {
      if (opens(folder + name)) return library;
    }
  }
  return library;
}

void* find_function(const Library& library, const char* name) { return dlsym(library.handle, name); }

std::string path_of(const void* function) {
  Dl_info found{};
  return dladdr(function, &found) && found.dli_fname ? found.dli_fname : "";
}

}  // namespace longseq
