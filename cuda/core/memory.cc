#include "core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/cgroup.h"
#include "core/environment.h"
#include "core/error.h"

namespace longseq {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMapped = size_t{16} << 10;  // from here on blocks come from mmap
constexpr size_t kHugePage = size_t{2}
                             << 20;  // twice this, and they are made of huge pages where there are any
constexpr size_t kExact = size_t{32} << 20;        // from here on sizes are not rounded to a class
constexpr size_t kCacheLimit = size_t{256} << 20;  // bytes of freed blocks that are kept

std::atomic<int64_t> allocated{0};

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/** Eight sizes an octave, so that a freed block often fits the next request. */
size_t granted_size(size_t bytes) {
  if (bytes >= kExact) return round_up(bytes, kHugePage);
  bytes = std::max(bytes, kAlignment);
  return round_up(bytes, std::max(kAlignment, std::bit_floor(bytes) / 8));
}

/**
 * Freed blocks by size. glibc's aligned_alloc fragments under blocks that come and go, and fresh pages are
 * dear: the kernel clears each at its first touch, at 10 us and more where it runs on a hypervisor.
 */
class BlockCache {
 public:
  void* take(size_t size) {
    std::lock_guard lock(mutex_);
    std::vector<void*>& blocks = blocks_[size];
    if (blocks.empty()) return nullptr;
    void* const data = blocks.back();
    blocks.pop_back();
    held_ -= size;
    return data;
  }
  bool give(void* data, size_t size) {
    std::lock_guard lock(mutex_);
    if (held_ + size > kCacheLimit) return false;
    blocks_[size].push_back(data);
    held_ += size;
    return true;
  }
  void clear() {
    std::lock_guard lock(mutex_);
    for (const auto& [size, blocks] : blocks_) {
      for (void* const data : blocks) free_block(data, size);
    }
    blocks_.clear();
    held_ = 0;
  }
  static void free_block(void* data, size_t size) {
    if (size < kMapped) {
      std::free(data);
    } else {
      munmap(data, size);
    }
  }

 private:
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> blocks_;
  size_t held_ = 0;
};

BlockCache& cache() {
  static BlockCache* const cache =
      new BlockCache;  // never destroyed: threads may free while the process exits
  return *cache;
}

void* map(size_t size) {
  const bool huge = size >= 2 * kHugePage;
  const size_t asked = huge ? size + kHugePage : size;
  void* const base =
      mmap(nullptr, asked, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  if (!huge) return base;
  char* const first = static_cast<char*>(base);
  char* const aligned = reinterpret_cast<char*>(round_up(reinterpret_cast<size_t>(first), kHugePage));
  if (aligned > first) munmap(first, aligned - first);
  if (const size_t tail = first + asked - (aligned + size)) munmap(aligned + size, tail);
  madvise(aligned, size, MADV_HUGEPAGE);
  return aligned;
}

void* allocate(size_t size) {
  if (void* const data = cache().take(size)) return data;
  const auto fresh = [&] { return size < kMapped ? std::aligned_alloc(kAlignment, size) : map(size); };
  if (void* const data = fresh()) return data;
  cache().clear();
  return fresh();
}

void release(void* data, size_t size) {
  if (!cache().give(data, size)) BlockCache::free_block(data, size);
}

int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : 0;  // 0 also for cgroup's "max"
}

/** Of a file of names and numbers, a line each. */
int64_t field_of(const std::string& path, const char* field) {
  std::ifstream file(path);
  std::string name;
  int64_t value;
  for (std::string rest; file >> name >> value; std::getline(file, rest)) {
    if (name == field) return value;
  }
  return 0;
}

int64_t meminfo(const char* field) { return field_of("/proc/meminfo", field) << 10; }

/** 0 without one. */
int64_t group_limit(const std::string& folder) {
  return std::max(read_number(folder + "/memory.max"), read_number(folder + "/memory.limit_in_bytes"));
}

/** Folders of the cgroups that limit this process's memory. */
const std::vector<std::string>& limiting_groups() {
  static const std::vector<std::string> limiting = [] {
    std::vector<std::string> folders = cgroup_folders("memory");
    const int64_t machine = meminfo("MemTotal:");
    std::erase_if(folders, [&](const std::string& folder) {
      const int64_t limit = group_limit(folder);
      return limit == 0 || (machine > 0 && limit >= machine);
    });
    return folders;
  }();
  return limiting;
}

int64_t find_limit() {
  if (wanted_memory_limit() < INT64_MAX) return wanted_memory_limit();
  int64_t limit = meminfo("MemTotal:");
  for (const std::string& folder : limiting_groups()) {
    if (const int64_t bytes = group_limit(folder); limit == 0 || bytes < limit) limit = bytes;
  }
  return limit > 0 ? limit : INT64_MAX;
}

/** What the machine and the cgroups have left, whoever uses the rest; INT64_MAX where nobody says. */
int64_t left_by_all() {
  int64_t left = meminfo("MemAvailable:");
  if (left == 0) left = INT64_MAX;
  for (const std::string& folder : limiting_groups()) {
    // Pages of files that nobody has touched lately are given up for memory that is asked for.
    const int64_t used =
        std::max(read_number(folder + "/memory.current"), read_number(folder + "/memory.usage_in_bytes"));
    const int64_t free_again = std::max(field_of(folder + "/memory.stat", "inactive_file"),
                                        field_of(folder + "/memory.stat", "total_inactive_file"));
    left = std::min(left, group_limit(folder) - std::max<int64_t>(0, used - free_again));
  }
  return left;
}

[[noreturn]] void refuse(size_t bytes, int64_t available) {
  constexpr double mebibyte = 1 << 20;
  throw Error(
      Code::OutOfMemory,
      text("out of memory: asked for ", static_cast<int64_t>(static_cast<double>(bytes) / mebibyte), " MiB, ",
           static_cast<int64_t>(static_cast<double>(std::max<int64_t>(available, 0)) / mebibyte),
           " MiB are left, ", allocated.load() >> 20, " MiB are held by tensors and scratch"));
}

}  // namespace

int64_t wanted_memory_limit() {
  static const int64_t wanted = bytes_from("LONGSEQ_MEMORY_LIMIT", INT64_MAX);
  return wanted;
}

int64_t wanted_shared_bytes() {
  static const int64_t wanted = bytes_from("LONGSEQ_SHARED_BYTES", INT64_MAX);
  return wanted;
}

int64_t mask_budget(int64_t gpu_bytes) {
  static const int64_t wanted = bytes_from("LONGSEQ_MASK_BUDGET", 0);
  return wanted > 0 ? wanted : std::min(gpu_bytes, wanted_memory_limit()) / 16;
}

int64_t memory_limit() {
  static const int64_t limit = find_limit();
  return limit;
}

void MemoryUse::add(int64_t bytes) {
  const int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t seen = peak.load(std::memory_order_relaxed);
  while (now > seen && !peak.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
}

void reserve_host_memory(size_t bytes) {
  if (bytes > static_cast<size_t>(INT64_MAX) - kHugePage) refuse(bytes, memory_limit() - allocated.load());
  // What other processes use is looked up only for blocks whose size could matter: it reads files.
  const bool large = bytes >= size_t{64} << 20;
  const int64_t machine = large ? left_by_all() : INT64_MAX;
  const auto wanted = static_cast<int64_t>(bytes);
  // Nothing is held, not even for a moment, for what is refused: others would be refused for it.
  int64_t held = allocated.load();
  do {
    const int64_t available = std::min(memory_limit() - held, machine);
    if (wanted > available) refuse(bytes, available);
  } while (!allocated.compare_exchange_weak(held, held + wanted));
}

void check_host_room(size_t bytes) {
  if (bytes > static_cast<size_t>(memory_limit())) refuse(bytes, memory_limit() - allocated.load());
}

void unreserve_host_memory(size_t bytes) { allocated.fetch_sub(static_cast<int64_t>(bytes)); }

HostBlock::HostBlock(size_t bytes, std::shared_ptr<MemoryUse> use) : use_(std::move(use)) {
  const size_t size = bytes > static_cast<size_t>(INT64_MAX) - kHugePage ? bytes : granted_size(bytes);
  reserve_host_memory(size);
  if ((data_ = allocate(size)) == nullptr) {
    unreserve_host_memory(size);
    refuse(bytes, memory_limit() - allocated.load());
  }
  bytes_ = size;
  if (use_) use_->add(static_cast<int64_t>(bytes_));
}

HostBlock::~HostBlock() {
  if (data_ == nullptr) return;
  release(data_, bytes_);
  unreserve_host_memory(bytes_);
  if (use_) use_->add(-static_cast<int64_t>(bytes_));
}

HostBlock::HostBlock(HostBlock&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      use_(std::move(other.use_)) {}

HostBlock& HostBlock::operator=(HostBlock&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(use_, other.use_);
  return *this;
}

}  // namespace longseq
