#include "core/tensor.h"

namespace longseq {

Storage::Storage(std::shared_ptr<Device> owner, size_t bytes, bool is_borrowed)
    : device(std::move(owner)), bytes_(bytes), is_borrowed_(is_borrowed), is_taken_(false) {
  device->memory()->tensors++;
}

Storage::Storage(std::shared_ptr<Device> owner, Memory block)
    : device(std::move(owner)), bytes_(block.bytes), is_taken_(true), memory_(std::move(block)) {
  device->memory()->tensors++;
}

void Storage::take() const {
  const std::lock_guard lock(taking_);
  if (is_taken_) return;
  memory_ = device->allocate(bytes_);
  is_taken_.store(true, std::memory_order_release);
}

void Storage::borrow(Memory lent) {
  const std::lock_guard lock(taking_);
  if (is_taken_) return;
  memory_ = std::move(lent);
  is_taken_.store(true, std::memory_order_release);
}

int64_t Tensor::elements() const {
  int64_t count = 1;
  for (int axis = 0; axis < rank; axis++) count *= size(axis);
  return count;
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int axis = rank - 1; axis >= 0; axis--) {
    if (size(axis) != 1 && stride(axis) != expected) return false;
    expected *= size(axis);
  }
  return true;
}

Tensor Tensor::rows(int axis, int64_t first, int64_t count) const {
  Tensor part = *this;
  part.offset += first * stride(axis);
  part.shape[static_cast<size_t>(axis)] = count;
  return part;
}

namespace {

/** Contiguous, with no storage yet. */
Tensor described(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape) {
  check(shape.size() <= kMaxRank, Code::Shape, "tensor: the shape has ", shape.size(), " axes, at most ",
        kMaxRank, " are supported");
  check(!device->closed(), Code::Disposed, "tensor: the device was disposed");
  Tensor tensor{.dtype = dtype, .rank = static_cast<int>(shape.size())};
  int64_t count = 1;
  for (int axis = tensor.rank - 1; axis >= 0; axis--) {
    const auto at = static_cast<size_t>(axis);
    check(shape[at] >= 0, Code::Shape, "tensor: axis ", axis, " has size ", shape[at],
          ", expected 0 or more");
    tensor.shape[at] = shape[at];
    tensor.strides[at] = count;
    check(!__builtin_mul_overflow(count, shape[at], &count) && count <= INT64_MAX / 8, Code::OutOfMemory,
          "out of memory: a tensor of this shape has more than 2^60 elements");
  }
  return tensor;
}

}  // namespace

Tensor Tensor::empty(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape) {
  Tensor tensor = described(device, dtype, shape);
  const auto bytes = static_cast<size_t>(tensor.bytes());
  // What there is no room for at all is refused here; the queue, where it meets too little.
  device->check_room(bytes);
  tensor.storage = std::make_shared<Storage>(device, bytes);
  return tensor;
}

Tensor Tensor::borrowed(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape) {
  Tensor tensor = described(device, dtype, shape);
  tensor.storage = std::make_shared<Storage>(device, static_cast<size_t>(tensor.bytes()), true);
  return tensor;
}

Tensor Tensor::staging(const std::shared_ptr<Device>& device, DType dtype, std::span<const int64_t> shape) {
  Tensor tensor = described(device, dtype, shape);
  tensor.storage =
      std::make_shared<Storage>(device, device->allocate_staging(static_cast<size_t>(tensor.bytes())));
  return tensor;
}

void append(std::string& out, ShapeText shape) {
  out += '[';
  for (int axis = 0; axis < shape.tensor.rank; axis++) out += text(axis ? ", " : "", shape.tensor.size(axis));
  out += ']';
}

}  // namespace longseq
