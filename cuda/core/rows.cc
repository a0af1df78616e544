#include "core/rows.h"

#include <algorithm>

namespace longseq {

Rows::Rows(const Tensor& tensor, int leading) {
  if (!tensor) return;
  data = tensor.data<char>();
  const int64_t item = size_of(tensor.dtype);
  for (int axis = 0; axis < leading; axis++) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis) * item;
    if (size == 1) continue;
    const bool joins = axes > 0 && strides[axes - 1] == stride * size;
    if (!joins) sizes[axes++] = Divisor();
    sizes[axes - 1] = Divisor(sizes[axes - 1].value * size);
    strides[axes - 1] = stride;
  }
}

bool Rows::aligned(int64_t bytes) const {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 &&
         std::all_of(strides, strides + axes, [&](int64_t stride) { return stride % bytes == 0; });
}

bool aligned(std::initializer_list<const Rows*> tensors, int64_t bytes) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const Rows* rows) { return rows->aligned(bytes); });
}

Rows rows_of(const Tensor& tensor) { return {tensor, tensor ? tensor.rank - 1 : 0}; }

int64_t row_count(const Tensor& tensor) {
  int64_t count = 1;
  for (int axis = 0; axis < tensor.rank - 1; axis++) count *= tensor.size(axis);
  return count;
}

void check_row_stride(const char* operation, const Tensor& tensor, const char* name) {
  check(tensor.rank > 0, Code::Shape, operation, ": ", name, " has the shape [], expected at least one axis");
  check(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, Code::Shape, operation, ": ", name,
        "'s last axis has stride ", tensor.stride(-1), ", expected 1");
}

void check_rows_like(const char* operation, const Tensor& tensor, const char* name, const Tensor& like,
                     const char* like_name) {
  check(tensor.rank == like.rank &&
            std::equal(like.shape.begin(), like.shape.begin() + like.rank, tensor.shape.begin()),
        Code::Shape, operation, ": ", name, " has the shape ", shape_text(tensor), ", expected ",
        shape_text(like), " (that of ", like_name, ")");
  check(tensor.device() == like.device(), Code::Device, operation, ": ", name, " is on another device than ",
        like_name);
  check_row_stride(operation, tensor, name);
}

void check_row_statistic(const char* operation, const Tensor& tensor, const char* name, const Tensor& x) {
  check(tensor.dtype == DType::Float32, Code::DType, operation, ": ", name, " is ", name_of(tensor.dtype),
        ", expected float32");
  check(tensor.device() == x.device(), Code::Device, operation, ": ", name,
        " is on another device than the rows");
  check(tensor.rank == x.rank - 1 &&
            std::equal(tensor.shape.begin(), tensor.shape.begin() + tensor.rank, x.shape.begin()) &&
            tensor.contiguous(),
        Code::Shape, operation, ": ", name, " has the shape ", shape_text(tensor),
        ", expected one element for each row, without gaps");
}

}  // namespace longseq
