// The matrix product on a GPU, by cuBLASLt. Its matrices are column-major: a row-major C = A B is, read so,
// C^T = B^T A^T, so the operands change places, and each is transposed for it where it is for us.
#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "core/cuda.h"
#include "elementwise/elementwise.h"
#include "matmul/cublaslt.h"
#include "matmul/matmul.h"

namespace longseq {
namespace {

/** NVIDIA's advice for Hopper; less leaves the kernels out that split the depth. */
constexpr uint64_t kWorkspaceBytes = uint64_t{32} << 20;
/** An epilogue reads the bias 16 bytes at a time, and no preference says otherwise. */
constexpr uintptr_t kBiasAlignment = 16;
/** Shapes whose algorithm is remembered; more than a model has. */
constexpr size_t kMostPlans = 1024;

void cublas_check(cublaslt::Status status, const char* what) {
  if (status == cublaslt::kSuccess) return;
  throw Error(status == cublaslt::kAllocationFailed ? Code::OutOfMemory : Code::Device,
              text("matmul: cuBLASLt: ", what, ": ", cublaslt::functions().GetStatusString(status)));
}

/** One of cuBLASLt's descriptors, destroyed with this. */
template <class Type, auto destroy>
class Descriptor {
 public:
  template <class Make>
  explicit Descriptor(Make make) {
    cublas_check(make(&value_), "a descriptor");
  }
  ~Descriptor() { (cublaslt::functions().*destroy)(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  operator Type() const { return value_; }

 private:
  Type value_ = nullptr;
};
using Product = Descriptor<cublaslt::Product, &cublaslt::Functions::MatmulDescDestroy>;
using Layout = Descriptor<cublaslt::Layout, &cublaslt::Functions::MatrixLayoutDestroy>;
using Preference = Descriptor<cublaslt::Preference, &cublaslt::Functions::MatmulPreferenceDestroy>;

cublaslt::DataType type_of(DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return cublaslt::DataType::BFloat16;
    case DType::Float16:
      return cublaslt::DataType::Float16;
    default:
      return cublaslt::DataType::Float32;
  }
}

template <class Value>
void set(const Product& product, cublaslt::ProductAttribute attribute, Value value) {
  cublas_check(cublaslt::functions().MatmulDescSetAttribute(product, attribute, &value, sizeof value),
               "an attribute");
}

/** What a preference asks for the alignment of, in bytes: up to 256. */
uint32_t alignment_of(const Tensor& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.data<char>()) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

/** Rows and columns as they lie in memory. */
Layout layout_of(const Matrix& matrix, int64_t rows, int64_t columns, int64_t batch) {
  if (matrix.transposed) std::swap(rows, columns);
  const cublaslt::Functions& library = cublaslt::functions();
  return Layout([&](cublaslt::Layout* made) {
    const auto set = [&](cublaslt::LayoutAttribute attribute, auto value) {
      return library.MatrixLayoutSetAttribute(*made, attribute, &value, sizeof value);
    };
    cublaslt::Status status =
        library.MatrixLayoutCreate(made, type_of(matrix.tensor.dtype), static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows), matrix.stride);
    if (batch == 1 || status != cublaslt::kSuccess) return status;
    status = set(cublaslt::LayoutAttribute::BatchCount, static_cast<int32_t>(batch));
    if (status != cublaslt::kSuccess) return status;
    return set(cublaslt::LayoutAttribute::BatchStride, matrix.batch_stride);
  });
}

/** How a product of some shape is computed; none: not with this epilogue. */
struct Plan {
  bool found = false;
  cublaslt::Algorithm algorithm{};
  size_t workspace_bytes = 0;
};

/** What all queues on a GPU share: the library's handle, and plans by all that the choice depends on. */
struct Products {
  cublaslt::Handle handle = nullptr;
  std::mutex mutex;
  std::map<std::vector<int64_t>, Plan> plans;
};

Products& products_of(const Cuda& cuda) {
  static std::mutex mutex;
  static auto* const all = new std::map<int, Products>;  // never destroyed: threads may outlive main
  std::lock_guard lock(mutex);
  Products& products = (*all)[cuda.gpu->ordinal];
  if (products.handle == nullptr) {
    cublas_check(cublaslt::functions().Create(&products.handle), "opening it on the GPU");
  }
  return products;
}

std::vector<int64_t> key_of(const Matmul& op, bool has_epilogue) {
  std::vector<int64_t> key{op.batch, op.m, op.n, op.k, op.accumulate, has_epilogue};
  for (const Matrix* const matrix : {&op.a, &op.b, &op.out}) {
    key.insert(key.end(), {static_cast<int64_t>(matrix->tensor.dtype), matrix->stride, matrix->batch_stride,
                           matrix->transposed, alignment_of(matrix->tensor)});
  }
  return key;
}

/** The bias in the result's dtype, aligned: its own memory where it is both. */
Tensor bias_for_epilogue(const Cuda& cuda, const Matmul& op) {
  const Tensor& out = op.out.tensor;
  if (op.bias.dtype == out.dtype && reinterpret_cast<uintptr_t>(op.bias.data<char>()) % kBiasAlignment == 0) {
    return op.bias;
  }
  Tensor copy = op.bias;
  copy.dtype = out.dtype;
  copy.offset = 0;
  copy.storage = std::make_shared<Storage>(out.device(), allocate(cuda, static_cast<size_t>(copy.bytes())));
  run(cuda, Copy{op.bias, copy});
  return copy;
}

/** The result without its product: the bias, or what was there and the bias, or zeros. */
void start_result(const Cuda& cuda, const Matmul& op) {
  Tensor out = op.out.tensor;
  out.rank = 3;
  out.shape = {op.batch, op.m, op.n};
  out.strides = {op.out.batch_stride, op.out.stride, 1};
  if (!op.bias) {
    if (!op.accumulate) run(cuda, Fill{out, 0});
    return;
  }
  Tensor rows = bias_for_epilogue(cuda, op);
  rows.rank = 3;
  rows.shape = out.shape;
  rows.strides = {0, 0, 1};
  if (op.accumulate) {
    run(cuda, Add{out, rows, out});
  } else {
    run(cuda, Copy{rows, out});
  }
}

/** Whether it could: cuBLASLt has no kernel for some pairs of a shape and an epilogue. */
bool multiply(const Cuda& cuda, const Matmul& op, const Tensor& bias) {
  using cublaslt::PreferenceAttribute, cublaslt::ProductAttribute;
  const cublaslt::Functions& library = cublaslt::functions();
  Products& products = products_of(cuda);
  const Product product([&](cublaslt::Product* made) {
    return library.MatmulDescCreate(made, cublaslt::ComputeType::Float32, cublaslt::DataType::Float32);
  });
  const auto operation = [](const Matrix& matrix) {
    return matrix.transposed ? cublaslt::Operation::Transpose : cublaslt::Operation::None;
  };
  set(product, ProductAttribute::TransposeA, operation(op.b));
  set(product, ProductAttribute::TransposeB, operation(op.a));
  if (bias) {
    set(product, ProductAttribute::Epilogue, cublaslt::Epilogue::Bias);
    set(product, ProductAttribute::BiasPointer, static_cast<const void*>(bias.data<char>()));
  }
  const Layout a = layout_of(op.a, op.m, op.k, op.batch), b = layout_of(op.b, op.k, op.n, op.batch);
  const Layout out = layout_of(op.out, op.m, op.n, op.batch);

  Plan plan;
  {
    std::lock_guard lock(products.mutex);
    const std::vector<int64_t> key = key_of(op, static_cast<bool>(bias));
    const auto known = products.plans.find(key);
    if (known != products.plans.end()) {
      plan = known->second;
    } else {
      const Preference preference(library.MatmulPreferenceCreate);
      const auto prefer = [&](PreferenceAttribute attribute, auto value) {
        cublas_check(library.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
                     "a preference");
      };
      prefer(PreferenceAttribute::WorkspaceBytes, kWorkspaceBytes);
      prefer(PreferenceAttribute::Reductions, cublaslt::Reduction::InComputeType);
      prefer(PreferenceAttribute::AlignmentA, alignment_of(op.b.tensor));
      prefer(PreferenceAttribute::AlignmentB, alignment_of(op.a.tensor));
      prefer(PreferenceAttribute::AlignmentC, alignment_of(op.out.tensor));
      prefer(PreferenceAttribute::AlignmentD, alignment_of(op.out.tensor));
      cublaslt::Heuristic heuristic{};
      int count = 0;
      const cublaslt::Status status = library.MatmulAlgoGetHeuristic(products.handle, product, b, a, out, out,
                                                                     preference, 1, &heuristic, &count);
      plan.found = status == cublaslt::kSuccess && count == 1 && heuristic.state == cublaslt::kSuccess;
      if (!plan.found && !bias) cublas_check(status, "no kernel for this shape");
      plan.algorithm = heuristic.algorithm;
      plan.workspace_bytes = heuristic.workspace_bytes;
      if (products.plans.size() >= kMostPlans) products.plans.clear();
      products.plans.emplace(key, plan);
    }
  }
  if (!plan.found) return false;
  Memory workspace;  // back to the pool in the stream's order
  if (plan.workspace_bytes > 0) workspace = allocate(cuda, plan.workspace_bytes);
  const float alpha = 1, beta = op.accumulate ? 1 : 0;
  const auto* const data = op.out.tensor.data<char>();
  cublas_check(library.Matmul(products.handle, product, &alpha, op.b.tensor.data<char>(), b,
                              op.a.tensor.data<char>(), a, &beta, data, out, op.out.tensor.data<char>(), out,
                              &plan.algorithm, workspace.data, plan.workspace_bytes, cuda.stream.get()),
               "the product");
  return true;
}

}  // namespace

void require_products(const Cuda&) { cublaslt::functions(); }

void run(const Cuda& cuda, const Matmul& op) {
  if (op.k == 0) return start_result(cuda, op);
  if (multiply(cuda, op, op.bias ? bias_for_epilogue(cuda, op) : Tensor{})) return;
  // No epilogue for this shape, or no kernel at all: then this throws.
  start_result(cuda, op);
  Matmul onto = op;
  onto.bias = {};
  onto.accumulate = true;
  check(multiply(cuda, onto, {}), Code::Device, "matmul: cuBLASLt has no kernel for this shape");
}

}  // namespace longseq
