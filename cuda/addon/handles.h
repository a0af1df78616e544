#pragma once
// Native objects as JavaScript values: type-tagged externals, so that a wrong object is a TypeError, never a
// crash.
#include <napi.h>

#include <memory>
#include <string>
#include <utility>

#include "attention/attention_api.h"
#include "comm/communicator.h"
#include "core/device.h"
#include "core/tensor.h"
#include "mask/mask.h"

namespace longseq {

using DeviceHandle = std::shared_ptr<Device>;
using MaskHandle = std::shared_ptr<const Mask>;
using MarkHandle = std::shared_ptr<Mark>;
using CommunicatorHandle = std::shared_ptr<Communicator>;
using FenceHandle = std::shared_ptr<Fence>;

template <class T>
struct HandleType;
template <>
struct HandleType<Tensor> {
  static constexpr const char* name = "a tensor";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657101, 0x1b5e8a4f0c3d4e01};
};
template <>
struct HandleType<DeviceHandle> {
  static constexpr const char* name = "a device";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657102, 0x1b5e8a4f0c3d4e02};
};
template <>
struct HandleType<MaskHandle> {
  static constexpr const char* name = "a mask";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657103, 0x1b5e8a4f0c3d4e03};
};

template <>
struct HandleType<MarkHandle> {
  static constexpr const char* name = "a mark";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657105, 0x1b5e8a4f0c3d4e05};
};

template <>
struct HandleType<CommunicatorHandle> {
  static constexpr const char* name = "a communicator";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657106, 0x1b5e8a4f0c3d4e06};
};
template <>
struct HandleType<FenceHandle> {
  static constexpr const char* name = "a fence";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657107, 0x1b5e8a4f0c3d4e07};
};

template <>
struct HandleType<QueryGradientHandle> {
  static constexpr const char* name = "a gradient of queries";
  static constexpr napi_type_tag tag = {0x6c6f6e6773657108, 0x1b5e8a4f0c3d4e08};
};

/** What an external points to. An empty value means that it was disposed. */
template <class T>
struct Handle {
  T value;
  int64_t external_bytes;  // what V8 was told that the collection of this handle would free
};

/** `external_bytes` steers V8's collector: it sees a handle of some bytes where gigabytes hang on it. */
template <class T>
Napi::Value wrap(Napi::Env env, T value, int64_t external_bytes = 0) {
  const auto finalize = [](Napi::Env env, Handle<T>* handle) {
    if (handle->external_bytes) Napi::MemoryManagement::AdjustExternalMemory(env, -handle->external_bytes);
    delete handle;
  };
  auto external =
      Napi::External<Handle<T>>::New(env, new Handle<T>{std::move(value), external_bytes}, finalize);
  napi_type_tag_object(env, external, &HandleType<T>::tag);
  if (external_bytes) Napi::MemoryManagement::AdjustExternalMemory(env, external_bytes);
  return external;
}

/** The handle behind a value, or null where the value is no such handle. */
template <class T>
Handle<T>* handle_of(Napi::Value value) {
  bool matches = false;
  if (!value.IsExternal()) return nullptr;
  if (napi_check_object_type_tag(value.Env(), value, &HandleType<T>::tag, &matches) != napi_ok || !matches)
    return nullptr;
  return value.As<Napi::External<Handle<T>>>().Data();
}

template <class T>
void dispose(Napi::Env env, Handle<T>& handle) {
  handle.value = {};
  if (handle.external_bytes)
    Napi::MemoryManagement::AdjustExternalMemory(env, -std::exchange(handle.external_bytes, 0));
}

}  // namespace longseq
