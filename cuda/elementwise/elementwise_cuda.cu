// Elementwise operations on a GPU: a thread takes elements a grid's width apart; where all tensors are
// contiguous it takes 16 bytes at a time.
#include <array>
#include <cstring>

#include "core/cuda.h"
#include "elementwise/elements.h"
#include "elementwise/elementwise.h"

namespace longseq {
namespace {

constexpr int kThreads = 256;

/** The axes of equally shaped tensors, those that lie in one go for all of them joined. */
template <int N>
struct Axes {
  int rank = 0;
  int64_t sizes[kMaxRank] = {};
  int64_t strides[N][kMaxRank] = {};

  explicit Axes(const std::array<const Tensor*, N>& tensors) {
    const Tensor& shape = *tensors[0];
    for (int axis = 0; axis < shape.rank; axis++) {
      if (shape.size(axis) == 1) continue;
      bool joins = rank > 0;
      for (int t = 0; t < N && joins; t++) {
        joins = strides[t][rank - 1] == tensors[t]->stride(axis) * shape.size(axis);
      }
      if (!joins) sizes[rank++] = 1;
      sizes[rank - 1] *= shape.size(axis);
      for (int t = 0; t < N; t++) strides[t][rank - 1] = tensors[t]->stride(axis);
    }
  }
  bool contiguous() const {
    if (rank > 1) return false;
    for (int t = 0; t < N; t++) {
      if (rank == 1 && strides[t][0] != 1) return false;
    }
    return true;
  }
};

template <class Index, int N>
__device__ void locate(const Axes<N>& axes, Index element, int64_t (&offsets)[N]) {
  for (int t = 0; t < N; t++) offsets[t] = 0;
#pragma unroll
  for (int axis = kMaxRank - 1; axis >= 0; axis--) {
    if (axis >= axes.rank) continue;
    const Index size = static_cast<Index>(axes.sizes[axis]), at = element % size;
    element /= size;
    for (int t = 0; t < N; t++) offsets[t] += static_cast<int64_t>(at) * axes.strides[t][axis];
  }
}

/** apply(element, offset of each tensor) for all elements. */
template <class Index, int N, class Apply>
__global__ void each_element_kernel(Axes<N> axes, Index elements, Apply apply) {
  for (Index i = static_cast<Index>(blockIdx.x) * kThreads + threadIdx.x; i < elements;
       i += static_cast<Index>(gridDim.x) * kThreads) {
    int64_t offsets[N];
    locate(axes, i, offsets);
    apply(static_cast<int64_t>(i), offsets);
  }
}

unsigned blocks_for(const Cuda& cuda, int64_t work) {
  const int64_t most = 16 * cuda.gpu->multiprocessors;
  return static_cast<unsigned>(std::clamp<int64_t>((work + kThreads - 1) / kThreads, 1, most));
}

constexpr size_t kMostTerms = 16;
template <class T>
struct Terms {
  int count = 0;
  const T* data[kMostTerms] = {};
  const float* before = nullptr;  // the sum of the terms before, or null
};
template <int N, class Apply>
void for_each_element(const Cuda& cuda, const std::array<const Tensor*, N>& tensors, Apply apply) {
  const int64_t elements = tensors[0]->elements();
  if (elements == 0) return;
  const Axes<N> axes(tensors);
  const dim3 grid(blocks_for(cuda, elements));
  if (elements <= INT32_MAX) {
    launch<each_element_kernel<uint32_t, N, Apply>>(cuda, grid, kThreads, 0, axes,
                                                    static_cast<uint32_t>(elements), apply);
  } else {
    launch<each_element_kernel<uint64_t, N, Apply>>(cuda, grid, kThreads, 0, axes,
                                                    static_cast<uint64_t>(elements), apply);
  }
}

template <class From, class To>
struct CopyElement {
  const From* x;
  To* y;
  __device__ void operator()(int64_t, const int64_t (&at)[2]) const { y[at[1]] = convert<To>(x[at[0]]); }
};
template <class T>
struct AddElements {
  const T *a, *b;
  T* y;
  __device__ void operator()(int64_t, const int64_t (&at)[3]) const { y[at[2]] = sum(a[at[0]], b[at[1]]); }
};
template <class From, class To>
struct ScaleElement {
  const From* x;
  To* y;
  const float *factor, *divisor;
  bool accumulate;
  __device__ void operator()(int64_t, const int64_t (&at)[2]) const {
    const float scaled = static_cast<float>(x[at[0]]) * scale_of(factor, divisor);
    y[at[1]] = from_float<To>(accumulate ? static_cast<float>(y[at[1]]) + scaled : scaled);
  }
};
template <class T>
struct FillElement {
  T* y;
  T value;
  __device__ void operator()(int64_t, const int64_t (&at)[1]) const { y[at[0]] = value; }
};
template <class T>
struct DrawElement {
  T* y;
  uint64_t seed, first;
  float mean, deviation;
  __device__ void operator()(int64_t element, const int64_t (&at)[1]) const {
    y[at[0]] = convert<T>(mean + deviation * normal(first + static_cast<uint64_t>(element), seed));
  }
};

template <class T, int count>
struct alignas(sizeof(T) * count) Packed {
  T values[count];
};

/** y = x in packs, 16 bytes of the wider type: a thread a pack, and an element of what is left. A grid that
 * loops has fewer loads under way (6 % slower). */
template <class From, class To>
__global__ void convert_kernel(const From* x, To* y, int64_t packs, int64_t elements) {
  constexpr int kPack = 16 / std::max(sizeof(From), sizeof(To));
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, rest = packs * kPack + i;
  if (i < packs) {
    const auto in = reinterpret_cast<const Packed<From, kPack>*>(x)[i];
    Packed<To, kPack> out;
#pragma unroll
    for (int e = 0; e < kPack; e++) out.values[e] = convert<To>(in.values[e]);
    reinterpret_cast<Packed<To, kPack>*>(y)[i] = out;
  }
  if (rest < elements) y[rest] = convert<To>(x[rest]);
}

/** The same of y = a + b. */
template <class T>
__global__ void add_kernel(const T* a, const T* b, T* y, int64_t packs, int64_t elements) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, rest = packs * kPack + i;
  if (i < packs) {
    const auto left = reinterpret_cast<const Packed<T, kPack>*>(a)[i];
    const auto right = reinterpret_cast<const Packed<T, kPack>*>(b)[i];
    Packed<T, kPack> out;
#pragma unroll
    for (int e = 0; e < kPack; e++) out.values[e] = sum(left.values[e], right.values[e]);
    reinterpret_cast<Packed<T, kPack>*>(y)[i] = out;
  }
  if (rest < elements) y[rest] = sum(a[rest], b[rest]);
}

/** Of the first `packs` 16 bytes, then of single elements. */
template <class T, class To>
__global__ void sum_kernel(Terms<T> terms, To* y, int64_t packs, int64_t elements) {
  constexpr int kPack = 16 / std::max(sizeof(T), sizeof(To));
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, rest = packs * kPack + i;
  if (i < packs) {
    float sums[kPack];
#pragma unroll
    for (int e = 0; e < kPack; e++) sums[e] = terms.before ? terms.before[i * kPack + e] : 0;
#pragma unroll
    for (int t = 0; t < static_cast<int>(kMostTerms); t++) {
      if (t >= terms.count) break;
      const auto term = reinterpret_cast<const Packed<T, kPack>*>(terms.data[t])[i];
#pragma unroll
      for (int e = 0; e < kPack; e++) sums[e] += convert<float>(term.values[e]);
    }
    Packed<To, kPack> out;
#pragma unroll
    for (int e = 0; e < kPack; e++) out.values[e] = convert<To>(sums[e]);
    reinterpret_cast<Packed<To, kPack>*>(y)[i] = out;
  }
  if (rest >= elements) return;
  float sum = terms.before ? terms.before[rest] : 0;
  for (int t = 0; t < terms.count; t++) sum += convert<float>(terms.data[t][rest]);
  y[rest] = convert<To>(sum);
}

/** For a thread each pack; one block has threads enough for what is left. */
dim3 grid_of_packs(int64_t elements, int64_t pack) {
  return dim3(static_cast<unsigned>(std::max<int64_t>(1, (elements / pack + kThreads - 1) / kThreads)));
}

bool aligned(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

}  // namespace

void run(const Cuda& cuda, const Copy& op) {
  const int64_t elements = op.y.elements();
  if (elements == 0) return;
  const bool contiguous = Axes<2>({&op.x, &op.y}).contiguous();
  if (contiguous && op.x.dtype == op.y.dtype) {
    cuda_check(cudaMemcpyAsync(op.y.data<char>(), op.x.data<char>(), static_cast<size_t>(op.y.bytes()),
                               cudaMemcpyDeviceToDevice, cuda.stream.get()),
               "a copy");
    return;
  }
  visit(op.x.dtype, [&]<class From>(From) {
    visit(op.y.dtype, [&]<class To>(To) {
      const From* const x = op.x.data<From>();
      To* const y = op.y.data<To>();
      if (contiguous && aligned({x, y})) {
        constexpr int kPack = 16 / std::max(sizeof(From), sizeof(To));
        launch<convert_kernel<From, To>>(cuda, grid_of_packs(elements, kPack), kThreads, 0, x, y,
                                         elements / kPack, elements);
      } else {
        for_each_element<2>(cuda, {&op.x, &op.y}, CopyElement<From, To>{x, y});
      }
    });
  });
}

void run(const Cuda& cuda, const Add& op) {
  const int64_t elements = op.y.elements();
  if (elements == 0) return;
  visit(op.y.dtype, [&]<class T>(T) {
    const T *const a = op.a.data<T>(), *const b = op.b.data<T>();
    T* const y = op.y.data<T>();
    constexpr int64_t kPack = 16 / sizeof(T);
    if (Axes<3>({&op.a, &op.b, &op.y}).contiguous() && aligned({a, b, y})) {
      launch<add_kernel<T>>(cuda, grid_of_packs(elements, kPack), kThreads, 0, a, b, y, elements / kPack,
                            elements);
    } else {
      for_each_element<3>(cuda, {&op.a, &op.b, &op.y}, AddElements<T>{a, b, y});
    }
  });
}

void run(const Cuda& cuda, const Sum& op) {
  const int64_t elements = op.y.elements();
  if (elements == 0) return;
  const size_t terms = op.terms.size();
  // More terms than a launch takes: what is not whole yet stays in float32.
  const bool in_steps = terms > kMostTerms && op.y.dtype != DType::Float32;
  const Memory whole = in_steps ? allocate(cuda, static_cast<size_t>(elements) * sizeof(float)) : Memory{};
  visit_float(op.terms[0].dtype, [&]<class T>(T) {
    for (size_t first = 0; first < terms; first += kMostTerms) {
      Terms<T> some;
      some.count = static_cast<int>(std::min(terms - first, kMostTerms));
      for (int i = 0; i < some.count; i++) some.data[i] = op.terms[first + static_cast<size_t>(i)].data<T>();
      const bool ends = first + kMostTerms >= terms;
      some.before = first == 0 ? nullptr : in_steps ? static_cast<float*>(whole.data) : op.y.data<float>();
      const auto into = [&]<class To>(To* y) {
        constexpr int64_t kPack = 16 / std::max(sizeof(T), sizeof(To));
        const bool is_packed = aligned({y}) && std::all_of(some.data, some.data + some.count,
                                                           [](const T* term) { return aligned({term}); });
        launch<sum_kernel<T, To>>(cuda, grid_of_packs(elements, is_packed ? kPack : 1), kThreads, 0, some, y,
                                  is_packed ? elements / kPack : 0, elements);
      };
      if (in_steps && !ends) {
        into(static_cast<float*>(whole.data));
      } else {
        visit_float(op.y.dtype, [&]<class To>(To) { into(op.y.data<To>()); });
      }
    }
  });
}

void run(const Cuda& cuda, const Scale& op) {
  const float* const factor = op.factor ? op.factor.data<float>() : nullptr;
  const float* const divisor = op.divisor ? op.divisor.data<float>() : nullptr;
  visit_float(op.x.dtype, [&]<class From>(From) {
    visit_float(op.y.dtype, [&]<class To>(To) {
      for_each_element<2>(
          cuda, {&op.x, &op.y},
          ScaleElement<From, To>{op.x.data<From>(), op.y.data<To>(), factor, divisor, op.accumulate});
    });
  });
}

void run(const Cuda& cuda, const Fill& op) {
  if (op.y.elements() == 0) return;
  visit(op.y.dtype, [&]<class T>(T) {
    const T value = convert<T>(op.value);
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    if (bits == 0 && op.y.contiguous()) {
      cuda_check(cudaMemsetAsync(op.y.data<char>(), 0, static_cast<size_t>(op.y.bytes()), cuda.stream.get()),
                 "filling");
    } else {
      for_each_element<1>(cuda, {&op.y}, FillElement<T>{op.y.data<T>(), value});
    }
  });
}

void run(const Cuda& cuda, const FillNormal& op) {
  visit(op.y.dtype, [&]<class T>(T) {
    for_each_element<1>(cuda, {&op.y},
                        DrawElement<T>{op.y.data<T>(), op.seed, op.first, op.mean, op.deviation});
  });
}

void run(const Cuda& cuda, const WriteFrom& op) {
  const auto bytes = static_cast<size_t>(op.x.bytes());
  if (bytes == 0) return;
  if (op.x.dtype == op.y.dtype && op.y.contiguous()) {
    return upload(cuda, op.y.data<char>(), op.x.storage->memory(), bytes);
  }
  Tensor arrived = op.x;
  arrived.storage = std::make_shared<Storage>(op.y.device(), allocate(cuda, bytes));
  upload(cuda, arrived.data<char>(), op.x.storage->memory(), bytes);
  run(cuda, Copy{arrived, op.y});
}

void run(const Cuda& cuda, const ReadInto& op) {
  // The tensor's memory is freed in the stream's order, so after the copies.
  download(cuda, op.x.data<char>(), static_cast<size_t>(op.x.bytes()),
           [destination = static_cast<char*>(op.destination), lease = op.lease](size_t at, const void* data,
                                                                                size_t bytes) {
             const std::shared_lock lock(lease->mutex);
             if (!lease->revoked) std::memcpy(destination + at, data, bytes);
           });
}

}  // namespace longseq
