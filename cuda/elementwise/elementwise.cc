#include "elementwise/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/thread_pool.h"

namespace longseq {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a task: some tens of microseconds of memory traffic

/** Calls row(offsets..., count, strides...) for the innermost axis of equally shaped tensors, in parallel. */
template <size_t N, class Row>
void for_rows(const std::array<const Tensor*, N>& tensors, Row row) {
  const Tensor& shape = *tensors[0];
  if (shape.elements() == 0) return;
  const int64_t inner = shape.rank ? shape.size(-1) : 1;
  const int64_t rows = shape.elements() / inner;
  const int64_t chunks = (inner + kGrain - 1) / kGrain, per_task = std::max<int64_t>(1, kGrain / inner);
  parallel_for((rows + per_task - 1) / per_task * chunks, [&](int64_t task) {
    const int64_t first = task % chunks * kGrain, count = std::min(kGrain, inner - first);
    for (int64_t r = task / chunks * per_task; r < std::min(rows, (task / chunks + 1) * per_task); r++) {
      std::array<int64_t, N> offsets{};
      int64_t rest = r;
      for (int axis = shape.rank - 2; axis >= 0; axis--) {
        for (size_t t = 0; t < N; t++) offsets[t] += rest % shape.size(axis) * tensors[t]->stride(axis);
        rest /= shape.size(axis);
      }
      std::array<int64_t, N> strides{};
      for (size_t t = 0; t < N; t++) {
        strides[t] = shape.rank ? tensors[t]->stride(-1) : 1;
        offsets[t] += first * strides[t];
      }
      row(offsets, strides, r * inner + first, count);
    }
  });
}

template <class F>
void visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::Int32:
      return f(int32_t{});
    case DType::UInt8:
      return f(uint8_t{});
    default:
      return visit_float(dtype, f);
  }
}

/** Conversions saturate, and NaN becomes 0 in an integer, where C++ would leave the result undefined. */
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
    return static_cast<To>(
        std::clamp<int64_t>(value, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
  } else if constexpr (std::is_integral_v<To>) {
    const double number = static_cast<float>(value);
    if (std::isnan(number)) return 0;
    return static_cast<To>(
        std::clamp<double>(number, std::numeric_limits<To>::min(), std::numeric_limits<To>::max()));
  } else {
    return from_float<To>(static_cast<float>(value));
  }
}

/** Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): four words of a 128-bit
 * counter. */
std::array<uint32_t, 4> philox(uint64_t counter, uint64_t seed) {
  uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return {c[0], c[1], c[2], c[3]};
}

/** Box and Muller: words 2h and 2h+1 of a counter's four give the normals 2h (cosine) and 2h+1 (sine). */
float normal(uint64_t index, uint64_t seed) {
  const auto words = philox(index / 4, seed);
  const size_t half = index % 4 / 2;
  const float u = (static_cast<float>(words[2 * half] >> 8) + 0.5f) * 0x1p-24f;
  const float v = static_cast<float>(words[2 * half + 1] >> 8) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * std::log(u)), angle = 6.2831853f * v;
  return radius * (index % 2 ? std::sin(angle) : std::cos(angle));
}

void check_same_shape(const Tensor& x, const Tensor& y, const char* what) {
  check(x.device() == y.device(), Code::Device, what, " are on two devices");
  check(x.rank == y.rank && std::equal(x.shape.begin(), x.shape.begin() + x.rank, y.shape.begin()),
        Code::Shape, what, " have the shapes ", shape_text(x), " and ", shape_text(y));
}

}  // namespace

void run(const Cpu&, const Copy& op) {
  visit(op.x.dtype, [&]<class From>(From) {
    visit(op.y.dtype, [&]<class To>(To) {
      for_rows<2>({&op.x, &op.y}, [&](auto offsets, auto strides, int64_t, int64_t count) {
        const From* const x = op.x.data<From>() + offsets[0];
        To* const y = op.y.data<To>() + offsets[1];
        if (std::is_same_v<From, To> && strides[0] == 1 && strides[1] == 1) {
          std::memcpy(y, x, static_cast<size_t>(count) * sizeof(To));
        } else {
          for (int64_t i = 0; i < count; i++) y[i * strides[1]] = convert<To>(x[i * strides[0]]);
        }
      });
    });
  });
}

void run(const Cpu&, const Add& op) {
  visit(op.y.dtype, [&]<class T>(T) {
    for_rows<3>({&op.a, &op.b, &op.y}, [&](auto offsets, auto strides, int64_t, int64_t count) {
      const T *const a = op.a.data<T>() + offsets[0], *const b = op.b.data<T>() + offsets[1];
      T* const y = op.y.data<T>() + offsets[2];
      for (int64_t i = 0; i < count; i++) {
        if constexpr (std::is_integral_v<T>) {
          y[i * strides[2]] = convert<T>(int64_t{a[i * strides[0]]} + b[i * strides[1]]);
        } else {
          y[i * strides[2]] =
              from_float<T>(static_cast<float>(a[i * strides[0]]) + static_cast<float>(b[i * strides[1]]));
        }
      }
    });
  });
}

void run(const Cpu&, const Fill& op) {
  visit(op.y.dtype, [&]<class T>(T) {
    const T value = convert<T>(op.value);
    for_rows<1>({&op.y}, [&](auto offsets, auto strides, int64_t, int64_t count) {
      T* const y = op.y.data<T>() + offsets[0];
      for (int64_t i = 0; i < count; i++) y[i * strides[0]] = value;
    });
  });
}

void run(const Cpu&, const FillNormal& op) {
  visit(op.y.dtype, [&]<class T>(T) {
    for_rows<1>({&op.y}, [&](auto offsets, auto strides, int64_t first, int64_t count) {
      T* const y = op.y.data<T>() + offsets[0];
      for (int64_t i = 0; i < count; i++) {
        y[i * strides[0]] =
            convert<T>(op.mean + op.deviation * normal(static_cast<uint64_t>(first + i), op.seed));
      }
    });
  });
}

void run(const Cpu&, const ReadInto& op) {
  const std::shared_lock lock(op.lease->mutex);
  if (op.lease->revoked) return;
  const int64_t bytes = op.x.bytes(), grain = kGrain * 8;
  parallel_for((bytes + grain - 1) / grain, [&](int64_t task) {
    const int64_t first = task * grain;
    std::memcpy(static_cast<char*>(op.destination) + first, op.x.data<char>() + first,
                static_cast<size_t>(std::min(grain, bytes - first)));
  });
}

void copy(Tensor x, Tensor y) {
  check_same_shape(x, y, "copy: source and destination");
  const auto device = y.device();
  device->submit(Copy{std::move(x), std::move(y)});
}

void add(Tensor a, Tensor b, Tensor y) {
  check_same_shape(a, b, "add: the terms");
  check_same_shape(a, y, "add: the terms and the result");
  check(a.dtype == b.dtype && a.dtype == y.dtype, Code::DType, "add: the terms are ", name_of(a.dtype),
        " and ", name_of(b.dtype), ", expected one dtype");
  const auto device = y.device();
  device->submit(Add{std::move(a), std::move(b), std::move(y)});
}

void fill(Tensor y, double value) {
  const auto device = y.device();
  device->submit(Fill{std::move(y), static_cast<float>(value)});
}

void fill_normal(Tensor y, double seed, double mean, double deviation) {
  check(seed >= 0 && seed <= 0x1p53, Code::Option, "normal: seed is ", seed, ", expected 0 to 2^53");
  const auto device = y.device();
  device->submit(FillNormal{std::move(y), static_cast<uint64_t>(seed), static_cast<float>(mean),
                            static_cast<float>(deviation)});
}

}  // namespace longseq
