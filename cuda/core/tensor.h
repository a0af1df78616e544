#pragma once
// A tensor is a view: shared storage of one device, an element type, a shape and strides. Copying it shares.
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>

#include "core/device.h"
#include "core/dtype.h"

namespace longseq {

inline constexpr int kMaxRank = 6;

/**
 * A block of memory. It is taken when the queue first comes to it, not by the caller, who may be far ahead:
 * what has been let go by then is there again.
 */
class Storage {
 public:
  /** To be taken. */
  Storage(std::shared_ptr<Device> owner, size_t bytes, bool is_borrowed = false);
  Storage(std::shared_ptr<Device> owner, Memory block);
  ~Storage() { device->memory()->tensors--; }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  size_t bytes() const { return bytes_; }
  /** Throws Error(OutOfMemory) where it has yet to be taken. */
  const Memory& memory() const {
    if (!is_taken_.load(std::memory_order_acquire)) take();
    return memory_;
  }

  /** Its queue has not come to it yet. */
  bool awaits_queue() const { return !is_borrowed_ && !is_taken_.load(std::memory_order_acquire); }
  /** Of memory that another rank lends it in an exchange, and that has not come yet. */
  bool awaits_loan() const { return is_borrowed_ && !is_taken_.load(std::memory_order_acquire); }
  void borrow(Memory lent);

  const std::shared_ptr<Device> device;  // before its memory, which needs it to the last

 private:
  void take() const;

  const size_t bytes_;
  const bool is_borrowed_ = false;
  mutable std::mutex taking_;
  mutable std::atomic<bool> is_taken_;
  mutable Memory memory_;
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  DType dtype = DType::Float32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{}, strides{};  // strides in elements
  int64_t offset = 0;                                // in elements

  static Tensor empty(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape);
  /** Of memory that another rank lends it (comm/communicator.h). */
  static Tensor borrowed(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape);
  /** In memory of the host, contiguous: what WriteFrom copies to a tensor of the device. */
  static Tensor staging(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape);

  explicit operator bool() const { return storage != nullptr; }
  const std::shared_ptr<Device>& device() const { return storage->device; }
  /** Negative indices count from the back. */
  int64_t size(int axis) const { return shape[static_cast<size_t>(axis < 0 ? axis + rank : axis)]; }
  int64_t stride(int axis) const { return strides[static_cast<size_t>(axis < 0 ? axis + rank : axis)]; }
  int64_t elements() const;
  int64_t bytes() const { return elements() * size_of(dtype); }
  bool contiguous() const;
  /** `count` rows of an axis, from the first on. */
  Tensor rows(int axis, int64_t first, int64_t count) const;

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(storage->memory().data) + offset * size_of(dtype));
  }
};

/** A shape as a part of a message, "[2, 128, 8, 64]", written out only when there is something to say. */
struct ShapeText {
  const Tensor& tensor;
};
inline ShapeText shape_text(const Tensor& tensor) { return {tensor}; }

void append(std::string& out, ShapeText shape);

}  // namespace longseq
