// The rotary embedding on a GPU, bound by memory. A thread keeps to its pairs of one position and turns them
// for several heads, whose loads are all in flight at once: 16 bytes each, where everything is aligned to
// that. So an angle's sine is worth its while, and nothing is kept of it.
#include <algorithm>

#include "core/cuda.h"
#include "core/division.h"
#include "rope/rope.h"
#include "tile/pack.h"

namespace longseq {
namespace {

constexpr int kThreads = 256, kHeads = 4;

template <class T>
struct Arguments {
  const T* x;
  T* y;
  int64_t x_strides[3] = {}, y_strides[3] = {};  // of B, S and H
  int64_t items = 0, rows = 0, heads = 0;        // an item: up to kHeads heads of one position
  int head_groups = 0, pairs = 0, units = 0, pair_units = 0, lanes = 1;
  const int32_t* positions = nullptr;  // null: from `offset` on
  int64_t position_strides[2] = {0, 1}, offset = 0;
  float factor = 1;
  bool inverse = false;
  uint64_t frequencies[kMostPairs] = {};
};

/** Some pairs of a head: one pack of neighbours, or two packs, of the pairs' first and second elements. */
template <class T, int pack, bool interleaved>
struct Unit {
  static constexpr int kParts = interleaved && pack > 1 ? 1 : 2, kPairs = kParts * pack / 2;

  __device__ static int64_t offset(int part, int unit, int pairs) {
    if (kParts == 1) return int64_t{unit} * pack;
    return interleaved ? 2 * unit + part : unit * pack + part * pairs;
  }
  __device__ void read(const T* row, int unit, int pairs) {
#pragma unroll
    for (int p = 0; p < kParts; p++) parts[p] = read_pack<pack>(row + offset(p, unit, pairs));
  }
  __device__ void write_turned(T* row, int unit, int pairs, const float (&cosine)[kPairs],
                               const float (&sine)[kPairs]) const {
    float in[kParts][pack], out[kParts][pack];
#pragma unroll
    for (int p = 0; p < kParts; p++) widen(parts[p], in[p]);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const int a = kParts == 1 ? 2 * i : i, b = kParts == 1 ? a + 1 : i;
      const float first = in[0][a], second = in[kParts - 1][b];
      out[0][a] = first * cosine[i] - second * sine[i];
      out[kParts - 1][b] = second * cosine[i] + first * sine[i];
    }
#pragma unroll
    for (int p = 0; p < kParts; p++) write_floats(row + offset(p, unit, pairs), out[p]);
  }

  Pack<T, pack> parts[kParts];
};

template <class T, int pack, bool interleaved>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ Arguments<T> given) {
  using Pairs = Unit<T, pack, interleaved>;
  __shared__ uint64_t frequencies[kMostPairs];
  for (int i = threadIdx.x; i < given.pairs; i += kThreads) frequencies[i] = given.frequencies[i];
  __syncthreads();

  const int lane = threadIdx.x & (given.lanes - 1), group = threadIdx.x / given.lanes;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / given.lanes) + group;
  if (item >= given.items) return;
  const int64_t at = item / given.head_groups, batch = at / given.rows, row = at % given.rows;
  const int64_t first_head = item % given.head_groups;
  const T* const x = given.x + batch * given.x_strides[0] + row * given.x_strides[1];
  T* const y = given.y + batch * given.y_strides[0] + row * given.y_strides[1];
  const int64_t position =
      given.positions ? given.positions[batch * given.position_strides[0] + row * given.position_strides[1]]
                      : given.offset + row;

  for (int unit = lane; unit < given.units; unit += given.lanes) {
    if (unit >= given.pair_units) {
      const int64_t column = 2 * given.pairs + int64_t{unit - given.pair_units} * pack;
      for (int64_t head = first_head; head < given.heads; head += given.head_groups) {
        write_pack(y + head * given.y_strides[2] + column,
                   read_pack<pack>(x + head * given.x_strides[2] + column));
      }
      continue;
    }
    Pairs loaded[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; h++) {
      const int64_t head = first_head + h * given.head_groups;
      if (head < given.heads) loaded[h].read(x + head * given.x_strides[2], unit, given.pairs);
    }
    float cosine[Pairs::kPairs], sine[Pairs::kPairs];
#pragma unroll
    for (int i = 0; i < Pairs::kPairs; i++) {
      const uint64_t turns = static_cast<uint64_t>(position) * frequencies[unit * Pairs::kPairs + i];
      // The upper half as a signed number: half turns, times 2^31.
      const float half_turns = static_cast<float>(static_cast<int32_t>(turns >> 32)) * 0x1p-31f;
      sincospif(half_turns, &sine[i], &cosine[i]);
      cosine[i] *= given.factor;
      sine[i] *= given.inverse ? -given.factor : given.factor;
    }
#pragma unroll
    for (int h = 0; h < kHeads; h++) {
      const int64_t head = first_head + h * given.head_groups;
      if (head >= given.heads) continue;
      loaded[h].write_turned(y + head * given.y_strides[2], unit, given.pairs, cosine, sine);
    }
  }
}

__global__ void write_positions_kernel(int32_t* positions, Piece piece) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < piece.length) positions[i] = static_cast<int32_t>(piece.start + i);
}

/** Whether packs of `pack` elements of all heads lie at multiples of their size. */
bool in_packs(const Tensor& tensor, int64_t pack) {
  bool fits = reinterpret_cast<uintptr_t>(tensor.data<char>()) % 16 == 0;
  for (int axis = 0; axis < 3; axis++) {
    fits = fits && (tensor.size(axis) == 1 || tensor.stride(axis) % pack == 0);
  }
  return fits;
}

template <class T, int pack, bool interleaved>
void launch_rope(const Cuda& cuda, const Rope& op, const int32_t* positions) {
  const int64_t batches = op.x.size(0), rows = op.x.size(1), heads = op.x.size(2), head_dim = op.x.size(3);
  const auto pairs = static_cast<int64_t>(op.rotation.frequencies.size());
  Arguments<T> given{.x = op.x.data<T>(), .y = op.y.data<T>()};
  for (int axis = 0; axis < 3; axis++) {
    given.x_strides[axis] = op.x.stride(axis);
    given.y_strides[axis] = op.y.stride(axis);
  }
  given.head_groups = static_cast<int>(ceil_div(heads, kHeads));
  given.items = batches * rows * given.head_groups;
  given.rows = rows;
  given.heads = heads;
  given.pairs = static_cast<int>(pairs);
  given.pair_units = static_cast<int>(pairs / Unit<T, pack, interleaved>::kPairs);
  given.units = static_cast<int>(given.pair_units + (head_dim - 2 * pairs) / pack);
  while (given.lanes < given.units && given.lanes < kThreads) given.lanes *= 2;
  given.positions = positions;
  if (op.positions) {
    given.position_strides[0] = op.positions.rank == 2 ? op.positions.stride(0) : 0;
    given.position_strides[1] = op.positions.stride(-1);
  } else {
    given.offset = op.pieces[0].start;
  }
  given.factor = op.rotation.factor;
  given.inverse = op.rotation.inverse;
  std::copy(op.rotation.frequencies.begin(), op.rotation.frequencies.end(), given.frequencies);
  const int64_t groups = kThreads / given.lanes;
  launch<rope_kernel<T, pack, interleaved>>(cuda, dim3(static_cast<unsigned>(ceil_div(given.items, groups))),
                                            kThreads, 0, given);
}

}  // namespace

void run(const Cuda& cuda, const Rope& op) {
  if (op.x.elements() == 0) return;
  const int32_t* positions = op.positions ? op.positions.data<int32_t>() : nullptr;
  Memory written;
  if (!op.positions && op.pieces.size() > 1) {
    written = allocate(cuda, static_cast<size_t>(op.x.size(1)) * sizeof(int32_t));
    auto* next = static_cast<int32_t*>(written.data);
    positions = next;
    for (const Piece& piece : op.pieces) {
      launch<write_positions_kernel>(cuda, dim3(static_cast<unsigned>(ceil_div(piece.length, kThreads))),
                                     kThreads, 0, next, piece);
      next += piece.length;
    }
  }
  const int64_t head_dim = op.x.size(3), pairs = static_cast<int64_t>(op.rotation.frequencies.size());
  visit_float(op.x.dtype, [&]<class T>(T) {
    constexpr int kPack = kWholePack<T>;
    const bool whole = in_packs(op.x, kPack) && in_packs(op.y, kPack) && head_dim % kPack == 0;
    if (op.rotation.interleaved) {
      whole && 2 * pairs % kPack == 0 ? launch_rope<T, kPack, true>(cuda, op, positions)
                                      : launch_rope<T, 1, true>(cuda, op, positions);
    } else {
      whole&& pairs % kPack == 0 ? launch_rope<T, kPack, false>(cuda, op, positions)
                                 : launch_rope<T, 1, false>(cuda, op, positions);
    }
  });
}

}  // namespace longseq
