#pragma once
// The rows of a table that indices name, and the sum of the gradients that each row of the table gets:
//
//   y_r = table_t        dtable_v (+)= sum of dy_r over the rows r with t = v        t = indices_r
//
// An index outside [0, V) gives a row of NaN, and no gradient: indices are known on the device alone, where a
// call can no longer be refused. A sum takes its rows in ascending order, in parts of kEmbeddingPart rows
// whose sums it then adds up: the same bits on every engine, and few roundings one behind the other where a
// row is named often, as the four letters of a genome are.
#include "core/cpu.h"
#include "core/rows.h"
#include "core/tensor.h"

namespace longseq {

inline constexpr int64_t kEmbeddingPart = 64;

struct Embedding {
  Tensor table /*[V C]*/, indices /*[...] int32*/;
  Tensor y /*[... C], the dtype of table*/;
};
struct EmbeddingBackward {
  Tensor dy /*[... C]*/, indices /*[...] int32*/;
  Tensor dtable /*[V C], the dtype of dy or float32, contiguous*/;
  bool accumulate;
};

void run(const Cpu&, const Embedding&);
void run(const Cpu&, const EmbeddingBackward&);
void run(const Cuda&, const Embedding&);
void run(const Cuda&, const EmbeddingBackward&);

/** sums = the sum of columns [first_column, first_column + columns) of `count` of dy's rows. */
struct EmbeddingSumTask {
  DType dtype;
  Rows dy;
  const int32_t* rows;
  int64_t count, first_column, columns;
  float* sums;
};
LONGSEQ_CPU_KERNEL(EmbeddingSumTask)

/** Check and queue. */
void embedding(Tensor table, Tensor indices, Tensor y);
void embedding_backward(Tensor dy, Tensor indices, Tensor dtable, bool accumulate);

}  // namespace longseq
