#pragma once
// What attention's arguments are checked for, whatever calls it and for every engine.
#include "attention/attention_api.h"

namespace longseq {

/** [T H D] is [1 T H D], and its log-sum-exp [H T] is [1 H T]: one batch of packed documents. */
Tensor with_batch(Tensor tensor, int rank);
void check_like(const Tensor& tensor, const char* what, const Tensor& like, const char* like_name);
void check_log_sum_exp(const Tensor& tensor, const char* what, const Tensor& q);

/** What goes in; of parts, q, or k and v, are those of the first tensor. */
AttentionForward checked_inputs(Tensor q, Tensor k, Tensor v, const AttentionOptions& options,
                                std::shared_ptr<const KeyParts> key_parts = nullptr,
                                std::shared_ptr<const QueryParts> query_parts = nullptr);
/** And where results go. */
AttentionForward with_results(AttentionForward op, Tensor out, Tensor log_sum_exp);
/** Both. */
AttentionForward checked_forward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor log_sum_exp,
                                 const AttentionOptions& options);

void check_output_gradients(const AttentionBackward& op);
void check_gradient(const Tensor& gradient, const char* what, const Tensor& like, const char* like_name,
                    bool is_added_to);

}  // namespace longseq
