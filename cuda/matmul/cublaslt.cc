#include "matmul/cublaslt.h"

#include "core/error.h"
#include "core/library.h"

namespace longseq::cublaslt {
namespace {

Functions open() {
  const Library library = open_library({"libcublasLt.so.13", "libcublasLt.so.12"}, "LONGSEQ_CUBLAS");
  check(library.handle != nullptr, Code::NoCuda,
        "matmul: cuBLASLt, which multiplies matrices on a GPU, could not be opened. Install the CUDA "
        "toolkit's cuBLAS "
        "(version 12 or 13), or `pip install nvidia-cublas` and let LONGSEQ_CUBLAS name the folder of "
        "libcublasLt.so. Tried: ",
        library.tried);
  Functions functions;
  const auto find = [&]<class Function>(Function& function, const char* name) {
    function = reinterpret_cast<Function>(find_function(library, name));
    check(function != nullptr, Code::NoCuda, "matmul: the cuBLASLt that was found has no function ", name,
          ": it needs version 12 or 13");
  };
  find(functions.Create, "cublasLtCreate");
  find(functions.GetStatusString, "cublasLtGetStatusString");
  find(functions.MatmulDescCreate, "cublasLtMatmulDescCreate");
  find(functions.MatmulDescDestroy, "cublasLtMatmulDescDestroy");
  find(functions.MatmulDescSetAttribute, "cublasLtMatmulDescSetAttribute");
  find(functions.MatrixLayoutCreate, "cublasLtMatrixLayoutCreate");
  find(functions.MatrixLayoutDestroy, "cublasLtMatrixLayoutDestroy");
  find(functions.MatrixLayoutSetAttribute, "cublasLtMatrixLayoutSetAttribute");
  find(functions.MatmulPreferenceCreate, "cublasLtMatmulPreferenceCreate");
  find(functions.MatmulPreferenceDestroy, "cublasLtMatmulPreferenceDestroy");
  find(functions.MatmulPreferenceSetAttribute, "cublasLtMatmulPreferenceSetAttribute");
  find(functions.MatmulAlgoGetHeuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.Matmul, "cublasLtMatmul");
  return functions;
}

}  // namespace

const Functions& functions() {
  static const Functions opened = open();  // tried again after a failure
  return opened;
}

}  // namespace longseq::cublaslt
