#pragma once
// The control groups that limit this process.
#include <string>
#include <string_view>
#include <vector>

namespace longseq {

/**
 * Folders of the groups that this process is in, for "cpu" or "memory": its own, and all around it, whose
 * limits hold too. Of version 2 and of version 1. In a container the path may name the host's tree: its root,
 * the last one, is then ours.
 */
std::vector<std::string> cgroup_folders(std::string_view controller);

}  // namespace longseq
