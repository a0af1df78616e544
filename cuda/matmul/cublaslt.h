#pragma once
// The part of cuBLASLt's interface that the matrix product uses, opened at run time. The values are the
// library's own (docs.nvidia.com/cuda/cublas, "cuBLASLt datatypes reference"), the same in its versions 12
// and 13.
#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace longseq::cublaslt {

using Status = int;
inline constexpr Status kSuccess = 0, kAllocationFailed = 3;

enum class DataType : int32_t { Float32 = 0, Float16 = 2, BFloat16 = 14 };
enum class ComputeType : int32_t { Float32 = 68 };  // of float32: not tf32
enum class Operation : int32_t { None = 0, Transpose = 1 };
enum class Epilogue : uint32_t { Default = 1, Bias = 4 };
/** Bits: in which type the parts of a split depth are summed. With none of them it is not split. */
enum class Reduction : uint32_t { None = 0, InComputeType = 2 };

enum class ProductAttribute : int { TransposeA = 3, TransposeB = 4, Epilogue = 7, BiasPointer = 8 };
enum class LayoutAttribute : int { BatchCount = 5, BatchStride = 6 };
enum class PreferenceAttribute : int {
  WorkspaceBytes = 1,
  Reductions = 3,
  AlignmentA = 5,
  AlignmentB = 6,
  AlignmentC = 7,
  AlignmentD = 8
};

using Handle = struct HandleType*;
using Product = struct ProductType*;
using Layout = struct LayoutType*;
using Preference = struct PreferenceType*;

struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

/** The library's functions, under their names without the prefix. Matrices are column-major. */
struct Functions {
  Status (*Create)(Handle*);
  const char* (*GetStatusString)(Status);
  Status (*MatmulDescCreate)(Product*, ComputeType, DataType scale);
  Status (*MatmulDescDestroy)(Product);
  Status (*MatmulDescSetAttribute)(Product, ProductAttribute, const void* value, size_t bytes);
  Status (*MatrixLayoutCreate)(Layout*, DataType, uint64_t rows, uint64_t columns, int64_t leading_dimension);
  Status (*MatrixLayoutDestroy)(Layout);
  Status (*MatrixLayoutSetAttribute)(Layout, LayoutAttribute, const void* value, size_t bytes);
  Status (*MatmulPreferenceCreate)(Preference*);
  Status (*MatmulPreferenceDestroy)(Preference);
  Status (*MatmulPreferenceSetAttribute)(Preference, PreferenceAttribute, const void* value, size_t bytes);
  Status (*MatmulAlgoGetHeuristic)(Handle, Product, Layout a, Layout b, Layout c, Layout d, Preference,
                                   int requested, Heuristic* found, int* count);
  /** d = alpha op(a) op(b) + beta c, and the epilogue. */
  Status (*Matmul)(Handle, Product, const void* alpha, const void* a, Layout, const void* b, Layout,
                   const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*,
                   void* workspace, size_t workspace_bytes, CUstream_st*);
};

/** Opens the library at the first call. Throws Error(NoCuda) that says what was tried and what to install. */
const Functions& functions();

}  // namespace longseq::cublaslt
