#pragma once
// Attention as the border calls it: tensors as the caller made them, options as the caller gave them, nothing
// checked.
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"

namespace longseq {

struct AttentionOptions {
  double scale, softcap;
  std::optional<Tensor> alibi_slopes;
  std::optional<std::string> implementation;  // none: the best of the device
  bool deterministic;                         // dq is summed in the same order in every run
  bool causal;
  int64_t window_left, window_right;
  std::optional<std::vector<int64_t>> documents, documents_keys;       // boundaries
  std::optional<std::vector<int64_t>> query_positions, key_positions;  // start, length, start, length, ...
  std::optional<std::shared_ptr<const Mask>> mask;
};

void attention_forward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp,
                       AttentionOptions options);
/** As `attention_merge` of that result and of `before`, of float32, whose log-sum-exp log_sum_exp holds; both
 * may be where the results go. */
void attention_forward_merged(Tensor q, Tensor k, Tensor v, Tensor before, Tensor out, Tensor log_sum_exp,
                              AttentionOptions options);
void attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp, Tensor dout,
                        std::optional<Tensor> dlog_sum_exp, Tensor dq, Tensor dk, Tensor dv, bool adds_to_dq,
                        bool adds_to_dk, bool adds_to_dv, AttentionOptions options);

/** Over keys that lie in several tensors: `parts` are source, first row, rows, source, ... For engines that
 * takes_parts names. */
void attention_forward_of_parts(Tensor q, std::vector<Tensor> k, std::vector<Tensor> v,
                                std::vector<int64_t> parts, Tensor out, Tensor log_sum_exp,
                                AttentionOptions options);
/** For those engines, the backward pass by keys, where queries lie in several tensors: what is made of each
 * of these first, for all who have keys that it sees; */
void query_sums_begin(Tensor q, Tensor out, Tensor log_sum_exp, Tensor dout, Tensor statistics, Tensor sums,
                      AttentionOptions options);
/** then, wherever there are keys, their dk and dv, and what these add to dq, maybe beside other calls; */
void attention_backward_of_parts(std::vector<Tensor> q, std::vector<Tensor> dout,
                                 std::vector<Tensor> statistics, std::vector<Tensor> sums,
                                 std::vector<int64_t> parts, Tensor k, Tensor v, Tensor dk, Tensor dv,
                                 AttentionOptions options);
/** and dq. */
void query_sums_finish(Tensor sums, Tensor dq, AttentionOptions options);

/** The backward pass where keys come in parts, a call each: what its calls share, and dq of all queries. */
using QueryGradientHandle = std::shared_ptr<AttentionBackward>;
/** `options` say the scale and the engine. */
QueryGradientHandle query_gradient_begin(Tensor q, Tensor out, Tensor log_sum_exp, Tensor dout,
                                         AttentionOptions options);
/** dk and dv of a part, by some of the queries (kQuerySumRows), whose dq is added to. */
void query_gradient_add(QueryGradientHandle gradient, int64_t first, int64_t count, Tensor k, Tensor v,
                        Tensor dk, Tensor dv, bool adds_to_dk, bool adds_to_dv, AttentionOptions options);
void query_gradient_finish(QueryGradientHandle gradient, Tensor dq);

void attention_merge(std::vector<Tensor> outs, std::vector<Tensor> log_sum_exps, Tensor out,
                     Tensor log_sum_exp);

}  // namespace longseq
