#pragma once
// What a GPU's queues have let go, for the next that needs the like: the driver's own ways take its lock,
// which the launching threads hold most of the time. Included by .cu files alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace longseq {

/**
 * Small blocks that each stream has let go, of powers of two: its next request takes one without the driver,
 * whose lock the launching threads hold most of the time (10 us to allocate and free beside one that
 * launches, 1.4 us alone). Whatever used a block was launched before it came here, and whatever gets it is
 * launched on the same stream, later.
 */
class SmallBlocks {
 public:
  static constexpr int64_t kLargest = int64_t{2} << 20, kMostOfStream = int64_t{64} << 20;

  static int64_t size_for(int64_t bytes) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)));
  }
  /** Null where there is none. `size` is one of `size_for`'s. */
  void* take(cudaStream_t stream, int64_t size) {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return nullptr;
    std::vector<void*>& free = found->second.free[class_of(size)];
    if (free.empty()) return nullptr;
    void* const data = free.back();
    free.pop_back();
    found->second.bytes -= size;
    return data;
  }
  /** False where the stream has enough of them: the driver's to free. */
  bool give(cudaStream_t stream, void* data, int64_t size) {
    const std::lock_guard lock(mutex_);
    OfStream& of_stream = streams_[stream];
    if (of_stream.bytes + size > kMostOfStream) return false;
    of_stream.free[class_of(size)].push_back(data);
    of_stream.bytes += size;
    return true;
  }
  /** Gives a stream's back to the driver, for good. */
  void drop(cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return;
    found->second.release(stream);
    streams_.erase(found);
  }
  void drop_all() {
    const std::lock_guard lock(mutex_);
    for (auto& [stream, of_stream] : streams_) of_stream.release(stream);
    streams_.clear();
  }

 private:
  struct OfStream {
    std::array<std::vector<void*>, 22> free;  // by the logarithm of their size
    int64_t bytes = 0;

    void release(cudaStream_t stream) {
      for (const std::vector<void*>& blocks : free) {
        for (void* const data : blocks) cudaFreeAsync(data, stream);
      }
    }
  };
  static_assert(kLargest == int64_t{1} << 21);
  static size_t class_of(int64_t size) {
    return static_cast<size_t>(std::countr_zero(static_cast<uint64_t>(size)));
  }

  std::mutex mutex_;
  std::map<cudaStream_t, OfStream> streams_;
};

/**
 * Events that nobody holds any more, by their flags. To make and to destroy one takes the driver's lock, 120
 * us each where many threads launch. Who was told to wait for an earlier record of one still waits for that.
 */
class FreeEvents {
 public:
  /** Null where there is none. */
  cudaEvent_t take(unsigned flags) {
    const std::lock_guard lock(mutex_);
    std::vector<cudaEvent_t>& free = free_[flags];
    if (free.empty()) return nullptr;
    cudaEvent_t const event = free.back();
    free.pop_back();
    return event;
  }
  void give(unsigned flags, cudaEvent_t event) {
    const std::lock_guard lock(mutex_);
    free_[flags].push_back(event);
  }

 private:
  std::mutex mutex_;
  std::map<unsigned, std::vector<cudaEvent_t>> free_;
};

/**
 * Small copies that calls would make of the same again and again, by what they are of: a layer's attention
 * sees by the same rule as the one before it. What was not asked for longest is let go.
 */
class KeptCopies {
 public:
  static constexpr size_t kMost = 64, kMostBytes = size_t{16} << 20;

  /** Null where there is none. */
  std::shared_ptr<void> find(const std::string& of) {
    const auto found =
        std::find_if(copies_.begin(), copies_.end(), [&](const Copy& copy) { return copy.of == of; });
    if (found == copies_.end()) return nullptr;
    std::rotate(copies_.begin(), found, found + 1);
    return copies_.front().owner;
  }
  static bool takes(size_t bytes) { return bytes <= kMostBytes / 4; }
  void add(std::string of, std::shared_ptr<void> owner, size_t bytes) {
    copies_.insert(copies_.begin(), {std::move(of), std::move(owner), bytes});
    bytes_ += bytes;
    while (copies_.size() > kMost || bytes_ > kMostBytes) {
      bytes_ -= copies_.back().bytes;
      copies_.pop_back();
    }
  }
  void clear() {
    copies_.clear();
    bytes_ = 0;
  }

 private:
  struct Copy {
    std::string of;
    std::shared_ptr<void> owner;
    size_t bytes;
  };
  std::vector<Copy> copies_;
  size_t bytes_ = 0;
};

}  // namespace longseq
