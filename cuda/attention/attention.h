#pragma once
// The contract of attention: what goes in, what comes out, what a query may look at.
//
//   s_ij = cap(scale q_i . k_j) - slope |p_i - p_j|     over the keys j that query i may look at
//   logSumExp_i = ln sum_j exp s_ij      out_i = sum_j exp(s_ij - logSumExp_i) v_j
//
// A query that may look at nothing gives out 0, logSumExp -inf and no gradient. p are global positions, so
// that a part of a sequence (a shard, a ring step) means the same as the whole.
#include <cstdint>
#include <memory>
#include <vector>

#include "attention/kernels.h"
#include "attention/visible_keys.h"
#include "core/cpu.h"
#include "core/tensor.h"
#include "mask/mask.h"

namespace longseq {

/** Which keys a query may look at, by position, document and mask; all must allow it. */
struct VisibilityRule {
  bool causal = false;                          // p_j <= p_i
  int64_t window_left = -1, window_right = -1;  // p_i - left <= p_j <= p_i + right; -1 is unbounded
  std::vector<int64_t> documents;               // boundaries, 0 first, in positions: one's own document only
  std::vector<int64_t> key_documents;           // the keys' boundaries, where the queries have other ones
  std::vector<Piece> query_positions, key_positions;  // ascending
  std::shared_ptr<const Mask> mask;                   // [Sq, Sk], or null
};

struct ScoreRule {
  float scale = 1;
  float softcap = 0;    // cap(s) = softcap tanh(s / softcap); 0: none
  Tensor alibi_slopes;  // [Hq] float32, or none
};

/** Neighbouring rows of one of several tensors: the rows of all parts, one part behind the other, are a
 * call's. Each begins at a multiple of kPartRows and has one of them, so that a tile is of one part. */
struct Part {
  int64_t source, first, count;
};
inline constexpr int kMostSources = 8, kMostParts = 16;
inline constexpr int64_t kPartRows = 128;

/** Keys and values that lie in several tensors. */
struct KeyParts {
  std::vector<Tensor> k, v;  // [B n Hkv D]
  std::vector<Part> parts;
};
/** Queries that do, backward, each tensor with its dout, and what BeginQuerySums makes of them. */
struct QueryParts {
  std::vector<Tensor> q, dout;  // [B n Hq D]
  std::vector<Tensor> statistics,
      sums;  // float32: [B Hq n 2], and [B Hq n query_sum_columns] that dq is added to
  std::vector<Part> parts;
};

struct AttentionForward {
  Tensor q /*[B Sq Hq D]*/, k /*[B Sk Hkv D]*/, v /*[B Sk Hkv D]*/;
  ScoreRule score;
  std::shared_ptr<const VisibilityRule> visibility;
  Tensor out /*[B Sq Hq D]*/, log_sum_exp /*[B Hq Sq]*/;
  Kernels kernels = Kernels::Cpu;
  // Of float32, or none: attention over other keys, whose log-sum-exp log_sum_exp holds, which the call's are
  // merged with. May be `out`. A GPU's, of 16 bits.
  Tensor before = {};
  // Of kernels that take them, or none: then k and v, or q, are the first tensor's.
  std::shared_ptr<const KeyParts> key_parts = nullptr;
  std::shared_ptr<const QueryParts> query_parts = nullptr;

  int64_t queries() const;
  int64_t keys() const;
};

/**
 * dq of queries whose keys come in parts, a call each: what every call would make again is made once, for all
 * queries, and what is added up is rounded once. In an engine's own order.
 */
struct QuerySums {
  int64_t queries = -1;  // until there is memory
  Memory statistics, dq;
};
/** Calls have such neighbouring queries, a multiple of it from the first on, unless they have the last. */
inline constexpr int64_t kQuerySumRows = 128;

/** With P = exp(s - logSumExp), dP = dout v^T and delta = rowsum(dout * out) - dlogSumExp: dS = P * (dP -
 * delta). */
struct AttentionBackward {
  AttentionForward forward;
  Tensor dout /*[B Sq Hq D]*/, dlog_sum_exp /*[B Hq Sq], or none*/;
  Tensor dq, dk, dv;
  bool adds_to_dq = false, adds_to_dk = false, adds_to_dv = false;  // of float32: to what they hold
  Kernels kernels = Kernels::Cpu;                                   // backward
  bool deterministic = false;  // the same bits of dq in every run, where an engine has a faster way
  std::shared_ptr<QuerySums> sums = nullptr;  // what dq goes to instead; null: none
  int64_t first_query = 0;                    // among the sums'
};

/** Of all queries, and no keys: makes the sums, of zero, or those of the only query part. */
struct BeginQuerySums {
  AttentionBackward op;
};
/** dq becomes what the sums hold. */
struct FinishQuerySums {
  AttentionBackward op;
};

/** Attention over the keys of all parts, from attention over each part's: softmax weights of the parts'
 * logSumExp. What it gives may replace one of the parts. */
struct AttentionMerge {
  std::vector<Tensor> outs /*[B Sq Hq D]*/, log_sum_exps /*[B Hq Sq]*/;
  Tensor out, log_sum_exp;
};

/** The definition, materialised a row at a time in float64 (attention_reference.cc). */
struct ReferenceForward {
  AttentionForward op;
};
struct ReferenceBackward {
  AttentionBackward op;
};

void run(const Cpu&, const AttentionForward&);
void run(const Cpu&, const AttentionBackward&);
void run(const Cpu&, const AttentionMerge&);
void run(const Cpu&, const BeginQuerySums&);
void run(const Cpu&, const FinishQuerySums&);
void run(const Cpu&, const ReferenceForward&);
void run(const Cpu&, const ReferenceBackward&);
void run(const Cuda&, const AttentionForward&);
void run(const Cuda&, const AttentionBackward&);
void run(const Cuda&, const AttentionMerge&);
void run(const Cuda&, const BeginQuerySums&);
void run(const Cuda&, const FinishQuerySums&);
void run(const Cuda&, const ReferenceForward&);
void run(const Cuda&, const ReferenceBackward&);

}  // namespace longseq
