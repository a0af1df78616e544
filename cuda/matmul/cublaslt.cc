#include "matmul/cublaslt.h"

#include "core/error.h"
#include "core/library.h"

namespace longseq::cublaslt {
namespace {

Functions open() {
  const Library library(
      {"libcublasLt.so.13", "libcublasLt.so.12"}, "LONGSEQ_CUBLAS", Code::NoCuda,
      "matmul: cuBLASLt, which multiplies matrices on a GPU, could not be opened. Install the CUDA toolkit's "
      "cuBLAS (version 12 or 13), or `pip install nvidia-cublas` and let LONGSEQ_CUBLAS name the folder of "
      "libcublasLt.so.",
      "matmul: cuBLASLt of version 12 or 13 is needed; the one that was found");
  Functions functions;
  library.find(functions.Create, "cublasLtCreate");
  library.find(functions.GetStatusString, "cublasLtGetStatusString");
  library.find(functions.MatmulDescCreate, "cublasLtMatmulDescCreate");
  library.find(functions.MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  library.find(functions.MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  library.find(functions.MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  library.find(functions.MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  library.find(functions.MatrixLayoutSetAttribute, "cublasLtMatrixLayoutSetAttribute");
  library.find(functions.MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  library.find(functions.MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  library.find(functions.MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  library.find(functions.MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.find(functions.Matmul, "cublasLtMatmul");
  return functions;
}

}  // namespace

const Functions& functions() {
  static const Functions opened = open();  // tried again after a failure
  return opened;
}

}  // namespace longseq::cublaslt
