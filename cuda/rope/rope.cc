// Checks of the rotary embedding's arguments, the same for every engine, and the CPU engine's loop over
// positions.
#include "rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "core/thread_pool.h"
#include "rope/tasks.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a task: some tens of microseconds

/** [T H D] is [1 T H D]. */
Tensor with_batch(Tensor tensor) {
  if (tensor.rank == 4) return tensor;
  for (size_t axis = 3; axis > 0; axis--) {
    tensor.shape[axis] = tensor.shape[axis - 1];
    tensor.strides[axis] = tensor.strides[axis - 1];
  }
  tensor.shape[0] = 1;
  tensor.strides[0] = 0;
  tensor.rank = 4;
  return tensor;
}

void check_rows(const Tensor& tensor, const char* name) {
  check(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, Code::Shape, "rotaryEmbedding: ", name,
        "'s last axis has stride ", tensor.stride(-1), ", expected 1");
}

/** Radians a position as turns of 2^-64 a position; whole turns a position are no turn at all. */
uint64_t turns_of(double radians) {
  double turns = radians / (2 * std::numbers::pi);
  turns -= std::floor(turns);
  // Exact: the product only moves the binary point. Rounded up to a whole turn it is none.
  const double scaled = turns * 0x1p64;
  return scaled >= 0x1p64 ? 0 : static_cast<uint64_t>(scaled);
}

std::vector<Piece> checked_pieces(const std::vector<int64_t>& flat, int64_t rows) {
  check(flat.size() % 2 == 0, Code::Option, "rotaryEmbedding: positions must be pairs of start and length");
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t i = 0; i < flat.size(); i += 2) {
    const Piece piece{flat[i], flat[i + 1]};
    check(piece.start >= 0 && piece.length >= 0 && piece.start <= INT32_MAX &&
              piece.length <= INT32_MAX - piece.start,
          Code::Option, "rotaryEmbedding: positions must be within 0 to 2^31 - 1");
    total += piece.length;
    if (piece.length > 0) pieces.push_back(piece);
  }
  check(total == rows, Code::Option, "rotaryEmbedding: positions cover ", total, " rows, expected ", rows);
  return pieces;
}

/** Each row's position, the pieces written out. */
class PositionTable {
 public:
  PositionTable(const Cpu& cpu, const Rope& op) {
    if (op.positions) {
      positions_ = op.positions.data<int32_t>();
      batch_stride_ = op.positions.rank == 2 ? op.positions.stride(0) : 0;
      row_stride_ = op.positions.stride(-1);
      return;
    }
    written_ = allocate(cpu, static_cast<size_t>(op.x.size(1)) * sizeof(int32_t));
    auto* next = static_cast<int32_t*>(written_.data);
    positions_ = next;
    for (const Piece& piece : op.pieces) {
      for (int64_t i = 0; i < piece.length; i++) *next++ = static_cast<int32_t>(piece.start + i);
    }
  }
  int64_t at(int64_t batch, int64_t row) const {
    return positions_[batch * batch_stride_ + row * row_stride_];
  }

 private:
  Memory written_;
  const int32_t* positions_;
  int64_t batch_stride_ = 0, row_stride_ = 1;
};

}  // namespace

void run(const Cpu& cpu, const Rope& op) {
  const int64_t batches = op.x.size(0), rows = op.x.size(1), heads = op.x.size(2), head_dim = op.x.size(3);
  if (op.x.elements() == 0) return;
  const int64_t grain = std::max<int64_t>(1, kGrain / (heads * head_dim));
  const PositionTable positions(cpu, op);
  parallel_for((batches * rows + grain - 1) / grain, [&](int64_t task) {
    for (int64_t at = task * grain; at < std::min(batches * rows, (task + 1) * grain); at++) {
      const int64_t batch = at / rows, row = at % rows;
      const auto first = [&](const Tensor& tensor) {
        const int64_t offset = batch * tensor.stride(0) + row * tensor.stride(1);
        return tensor.data<char>() + offset * size_of(tensor.dtype);
      };
      run(cpu, RopeTask{op.x.dtype, first(op.x), first(op.y), op.x.stride(2), op.y.stride(2), heads, head_dim,
                        positions.at(batch, row), op.rotation.frequencies.data(),
                        static_cast<int64_t>(op.rotation.frequencies.size()), op.rotation.factor,
                        op.rotation.interleaved, op.rotation.inverse});
    }
  });
}

void rope(Tensor x, std::vector<double> frequencies, double factor, bool interleaved, bool inverse,
          std::optional<std::vector<int64_t>> pieces, std::optional<Tensor> positions, Tensor y) {
  check(x.rank == 3 || x.rank == 4, Code::Shape, "rotaryEmbedding: x has the shape ", shape_text(x),
        ", expected [B, S, H, D] or [T, H, D]");
  check(is_float(x.dtype), Code::DType, "rotaryEmbedding: x is ", name_of(x.dtype),
        ", expected float32, bfloat16 or float16");
  check_rows(x, "x");
  check(y.rank == x.rank && std::equal(x.shape.begin(), x.shape.begin() + x.rank, y.shape.begin()),
        Code::Shape, "rotaryEmbedding: y has the shape ", shape_text(y), ", expected ", shape_text(x),
        " (that of x)");
  check(y.dtype == x.dtype, Code::DType, "rotaryEmbedding: y is ", name_of(y.dtype), ", expected ",
        name_of(x.dtype), " (that of x)");
  check(y.device() == x.device(), Code::Device, "rotaryEmbedding: y is on another device than x");
  check_rows(y, "y");
  const auto pairs = static_cast<int64_t>(frequencies.size());
  check(2 * pairs <= x.size(-1) && pairs <= kMostPairs, Code::Option, "rotaryEmbedding: rotaryDim is ",
        2 * pairs, ", expected at most ", std::min(x.size(-1), 2 * kMostPairs));
  const float as_float = static_cast<float>(factor);
  check(std::isfinite(as_float), Code::Option, "rotaryEmbedding: the factor is not a finite float32");
  Rope op{.x = with_batch(std::move(x)),
          .rotation = {.frequencies = {}, .factor = as_float, .interleaved = interleaved, .inverse = inverse},
          .pieces = {},
          .positions = {},
          .y = with_batch(std::move(y))};
  for (const double frequency : frequencies) {
    check(std::isfinite(frequency), Code::Option, "rotaryEmbedding: a frequency is ", frequency);
    op.rotation.frequencies.push_back(turns_of(frequency));
  }
  const int64_t batches = op.x.size(0), rows = op.x.size(1);
  if (positions) {
    const Tensor& given = *positions;
    check(given.dtype == DType::Int32, Code::DType, "rotaryEmbedding: positions is ", name_of(given.dtype),
          ", expected int32");
    check((given.rank == 1 || (given.rank == 2 && given.size(0) == batches)) && given.size(-1) == rows,
          Code::Shape, "rotaryEmbedding: positions has the shape ", shape_text(given), ", expected [", rows,
          "] or [", batches, ", ", rows, "]");
    check(given.device() == op.x.device(), Code::Device,
          "rotaryEmbedding: positions is on another device than x");
    op.positions = given;
  } else {
    op.pieces = checked_pieces(pieces.value_or(std::vector<int64_t>{0, rows}), rows);
  }
  const auto device = op.x.device();
  device->submit(std::move(op));
}

}  // namespace longseq
