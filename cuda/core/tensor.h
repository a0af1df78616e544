#pragma once
// A tensor is a view: shared storage of one device, an element type, a shape and strides. Copying it shares.
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "core/device.h"
#include "core/dtype.h"

namespace longseq {

inline constexpr int kMaxRank = 6;

struct Storage {
  Storage(std::shared_ptr<Device> owner, Memory block) : device(std::move(owner)), memory(std::move(block)) {
    device->memory()->tensors++;
  }
  ~Storage() { device->memory()->tensors--; }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  std::shared_ptr<Device> device;  // before its memory, which needs it to the last
  Memory memory;
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  DType dtype = DType::Float32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{}, strides{};  // strides in elements
  int64_t offset = 0;                                // in elements

  static Tensor empty(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape);
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

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(storage->memory.data) + offset * size_of(dtype));
  }
};

/** A shape as a part of a message, "[2, 128, 8, 64]", written out only when there is something to say. */
struct ShapeText {
  const Tensor& tensor;
};
inline ShapeText shape_text(const Tensor& tensor) { return {tensor}; }

void append(std::string& out, ShapeText shape);

}  // namespace longseq
