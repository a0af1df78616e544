#include "core/cgroup.h"

#include <fstream>

namespace longseq {

std::vector<std::string> cgroup_folders(std::string_view controller) {
  std::vector<std::string> folders;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool unified = controllers.empty();
    if (!unified && controllers.find(controller) == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + std::string(controller);
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      folders.push_back(root + path);
      if (path.empty() || path.rfind('/') == std::string::npos) break;
    }
  }
  return folders;
}

}  // namespace longseq
