// Devices and tensors for JavaScript: made, viewed, written, read, disposed.
#include <cstring>

#include "addon/bind.h"
#include "addon/bindings.h"
#include "addon/completions.h"
#include "elementwise/elementwise.h"
#include "transfer/transfer.h"

namespace longseq {
namespace {

std::string default_device() { return Device::default_name(); }

DeviceHandle device_open(std::string name) { return Device::open(name); }

void device_close(DeviceHandle device) { device->close(); }

Napi::Value device_synchronize(Napi::Env env, DeviceHandle device) {
  return Completions::when_done(env, *device, [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value device_memory(Napi::Env env, DeviceHandle device) {
  const MemoryUse& use = *device->memory();
  auto out = Napi::Object::New(env);
  out.Set("liveBytes", Napi::Number::New(env, static_cast<double>(use.live.load())));
  out.Set("peakBytes", Napi::Number::New(env, static_cast<double>(use.peak.load())));
  out.Set("tensors", Napi::Number::New(env, static_cast<double>(use.tensors.load())));
  return out;
}

MarkHandle device_mark(DeviceHandle device) { return device->mark(); }

Napi::Value mark_since(Napi::Env env, DeviceHandle device, MarkHandle mark, MarkHandle earlier) {
  check(device->owns(*mark) && device->owns(*earlier), Code::Device, "mark: the marks are of another device");
  return Completions::when_done(env, *device, [mark, earlier](Napi::Env env) -> Napi::Value {
    return Napi::Number::New(env, mark->since(*earlier));
  });
}

void device_reset_peak(DeviceHandle device) {
  MemoryUse& use = *device->memory();
  use.peak.store(use.live.load());
}

/** What V8 is told: it works through its heap wherever 64 MiB more hang on it. On a GPU that would be at each
 * tensor, and there is much more memory. */
int64_t external_bytes(const Tensor& tensor) {
  constexpr int64_t kGpuShare = 32;
  return tensor.device()->is_cpu() ? tensor.bytes() : tensor.bytes() / kGpuShare;
}

Napi::Value tensor_empty(Napi::Env env, DeviceHandle device, DType dtype, std::vector<int64_t> shape) {
  Tensor tensor = Tensor::empty(device, dtype, shape);
  const int64_t bytes = external_bytes(tensor);
  return wrap(env, std::move(tensor), bytes);
}

Tensor tensor_borrowed(DeviceHandle device, DType dtype, std::vector<int64_t> shape) {
  return Tensor::borrowed(device, dtype, shape);
}

/** Its values on another device. */
Napi::Value tensor_transfer(Napi::Env env, Tensor tensor, DeviceHandle device) {
  Tensor there = transfer(std::move(tensor), device);
  const int64_t bytes = external_bytes(there);
  return wrap(env, std::move(there), bytes);
}

/** A view of other shape and strides, which must lie within the storage. */
Tensor tensor_view(Tensor tensor, int64_t offset, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  check(shape.size() == strides.size() && shape.size() <= kMaxRank, Code::Shape,
        "tensor: a view has at most ", kMaxRank, " axes, got ", shape.size());
  tensor.offset += offset;
  tensor.rank = static_cast<int>(shape.size());
  tensor.shape = tensor.strides = {};  // shapes are compared whole
  int64_t last = tensor.offset;
  bool empty = false;
  for (size_t axis = 0; axis < shape.size(); axis++) {
    check(shape[axis] >= 0 && strides[axis] >= 0, Code::Shape,
          "tensor: a view's sizes and strides must be 0 or more");
    tensor.shape[axis] = shape[axis];
    tensor.strides[axis] = strides[axis];
    empty = empty || shape[axis] == 0;
    int64_t span;
    check(!__builtin_mul_overflow(std::max<int64_t>(shape[axis] - 1, 0), strides[axis], &span) &&
              !__builtin_add_overflow(last, span, &last),
          Code::Shape, "tensor: a view reaches past its storage");
  }
  const auto capacity = static_cast<int64_t>(tensor.storage->bytes()) / size_of(tensor.dtype);
  check(tensor.offset >= 0 && (empty || last < capacity), Code::Shape,
        "tensor: a view reaches past its storage");
  return tensor;
}

/** Whether it is so many elements behind the first one's first element, in the same memory. */
bool tensor_is_behind(Tensor first, Tensor tensor, int64_t elements) {
  return first.storage == tensor.storage && first.dtype == tensor.dtype &&
         first.offset + elements == tensor.offset;
}

void tensor_dispose(Napi::Env env, Napi::Value value) {
  if (auto* const handle = handle_of<Tensor>(value)) dispose(env, *handle);
}

/** The dtype that a typed array's elements are, as they are. */
DType dtype_of(const ArrayView& array, DType wanted) {
  switch (array.type) {
    case napi_float32_array:
      return DType::Float32;
    case napi_int32_array:
      return DType::Int32;
    case napi_uint8_array:
      return DType::UInt8;
    case napi_uint16_array:
      if (size_of(wanted) == 2) return wanted;
      [[fallthrough]];
    default:
      throw Error(Code::DType, "tensor: this typed array's element type does not fit the tensor");
  }
}

std::span<const int64_t> shape_of(const Tensor& tensor) {
  return {tensor.shape.data(), static_cast<size_t>(tensor.rank)};
}

void tensor_write(Tensor tensor, ArrayView values) {
  check(static_cast<int64_t>(values.length) == tensor.elements(), Code::Shape, "tensor: got ", values.length,
        " values, expected ", tensor.elements(), " (shape ", shape_text(tensor), ")");
  // The caller may change its array as soon as this returns.
  Tensor staging = Tensor::staging(tensor.device(), dtype_of(values, tensor.dtype), shape_of(tensor));
  if (values.bytes) std::memcpy(staging.data<char>(), values.data, values.bytes);
  write(std::move(staging), std::move(tensor));
}

/** Resolves with `out`, filled; floats are widened where `out` is a Float32Array. */
Napi::Value tensor_read(Napi::Env env, Tensor tensor, ArrayView out) {
  const DType dtype = out.type == napi_uint32_array ? tensor.dtype : dtype_of(out, tensor.dtype);
  check(out.bytes == static_cast<size_t>(tensor.elements() * size_of(dtype)), Code::Shape,
        "tensor: the array has ", out.length, " elements, expected ", tensor.elements());
  Tensor source = tensor;
  if (dtype != tensor.dtype || !tensor.contiguous()) {
    source = Tensor::empty(tensor.device(), dtype, shape_of(tensor));
    copy(tensor, source);
  }
  source.device()->submit(ReadInto{source, out.data, Completions::lease(env)});
  // The array stays referenced, so its memory stays where it is, until the promise settles.
  auto kept = std::make_shared<Napi::ObjectReference>(Napi::Persistent(out.array.As<Napi::Object>()));
  kept->SuppressDestruct();
  return Completions::when_done(env, *source.device(), [kept](Napi::Env) -> Napi::Value {
    const Napi::Value value = kept->Value();
    kept->Reset();
    return value;
  });
}

}  // namespace

void bind_tensors(Napi::Object exports) {
  bind<default_device>(exports, "defaultDevice");
  bind<device_open>(exports, "deviceOpen");
  bind<device_close>(exports, "deviceClose");
  bind<device_synchronize>(exports, "deviceSynchronize");
  bind<device_memory>(exports, "deviceMemory");
  bind<device_reset_peak>(exports, "deviceResetPeak");
  bind<device_mark>(exports, "deviceMark");
  bind<mark_since>(exports, "markSince");
  bind<tensor_empty>(exports, "tensorEmpty");
  bind<tensor_borrowed>(exports, "tensorBorrowed");
  bind<tensor_transfer>(exports, "tensorTransfer");
  bind<tensor_view>(exports, "tensorView");
  bind<tensor_is_behind>(exports, "tensorIsBehind");
  bind<tensor_dispose>(exports, "tensorDispose");
  bind<tensor_write>(exports, "tensorWrite");
  bind<tensor_read>(exports, "tensorRead");
}

}  // namespace longseq
