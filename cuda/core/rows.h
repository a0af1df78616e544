#pragma once
// A tensor as its rows: what kernels that work on one row at a time see of it, on every engine.
#include <initializer_list>

#include "core/host_device.h"
#include "core/tensor.h"

namespace longseq {

/**
 * Divides numbers below 2^52. By a reciprocal: a GPU's 64-bit division is a call, around which kernels would
 * spill. Always inline, as all here: *_cpu.cc files, compiled for newer processors, must leave no copy that
 * others share.
 */
struct Divisor {
  int64_t value = 1;
  double reciprocal = 1;

  Divisor() = default;
  explicit Divisor(int64_t by) : value(by), reciprocal(1.0 / static_cast<double>(by)) {}

  LONGSEQ_HOST_DEVICE __attribute__((always_inline)) int64_t quotient(int64_t number) const {
    const auto guess = static_cast<int64_t>(static_cast<double>(number) * reciprocal);
    const int64_t rest = number - guess * value;
    return guess + (rest >= value) - (rest < 0);
  }
};

/** Where each row begins: the leading axes, neighbours joined where they lie in one go. Without a tensor,
 * false. */
struct Rows {
  char* data = nullptr;
  int axes = 0;
  Divisor sizes[kMaxRank];
  int64_t strides[kMaxRank] = {};  // bytes

  Rows() = default;
  /** Of the first `leading` axes: all but the last, or all where a row is one element. */
  Rows(const Tensor& tensor, int leading);

  LONGSEQ_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  template <class T>
  LONGSEQ_HOST_DEVICE __attribute__((always_inline)) T* row(int64_t index) const {
    int64_t offset = 0;
    for (int axis = axes - 1; axis > 0; axis--) {
      const int64_t rest = sizes[axis].quotient(index);
      offset += (index - rest * sizes[axis].value) * strides[axis];
      index = rest;
    }
    if (axes > 0) offset += index * strides[0];
    return reinterpret_cast<T*>(data + offset);
  }
  /** Whether every row begins at a multiple of `bytes`. */
  bool aligned(int64_t bytes) const;
};

/** Whether all of these do; what is no tensor does. */
bool aligned(std::initializer_list<const Rows*> tensors, int64_t bytes);
/** Rows of all axes but the last. */
Rows rows_of(const Tensor& tensor);
/** How many rows those are. */
int64_t row_count(const Tensor& tensor);

/** Throws unless `tensor` has the shape and device of `like`, and rows without gaps. `operation` and `name`
 * are for the message. */
void check_rows_like(const char* operation, const Tensor& tensor, const char* name, const Tensor& like,
                     const char* like_name);
/** Throws unless the elements of the last axis lie one behind the other. */
void check_row_stride(const char* operation, const Tensor& tensor, const char* name);
/** Throws unless `tensor` has one float32 for each row of `x`, without gaps. */
void check_row_statistic(const char* operation, const Tensor& tensor, const char* name, const Tensor& x);

}  // namespace longseq
