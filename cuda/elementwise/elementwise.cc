#include "elementwise/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/thread_pool.h"
#include "elementwise/elements.h"

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

void check_same_shape(const Tensor& x, const Tensor& y, const char* what) {
  check(x.device() == y.device(), Code::Device, what, " are on two devices");
  check(x.rank == y.rank && std::equal(x.shape.begin(), x.shape.begin() + x.rank, y.shape.begin()),
        Code::Shape, what, " have the shapes ", shape_text(x), " and ", shape_text(y));
}

void check_number(const std::optional<Tensor>& number, const char* name, const Tensor& x) {
  if (!number) return;
  check(number->dtype == DType::Float32, Code::DType, "scale: ", name, " is ", name_of(number->dtype),
        ", expected float32");
  check(number->device() == x.device(), Code::Device, "scale: ", name, " is on another device than x");
  check(number->elements() == 1, Code::Shape, "scale: ", name, " has the shape ", shape_text(*number),
        ", expected one element");
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
        y[i * strides[2]] = sum(a[i * strides[0]], b[i * strides[1]]);
      }
    });
  });
}

void run(const Cpu&, const Sum& op) {
  visit_float(op.terms[0].dtype, [&]<class T>(T) {
    constexpr int64_t kBlock = 1024;
    parallel_for((op.y.elements() + kBlock - 1) / kBlock, [&](int64_t block) {
      const int64_t first = block * kBlock, count = std::min(kBlock, op.y.elements() - first);
      float sums[kBlock] = {};
      for (const Tensor& term : op.terms) {
        const T* const x = term.data<T>() + first;
        for (int64_t i = 0; i < count; i++) sums[i] += convert<float>(x[i]);
      }
      visit_float(op.y.dtype, [&]<class To>(To) {
        To* const y = op.y.data<To>() + first;
        for (int64_t i = 0; i < count; i++) y[i] = convert<To>(sums[i]);
      });
    });
  });
}

void run(const Cpu&, const Scale& op) {
  const float by = scale_of(op.factor ? op.factor.data<float>() : nullptr,
                            op.divisor ? op.divisor.data<float>() : nullptr);
  visit_float(op.x.dtype, [&]<class From>(From) {
    visit_float(op.y.dtype, [&]<class To>(To) {
      for_rows<2>({&op.x, &op.y}, [&](auto offsets, auto strides, int64_t, int64_t count) {
        const From* const x = op.x.data<From>() + offsets[0];
        To* const y = op.y.data<To>() + offsets[1];
        for (int64_t i = 0; i < count; i++) {
          To& to = y[i * strides[1]];
          const float scaled = static_cast<float>(x[i * strides[0]]) * by;
          to = from_float<To>(op.accumulate ? static_cast<float>(to) + scaled : scaled);
        }
      });
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
      const uint64_t index = op.first + static_cast<uint64_t>(first);
      for (int64_t i = 0; i < count; i++) {
        y[i * strides[0]] =
            convert<T>(op.mean + op.deviation * normal(index + static_cast<uint64_t>(i), op.seed));
      }
    });
  });
}

void run(const Cpu& cpu, const WriteFrom& op) { run(cpu, Copy{op.x, op.y}); }

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

void write(Tensor x, Tensor y) {
  const auto device = y.device();
  device->submit(WriteFrom{std::move(x), std::move(y)});
}

void add(Tensor a, Tensor b, Tensor y) {
  check_same_shape(a, b, "add: the terms");
  check_same_shape(a, y, "add: the terms and the result");
  check(a.dtype == b.dtype && a.dtype == y.dtype, Code::DType, "add: the terms are ", name_of(a.dtype),
        " and ", name_of(b.dtype), ", expected one dtype");
  const auto device = y.device();
  device->submit(Add{std::move(a), std::move(b), std::move(y)});
}

void check_sum(const std::vector<Tensor>& terms, const Tensor& y) {
  check(!terms.empty(), Code::Option, "sum: there are no terms");
  const DType dtype = terms[0].dtype;
  check(dtype == DType::Float32 || dtype == DType::BFloat16 || dtype == DType::Float16, Code::DType,
        "sum: the terms are ", name_of(dtype), ", expected float32, bfloat16 or float16");
  for (const Tensor& term : terms) {
    check_same_shape(term, y, "sum: the terms and the sum");
    check(term.dtype == dtype, Code::DType, "sum: the terms are ", name_of(dtype), " and ",
          name_of(term.dtype), ", expected one dtype");
    check(term.contiguous() && y.contiguous(), Code::Shape, "sum: a tensor is not contiguous");
  }
  check(y.dtype == dtype || y.dtype == DType::Float32, Code::DType, "sum: the result is ", name_of(y.dtype),
        ", expected ", name_of(dtype), " or float32");
}

void sum(std::vector<Tensor> terms, Tensor y) {
  check_sum(terms, y);
  const auto device = y.device();
  device->submit(Sum{std::move(terms), std::move(y)});
}

void scale(Tensor x, std::optional<Tensor> factor, std::optional<Tensor> divisor, Tensor y, bool accumulate) {
  check_same_shape(x, y, "scale: x and the result");
  check(is_float(x.dtype) && is_float(y.dtype), Code::DType, "scale: x and the result are ", name_of(x.dtype),
        " and ", name_of(y.dtype), ", expected float32, bfloat16 or float16");
  check_number(factor, "factor", x);
  check_number(divisor, "divisor", x);
  const auto device = y.device();
  device->submit(Scale{.x = std::move(x),
                       .factor = std::move(factor).value_or(Tensor{}),
                       .divisor = std::move(divisor).value_or(Tensor{}),
                       .y = std::move(y),
                       .accumulate = accumulate});
}

void fill(Tensor y, double value) {
  const auto device = y.device();
  device->submit(Fill{std::move(y), static_cast<float>(value)});
}

void fill_normal(Tensor y, double seed, double first, double mean, double deviation) {
  check(seed >= 0 && seed <= 0x1p53, Code::Option, "normal: seed is ", seed, ", expected 0 to 2^53");
  check(first >= 0 && first <= 0x1p53, Code::Option, "normal: first is ", first, ", expected 0 to 2^53");
  const auto device = y.device();
  device->submit(FillNormal{std::move(y), static_cast<uint64_t>(seed), static_cast<uint64_t>(first),
                            static_cast<float>(mean), static_cast<float>(deviation)});
}

}  // namespace longseq
