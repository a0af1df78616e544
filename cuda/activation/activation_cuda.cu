// The activations on a GPU, bound by memory: each element is read once and written once. A thread keeps to
// its columns, 16 bytes of them where everything is aligned to that, and has several rows' loads in flight;
// the lanes of a block are spread over a row's columns first, over rows with what is left.
#include <algorithm>
#include <array>

#include "activation/activation.h"
#include "activation/formulas.h"
#include "activation/rows.h"
#include "core/cuda.h"
#include "core/division.h"
#include "tile/pack.h"
#include "tile/parts.h"

namespace longseq {
namespace {

constexpr int kThreads = 256;
constexpr int kSumBlocks = 2;  // a multiprocessor, of the pass that sums columns too

/** Not to be contracted by the compiler, so that every kernel gives the same bits. */
struct ScalarVerbs {
  using Number = float;
  LONGSEQ_FORMULA float set(float x) { return x; }
  LONGSEQ_FORMULA float add(float a, float b) { return __fadd_rn(a, b); }
  LONGSEQ_FORMULA float sub(float a, float b) { return __fsub_rn(a, b); }
  LONGSEQ_FORMULA float mul(float a, float b) { return __fmul_rn(a, b); }
  LONGSEQ_FORMULA float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
  LONGSEQ_FORMULA float min(float a, float b) { return a < b ? a : b; }
  LONGSEQ_FORMULA float max(float a, float b) { return a > b ? a : b; }
  LONGSEQ_FORMULA float abs(float a) { return fabsf(a); }
  LONGSEQ_FORMULA float exp2(float a) { return sm80::exp2_approximate(a); }
  LONGSEQ_FORMULA float reciprocal(float a) { return __fdividef(1.0f, a); }
  LONGSEQ_FORMULA float where_negative(float z, float a, float b) { return z < 0 ? a : b; }
};
using Activation = Formulas<ScalarVerbs>;

/** How a launch is cut: a block takes `lanes * pack` columns of rows, of which a tile is one row's share. */
struct Cut {
  int lanes, tiles;
};

template <class T, int inputs, int outputs>
struct Operands {
  const T* in[inputs];
  T* out[outputs];
};

/** y = gelu(x + bias) */
template <class T, int pack, class Gelu>
struct GeluValue {
  static constexpr int kInputs = 1, kOutputs = 1, kRowsAtOnce = 4;
  const T* bias;
  float shift[pack] = {};

  __device__ void start(int64_t column) {
    if (bias) read_floats(bias + column, shift);
  }
  __device__ void apply(int e, const float (&in)[1][pack], float (&out)[1][pack]) {
    out[0][e] = Gelu::value(in[0][e] + shift[e]);
  }
};

/** dx = dy gelu'(x + bias), and the sums of dx. */
template <class T, int pack, class Gelu>
struct GeluGradient {
  static constexpr int kInputs = 2, kOutputs = 1, kRowsAtOnce = 2;
  const T* bias;
  float shift[pack] = {}, sums[pack] = {};

  __device__ void start(int64_t column) {
    if (bias) read_floats(bias + column, shift);
  }
  __device__ void apply(int e, const float (&in)[2][pack], float (&out)[1][pack]) {
    out[0][e] = in[1][e] * Gelu::gradient(in[0][e] + shift[e]);
    sums[e] += out[0][e];
  }
};

template <int pack>
struct SwigluValue {
  static constexpr int kInputs = 2, kOutputs = 1, kRowsAtOnce = 4;
  __device__ void start(int64_t) {}
  __device__ void apply(int e, const float (&in)[2][pack], float (&out)[1][pack]) {
    out[0][e] = Activation::silu(in[0][e]) * in[1][e];
  }
};

template <int pack>
struct SwigluGradient {
  static constexpr int kInputs = 3, kOutputs = 2, kRowsAtOnce = 2;
  __device__ void start(int64_t) {}
  __device__ void apply(int e, const float (&in)[3][pack], float (&out)[2][pack]) {
    out[0][e] = in[2][e] * in[1][e] * Activation::silu_gradient(in[0][e]);
    out[1][e] = in[2][e] * Activation::silu(in[0][e]);
  }
};

/** A thread's part of kRowsAtOnce rows, `step` apart: all of it is loaded before the first is computed. */
template <class T, int pack, class Function, size_t tensors>
class Batch {
 public:
  using Tensors = Operands<T, Function::kInputs, Function::kOutputs>;
  static constexpr int kRowsAtOnce = Function::kRowsAtOnce;

  __device__ void load(const Tensors& operands, const Rows<tensors>& rows, int64_t row, int64_t step,
                       int64_t column) {
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; r++) {
#pragma unroll
      for (int i = 0; i < Function::kInputs; i++) {
        if (row + r * step < rows.rows) {
          loaded_[r][i] = read_pack<pack>(operands.in[i] + rows.offset(i, row + r * step) + column);
        }
      }
    }
  }
  __device__ void apply(Function& function, const Tensors& operands, const Rows<tensors>& rows, int64_t row,
                        int64_t step, int64_t column) const {
    constexpr int kInputs = Function::kInputs, kOutputs = Function::kOutputs;
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; r++) {
      if (row + r * step >= rows.rows) break;
      float in[kInputs][pack], out[kOutputs][pack];
#pragma unroll
      for (int i = 0; i < kInputs; i++) widen(loaded_[r][i], in[i]);
#pragma unroll
      for (int e = 0; e < pack; e++) function.apply(e, in, out);
#pragma unroll
      for (int o = 0; o < kOutputs; o++) {
        write_floats(operands.out[o] + rows.offset(kInputs + o, row + r * step) + column, out[o]);
      }
    }
  }

 private:
  Pack<T, pack> loaded_[kRowsAtOnce][Function::kInputs];
};

/** Grid: tiles of columns within blocks of rows, a batch each. Three blocks a multiprocessor: for four ptxas
 * spills. */
template <class T, int pack, class Function, size_t tensors>
__global__ void __launch_bounds__(kThreads, 3)
    rows_kernel(Function function, Operands<T, Function::kInputs, Function::kOutputs> operands,
                Rows<tensors> rows, Cut cut) {
  const int lane = threadIdx.x & (cut.lanes - 1), group = threadIdx.x / cut.lanes,
            groups = kThreads / cut.lanes;
  const int64_t column = (static_cast<int64_t>(blockIdx.x % cut.tiles) * cut.lanes + lane) * pack;
  if (column >= rows.columns) return;
  const int64_t row = static_cast<int64_t>(blockIdx.x / cut.tiles) * groups * Function::kRowsAtOnce + group;
  Batch<T, pack, Function, tensors> batch;
  batch.load(operands, rows, row, groups, column);
  function.start(column);
  batch.apply(function, operands, rows, row, groups, column);
}

/** The same, and each block's sums of its columns: partials [blocks of rows, F]. A block takes batches in
 * turn with the others, so that all work on neighbouring rows, and loads each before it computes the one
 * ahead. Shared: kThreads packs. Two blocks a multiprocessor: for three ptxas spills. */
template <class T, int pack, class Function, size_t tensors>
__global__ void __launch_bounds__(kThreads, kSumBlocks)
    rows_and_sums_kernel(Function function, Operands<T, Function::kInputs, Function::kOutputs> operands,
                         Rows<tensors> rows, Cut cut, float* partials) {
  __shared__ float shared[kThreads * pack];
  const int lane = threadIdx.x & (cut.lanes - 1), group = threadIdx.x / cut.lanes,
            groups = kThreads / cut.lanes;
  const int64_t tile = static_cast<int64_t>(blockIdx.x % cut.tiles) * cut.lanes * pack;
  const int64_t column = tile + lane * pack, block = blockIdx.x / cut.tiles;
  if (column < rows.columns) {
    const int block_rows = groups * Function::kRowsAtOnce;
    const int64_t step = int64_t{gridDim.x / cut.tiles} * block_rows;
    int64_t row = block * block_rows + group;
    function.start(column);
    Batch<T, pack, Function, tensors> batch, next;
    batch.load(operands, rows, row, groups, column);
    for (; row < rows.rows; row += step) {
      next.load(operands, rows, row + step, groups, column);
      batch.apply(function, operands, rows, row, groups, column);
      batch = next;
    }
#pragma unroll
    for (int e = 0; e < pack; e++) shared[threadIdx.x * pack + e] = function.sums[e];
  }
  __syncthreads();
  const int width = cut.lanes * pack;
  for (int c = threadIdx.x; c < width && tile + c < rows.columns; c += kThreads) {
    float sum = 0;
    for (int g = 0; g < groups; g++) sum += shared[g * width + c];
    partials[block * rows.columns + tile + c] = sum;
  }
}

Cut cut_of(int64_t columns, int pack) {
  const int64_t packs = ceil_div(columns, pack);
  int lanes = 1;
  while (lanes < packs && lanes < kThreads) lanes *= 2;
  return {lanes, static_cast<int>(ceil_div(packs, lanes))};
}

/** Blocks of rows, of a batch each. */
template <class Function>
int64_t row_blocks(const Cut& cut, int64_t rows) {
  return ceil_div(rows, int64_t{kThreads / cut.lanes} * Function::kRowsAtOnce);
}

/** Whether whole packs of all rows lie at multiples of 16 bytes. */
template <size_t count>
bool in_packs(const std::array<const Tensor*, count>& tensors, const Rows<count>& rows) {
  const int64_t pack = 16 / size_of(tensors[0]->dtype);
  bool fits = rows.columns % pack == 0;
  for (size_t t = 0; t < count; t++) {
    fits = fits && reinterpret_cast<uintptr_t>(tensors[t]->template data<char>()) % 16 == 0;
    for (int axis = 0; axis < rows.rank; axis++) fits = fits && rows.strides[t][axis] % pack == 0;
  }
  return fits;
}

template <class T, int pack, class Function, size_t tensors>
void launch_rows(const Cuda& cuda, const Function& function,
                 const Operands<T, Function::kInputs, Function::kOutputs>& operands,
                 const Rows<tensors>& rows) {
  const Cut cut = cut_of(rows.columns, pack);
  const auto blocks = static_cast<unsigned>(row_blocks<Function>(cut, rows.rows) * cut.tiles);
  launch<rows_kernel<T, pack, Function, tensors>>(cuda, dim3(blocks), kThreads, 0, function, operands, rows,
                                                  cut);
}

/** Calls f with the pack's size, as a constant: 16 bytes, or one element. */
template <class T, class F>
void with_pack(bool whole, F f) {
  whole ? f(std::integral_constant<int, kWholePack<T>>()) : f(std::integral_constant<int, 1>());
}

bool aligned(const Tensor& bias) { return !bias || reinterpret_cast<uintptr_t>(bias.data<char>()) % 16 == 0; }

template <template <class, int, class> class Function, class T, int pack, class Then>
void with_form(GeluForm form, const Tensor& bias, Then then) {
  const T* const shift = bias ? bias.data<T>() : nullptr;
  form == GeluForm::Tanh ? then(Function<T, pack, Activation::Tanh>{shift})
                         : then(Function<T, pack, Activation::Erf>{shift});
}

}  // namespace

void run(const Cuda& cuda, const GeluForward& op) {
  if (op.y.elements() == 0) return;
  const std::array<const Tensor*, 2> tensors{&op.x, &op.y};
  const Rows<2> rows(tensors);
  visit_float(op.x.dtype, [&]<class T>(T) {
    with_pack<T>(
        in_packs(tensors, rows) && aligned(op.bias), [&]<int pack>(std::integral_constant<int, pack>) {
          with_form<GeluValue, T, pack>(op.form, op.bias, [&](const auto& function) {
            launch_rows<T, pack>(cuda, function, Operands<T, 1, 1>{{op.x.data<T>()}, {op.y.data<T>()}}, rows);
          });
        });
  });
}

void run(const Cuda& cuda, const GeluBackward& op) {
  if (op.dx.elements() == 0) {
    if (op.dbias && op.dbias.elements() > 0) {
      cuda_check(
          cudaMemsetAsync(op.dbias.data<char>(), 0, static_cast<size_t>(op.dbias.bytes()), cuda.stream.get()),
          "filling");
    }
    return;
  }
  const std::array<const Tensor*, 3> tensors{&op.x, &op.dy, &op.dx};
  const Rows<3> rows(tensors);
  visit_float(op.x.dtype, [&]<class T>(T) {
    with_pack<T>(in_packs(tensors, rows) && aligned(op.bias), [&]<int pack>(
                                                                  std::integral_constant<int, pack>) {
      with_form<GeluGradient, T, pack>(op.form, op.bias, [&]<class Function>(const Function& function) {
        const Operands<T, 2, 1> operands{{op.x.data<T>(), op.dy.data<T>()}, {op.dx.data<T>()}};
        if (!op.dbias) return launch_rows<T, pack>(cuda, function, operands, rows);
        const Cut cut = cut_of(rows.columns, pack);
        const int64_t most = std::max<int64_t>(1, kSumBlocks * cuda.gpu->multiprocessors / cut.tiles);
        const int64_t blocks = std::min(most, row_blocks<Function>(cut, rows.rows));
        const Memory partials = allocate(cuda, static_cast<size_t>(blocks * rows.columns) * sizeof(float));
        float* const sums = static_cast<float*>(partials.data);
        launch<rows_and_sums_kernel<T, pack, Function, 3>>(cuda,
                                                           dim3(static_cast<unsigned>(blocks * cut.tiles)),
                                                           kThreads, 0, function, operands, rows, cut, sums);
        sum_parts<T>(cuda, {{sums, nullptr}, {op.dbias.data<T>(), nullptr}}, blocks, rows.columns);
      });
    });
  });
}

void run(const Cuda& cuda, const SwigluForward& op) {
  if (op.y.elements() == 0) return;
  const std::array<const Tensor*, 3> tensors{&op.gate, &op.up, &op.y};
  const Rows<3> rows(tensors);
  visit_float(op.y.dtype, [&]<class T>(T) {
    with_pack<T>(in_packs(tensors, rows), [&]<int pack>(std::integral_constant<int, pack>) {
      launch_rows<T, pack>(cuda, SwigluValue<pack>{},
                           Operands<T, 2, 1>{{op.gate.data<T>(), op.up.data<T>()}, {op.y.data<T>()}}, rows);
    });
  });
}

void run(const Cuda& cuda, const SwigluBackward& op) {
  if (op.dy.elements() == 0) return;
  const std::array<const Tensor*, 5> tensors{&op.gate, &op.up, &op.dy, &op.dgate, &op.dup};
  const Rows<5> rows(tensors);
  visit_float(op.dy.dtype, [&]<class T>(T) {
    with_pack<T>(in_packs(tensors, rows), [&]<int pack>(std::integral_constant<int, pack>) {
      launch_rows<T, pack>(cuda, SwigluGradient<pack>{},
                           Operands<T, 3, 2>{{op.gate.data<T>(), op.up.data<T>(), op.dy.data<T>()},
                                             {op.dgate.data<T>(), op.dup.data<T>()}},
                           rows);
    });
  });
}

}  // namespace longseq
