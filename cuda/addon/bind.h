#pragma once
// A JavaScript function from a C++ signature: `bind<f>(exports, "name")` converts and checks the arguments,
// calls f, converts the result, and turns exceptions into JavaScript errors with a `code`.
#include <napi.h>

#include <cmath>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "addon/handles.h"
#include "core/error.h"

namespace longseq {

inline Napi::Error to_js(Napi::Env env, const Error& error) {
  constexpr const char* names[] = {"ERR_OPTION", "ERR_SHAPE",    "ERR_DTYPE",   "ERR_DEVICE",
                                   "ERR_OPTION", "ERR_DISPOSED", "ERR_NO_CUDA", "ERR_OUT_OF_MEMORY",
                                   "ERR_FILE",   "ERR_COMM",     "ERR_NO_NCCL"};
  const auto with_code = [&](auto made) -> Napi::Error {
    made.Set("code", Napi::String::New(env, names[static_cast<int>(error.code)]));
    return made;
  };
  switch (error.code) {
    case Code::Kind:
    case Code::DType:
      return with_code(Napi::TypeError::New(env, error.what()));
    case Code::Shape:
    case Code::Option:
      return with_code(Napi::RangeError::New(env, error.what()));
    default:
      return with_code(Napi::Error::New(env, error.what()));
  }
}

inline Napi::Error to_js(Napi::Env env, std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return to_js(env, error);
  } catch (const std::bad_alloc&) {
    return to_js(env, Error(Code::OutOfMemory, "out of memory"));
  } catch (const std::exception& error) {
    return Napi::Error::New(env, error.what());
  }
}

/** A typed array's elements, borrowed for the call. */
struct ArrayView {
  napi_typedarray_type type;
  void* data;
  size_t length;
  size_t bytes;
  Napi::TypedArray array;
};

/** From<T>::of(value, index): the argument at `index` as a T, or an Error that names it. */
template <class T>
struct From;

template <>
struct From<Napi::Value> {
  static Napi::Value of(Napi::Value value, size_t) { return value; }
};

inline void check_kind(bool holds, size_t index, const char* expected) {
  check(holds, Code::Kind, "argument ", index + 1, ": expected ", expected);
}

template <>
struct From<double> {
  static double of(Napi::Value value, size_t index) {
    check_kind(value.IsNumber(), index, "a number");
    return value.As<Napi::Number>().DoubleValue();
  }
};
template <>
struct From<int64_t> {
  static int64_t of(Napi::Value value, size_t index) {
    const double number = From<double>::of(value, index);
    check_kind(std::trunc(number) == number && std::abs(number) <= 0x1p53, index, "an integer");
    return static_cast<int64_t>(number);
  }
};
template <>
struct From<bool> {
  static bool of(Napi::Value value, size_t index) {
    check_kind(value.IsBoolean(), index, "a boolean");
    return value.As<Napi::Boolean>().Value();
  }
};
template <>
struct From<std::string> {
  static std::string of(Napi::Value value, size_t index) {
    check_kind(value.IsString(), index, "a string");
    return value.As<Napi::String>().Utf8Value();
  }
};
template <>
struct From<DType> {
  static DType of(Napi::Value value, size_t index) {
    const int64_t dtype = From<int64_t>::of(value, index);
    check_kind(dtype >= 0 && dtype < kDTypes, index, "a dtype");
    return static_cast<DType>(dtype);
  }
};
template <>
struct From<ArrayView> {
  static ArrayView of(Napi::Value value, size_t index) {
    check_kind(value.IsTypedArray(), index, "a typed array");
    const auto array = value.As<Napi::TypedArray>();
    void* data = nullptr;
    napi_typedarray_type type;
    size_t length;
    napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr);
    return {type, data, length, array.ByteLength(), array};
  }
};
template <>
struct From<std::vector<int64_t>> {
  static std::vector<int64_t> of(Napi::Value value, size_t index) {
    if (value.IsTypedArray()) {
      const ArrayView view = From<ArrayView>::of(value, index);
      check_kind(view.type == napi_int32_array || view.type == napi_float64_array, index,
                 "an Int32Array or Float64Array");
      if (view.type == napi_int32_array) {
        const std::span<const int32_t> values(static_cast<int32_t*>(view.data), view.length);
        return {values.begin(), values.end()};
      }
      std::vector<int64_t> out;
      for (const double number : std::span(static_cast<double*>(view.data), view.length))
        out.push_back(integer(number, index));
      return out;
    }
    check_kind(value.IsArray(), index, "an array of integers");
    const auto array = value.As<Napi::Array>();
    std::vector<int64_t> out(array.Length());
    for (uint32_t i = 0; i < out.size(); i++) out[i] = From<int64_t>::of(array[i], index);
    return out;
  }
  static int64_t integer(double number, size_t index) {
    check_kind(std::trunc(number) == number && std::abs(number) <= 0x1p53, index, "integers");
    return static_cast<int64_t>(number);
  }
};
template <class T>
const T& held_by(Napi::Value value, size_t index) {
  Handle<T>* const handle = handle_of<T>(value);
  check_kind(handle != nullptr, index, HandleType<T>::name);
  check(static_cast<bool>(handle->value), Code::Disposed, "argument ", index + 1, ": ", HandleType<T>::name,
        " that was disposed");
  return handle->value;
}
template <class T>
  requires requires { HandleType<T>::tag; }
struct From<T> {
  static T of(Napi::Value value, size_t index) { return held_by<T>(value, index); }
};
/** A handle, or a part of its tensor as [handle, axis, start, end]: for one call a view costs more than the
 * call. */
template <>
struct From<Tensor> {
  static Tensor of(Napi::Value value, size_t index) {
    if (!value.IsArray()) return held_by<Tensor>(value, index);
    const auto part = value.As<Napi::Array>();
    check_kind(part.Length() == 4, index, "a tensor or [tensor, axis, start, end]");
    const Tensor& whole = held_by<Tensor>(part[0u], index);
    const auto number = [&](uint32_t at) { return From<int64_t>::of(part[at], index); };
    const int64_t axis = number(1), start = number(2), end = number(3);
    check(axis >= 0 && axis < whole.rank, Code::Shape, "argument ", index + 1, ": axis is ", axis,
          ", expected 0 to ", whole.rank - 1);
    check(start >= 0 && end >= start && end <= whole.size(static_cast<int>(axis)), Code::Shape, "argument ",
          index + 1, ": [", start, ", ", end, ") is not within axis ", axis, " of size ",
          whole.size(static_cast<int>(axis)));
    return whole.rows(static_cast<int>(axis), start, end - start);
  }
};
template <class T>
struct From<std::optional<T>> {
  static std::optional<T> of(Napi::Value value, size_t index) {
    if (value.IsNull() || value.IsUndefined()) return std::nullopt;
    return From<T>::of(value, index);
  }
};

template <class T>
  requires std::is_same_v<T, Tensor> || std::is_same_v<T, std::optional<Tensor>>
struct From<std::vector<T>> {
  static std::vector<T> of(Napi::Value value, size_t index) {
    check_kind(value.IsArray(), index, "an array of tensors");
    const auto array = value.As<Napi::Array>();
    std::vector<T> out;
    for (uint32_t i = 0; i < array.Length(); i++) out.push_back(From<T>::of(array[i], index));
    return out;
  }
};

inline Napi::Value to_value(Napi::Env, Napi::Value value) { return value; }
inline Napi::Value to_value(Napi::Env env, double value) { return Napi::Number::New(env, value); }
inline Napi::Value to_value(Napi::Env env, bool value) { return Napi::Boolean::New(env, value); }
inline Napi::Value to_value(Napi::Env env, const std::string& value) { return Napi::String::New(env, value); }
inline Napi::Value to_value(Napi::Env env, DeviceHandle device) { return wrap(env, std::move(device)); }
inline Napi::Value to_value(Napi::Env env, MarkHandle mark) { return wrap(env, std::move(mark)); }
inline Napi::Value to_value(Napi::Env env, CommunicatorHandle communicator) {
  return wrap(env, std::move(communicator));
}
inline Napi::Value to_value(Napi::Env env, FenceHandle fence) { return wrap(env, std::move(fence)); }
inline Napi::Value to_value(Napi::Env env, QueryGradientHandle gradient) {
  return wrap(env, std::move(gradient));
}
inline Napi::Value to_value(Napi::Env env, Tensor tensor) { return wrap(env, std::move(tensor)); }

template <auto function, class Signature = decltype(function)>
struct Bound;
/** Functions that make JavaScript values themselves take the environment first. */
template <auto function, class Result, class... Args>
struct Bound<function, Result (*)(Napi::Env, Args...)> {
  static constexpr size_t arity = sizeof...(Args);
  static Napi::Value call(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    try {
      check(info.Length() == arity, Code::Kind, "expected ", arity, " arguments, got ", info.Length());
      return [&]<size_t... i>(std::index_sequence<i...>)->Napi::Value {
        // Braces, so that the arguments are converted from left to right.
        std::tuple<std::decay_t<Args>...> args{From<std::decay_t<Args>>::of(info[i], i)...};
        if constexpr (std::is_void_v<Result>) {
          function(env, std::get<i>(std::move(args))...);
          return env.Undefined();
        } else {
          return to_value(env, function(env, std::get<i>(std::move(args))...));
        }
      }
      (std::index_sequence_for<Args...>());
    } catch (const Napi::Error&) {
      throw;
    } catch (...) {
      throw to_js(env, std::current_exception());
    }
  }
};
template <auto function, class Result, class... Args>
struct Bound<function, Result (*)(Args...)> {
  static Result with_env(Napi::Env, Args... args) { return function(std::forward<Args>(args)...); }
  static constexpr size_t arity = sizeof...(Args);
  static Napi::Value call(const Napi::CallbackInfo& info) { return Bound<&with_env>::call(info); }
};

template <auto function>
void bind(Napi::Object exports, const char* name) {
  auto made = Napi::Function::New<Bound<function>::call>(exports.Env(), name);
  made.Set("arity", Napi::Number::New(exports.Env(), static_cast<double>(Bound<function>::arity)));
  exports.Set(name, made);
}

}  // namespace longseq
