#pragma once
// Equally shaped tensors as rows: the last axis is a row, the leading ones are joined where all of the
// tensors allow it, so that rows mostly lie at one distance from each other.
#include <algorithm>
#include <array>
#include <cstdint>

#include "core/host_device.h"
#include "core/tensor.h"

namespace longseq {

template <size_t count>
struct Rows {
  int rank = 0;  // of the leading axes, joined
  int64_t rows = 1, columns;
  int64_t sizes[kMaxRank] = {};
  int64_t strides[count][kMaxRank] = {};

  explicit Rows(const std::array<const Tensor*, count>& tensors) : columns(tensors[0]->size(-1)) {
    const Tensor& shape = *tensors[0];
    for (int axis = 0; axis + 1 < shape.rank; axis++) {
      rows *= shape.size(axis);
      if (shape.size(axis) == 1) continue;
      bool joins = rank > 0;
      for (size_t t = 0; t < count && joins; t++) {
        joins = strides[t][rank - 1] == tensors[t]->stride(axis) * shape.size(axis);
      }
      if (!joins) sizes[rank++] = 1;
      sizes[rank - 1] *= shape.size(axis);
      for (size_t t = 0; t < count; t++) strides[t][rank - 1] = tensors[t]->stride(axis);
    }
  }

  /** How far a row's first element is from the tensor's. */
  LONGSEQ_HOST_DEVICE int64_t offset(int tensor, int64_t row) const {
    if (rank <= 1) return row * strides[tensor][0];
    int64_t at = 0;
    for (int axis = rank - 1; axis >= 0; axis--) {
      at += row % sizes[axis] * strides[tensor][axis];
      row /= sizes[axis];
    }
    return at;
  }
  /** How many rows from this one on lie at the distance `stride`, up to `most`. */
  int64_t run(int64_t row, int64_t most) const {
    return rank <= 1 ? most : std::min(most, sizes[rank - 1] - row % sizes[rank - 1]);
  }
  int64_t stride(int tensor) const { return rank == 0 ? 0 : strides[tensor][rank - 1]; }
};

}  // namespace longseq
